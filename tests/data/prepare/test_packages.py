import dataclasses
import sys

import pytest

from data.prepare.cifar10 import PACKAGE as CIFAR10
from data.prepare.clipart import PACKAGE as CLIP_ART
from data.prepare.emoji import LABELS, SETS
from data.prepare.packages import MissingPackages, Package, PrepareError, obtain, run_client, verify
from data.prepare.photos import PACKAGES as PHOTOS

PINNED = [LABELS, *(emoji_set.package for emoji_set in SETS), CLIP_ART, CIFAR10, *PHOTOS]


def package(**changes):
    fields = {"client": "npm", "name": "thing", "version": "1.0.0", "file": "thing-1.0.0.tgz", "licence": "MIT"}
    return Package(**{**fields, "sha256": "0" * 64, **changes})


@pytest.mark.parametrize("pinned", PINNED, ids=lambda pinned: pinned.name)
def test_pinned_packages_are_exact(pinned):
    assert len(pinned.sha256) == 64
    assert int(pinned.sha256, 16) > 0
    assert pinned.licence
    assert any(pinned.version in part for part in pinned.command)


def test_no_two_packages_share_a_file_or_a_hash():
    assert len({pinned.file for pinned in PINNED}) == len({pinned.sha256 for pinned in PINNED}) == len(PINNED)


def test_commands_of_the_clients():
    assert package().command == ["npm", "pack", "--silent", "thing@1.0.0"]
    assert package(client="apt").command == ["apt-get", "download", "thing=1.0.0"]
    pip = package(client="pip").command
    assert pip[:2] == ["pip", "download"]
    assert pip[-1] == "thing==1.0.0"
    assert {"--no-deps", "--only-binary=:all:"} <= set(pip)  # a source package would run its build


def test_what_is_on_disk_is_not_fetched(fakes):
    pinned = fakes.npm("thing", {"a": b"a"})

    def fetch(package, folder):
        raise AssertionError(f"fetched {package.name}")

    assert obtain([pinned], fakes.folder, fetch) == {"thing": fakes.folder / pinned.file}


def test_missing_is_fetched_and_verified(fakes, tmp_path):
    pinned = fakes.npm("thing", {"a": b"a"})
    content = (fakes.folder / pinned.file).read_bytes()

    def fetch(package, folder):
        (folder / package.file).write_bytes(content)

    assert obtain([pinned], tmp_path / "new", fetch)["thing"].read_bytes() == content


def test_wrong_hash_names_file_expected_and_found(fakes):
    pinned = fakes.npm("thing", {"a": b"a"})
    wrong = dataclasses.replace(pinned, sha256="f" * 64)
    with pytest.raises(PrepareError) as error:
        obtain([wrong], fakes.folder)
    assert all(part in str(error.value) for part in (pinned.file, "f" * 64, pinned.sha256))


def test_changed_byte_is_noticed(fakes):
    pinned = fakes.wheel("thing", {"a": b"a"})
    path = fakes.folder / pinned.file
    verify(path, pinned)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(PrepareError, match="expected SHA-256"):
        verify(path, pinned)


def test_without_clients_every_missing_file_is_listed_with_its_place(fakes, tmp_path, no_clients):
    there = fakes.npm("there", {"a": b"a"})
    absent = [package(name="one", file="one-1.tgz", sha256="1" * 64), package(client="apt", name="two", file="two.deb")]
    with pytest.raises(MissingPackages) as error:
        obtain([there, *absent], fakes.folder)
    message = str(error.value)
    assert message.startswith("2 package(s) missing")
    assert str(fakes.folder.resolve()) in message
    assert all(part in message for part in ("one-1.tgz", "1" * 64, "npm pack --silent one@1.0.0", "two.deb"))
    assert "npm is not installed" in message
    assert "apt-get is not installed" in message
    assert there.file not in message


def write_client(folder, script):
    client = folder / "npm"
    client.write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
    client.chmod(0o755)


def test_failing_client_is_quoted(tmp_path, monkeypatch):
    write_client(tmp_path, "print('asking'); print('no network', file=sys.stderr); sys.exit(7)")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_client(package(), tmp_path) == "npm failed with exit code 7: no network"


def test_client_that_writes_another_file(tmp_path, monkeypatch):
    write_client(tmp_path, "open('other.tgz', 'w').close()")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPackages, match=r"npm did not write thing-1\.0\.0\.tgz"):
        obtain([package()], tmp_path / "new")


def test_client_runs_in_the_packages_folder(tmp_path, monkeypatch):
    write_client(tmp_path, "open('seen', 'w').write(' '.join(sys.argv[1:]))")
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / "into"
    folder.mkdir()
    assert run_client(package(), folder) is None
    assert (folder / "seen").read_text() == "pack --silent thing@1.0.0"


def test_mistakes_in_a_package():
    with pytest.raises(ValueError, match=r"client must be one of.*'brew'"):
        package(client="brew")
    with pytest.raises(ValueError, match=r"bare file name, got '\.\./x\.tgz'"):
        package(file="../x.tgz")
