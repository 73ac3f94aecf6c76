import io
import tarfile
import zipfile

import pytest

from data.prepare.archives import debian_data, members

FILES = {"package/a.txt": b"first", "package/deep/b.txt": b"", "package/c.png": b"\x00\x01"}


@pytest.mark.parametrize("kind", ["npm", "wheel", "deb"])
def test_members_come_out_as_they_went_in(fakes, kind):
    package = getattr(fakes, kind)("thing", FILES)
    assert dict(members(fakes.folder / package.file, lambda name: True)) == FILES


@pytest.mark.parametrize("kind", ["npm", "wheel", "deb"])
def test_only_what_is_wanted_is_read(fakes, kind):
    package = getattr(fakes, kind)("thing", FILES)
    found = members(fakes.folder / package.file, lambda name: name.endswith(".png"))
    assert [name for name, _ in found] == ["package/c.png"]


def test_leading_dot_is_dropped(fakes):
    package = fakes.deb("thing", {"./usr/share/x": b"x"})
    assert [name for name, _ in members(fakes.folder / package.file, lambda name: True)] == ["usr/share/x"]


@pytest.mark.parametrize("kind", ["npm", "wheel", "deb"])
@pytest.mark.parametrize("name", ["../evil", "package/../../evil", "/etc/evil", "package\\..\\evil", "C:/evil"])
def test_names_that_leave_their_folder_are_refused(fakes, kind, name):
    package = getattr(fakes, kind)("thing", {"package/good": b"", name: b"evil"})
    with pytest.raises(ValueError, match=r"points outside.*refused"):
        list(members(fakes.folder / package.file, lambda name: True))


def test_links_and_folders_are_passed_over(tmp_path):
    path = tmp_path / "thing.tgz"
    with tarfile.open(path, "w:gz") as opened:
        for name, kind in [("folder", tarfile.DIRTYPE), ("soft", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            opened.addfile(info)
        info = tarfile.TarInfo("file")
        info.size = 2
        opened.addfile(info, io.BytesIO(b"ok"))
    assert list(members(path, lambda name: True)) == [("file", b"ok")]


def test_folders_of_a_wheel_are_passed_over(tmp_path):
    path = tmp_path / "thing.whl"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("folder/", "")
        opened.writestr("folder/file", "ok")
    assert list(members(path, lambda name: True)) == [("folder/file", b"ok")]


def test_unknown_kind(tmp_path):
    with pytest.raises(ValueError, match=r"expected .tgz.*found '.rar'"):
        members(tmp_path / "thing.rar", lambda name: True)


def test_not_a_debian_package(tmp_path):
    path = tmp_path / "thing.deb"
    path.write_bytes(b"PK\x03\x04 something")
    with pytest.raises(ValueError, match=r"begins with b'!<arch>"):
        debian_data(path)


def test_debian_package_without_data(tmp_path):
    path = tmp_path / "thing.deb"
    path.write_bytes(b"!<arch>\n")
    with pytest.raises(ValueError, match=r"no data\.tar"):
        debian_data(path)
