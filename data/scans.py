"""What decoding the pictures of a folder has found, kept so that a later start need not decode them again.

Each process of a run on several devices opens the folder, and so does each start after a preemption. The record is a
safetensors file beside the report of rejects (RUN/rejects-scan.safetensors), for the folder is the user's. Of N whole
pictures it holds, in any order,

    files    (N, 16) uint8: BLAKE2b of the picture's absolute path
    stamps   (N, 3)  int64: its file's size in bytes, and times of change of its content and of its entry in the file
                     system, in ns
    digests  (N, 16) uint8: BLAKE2b of its file
    sizes    (N, 2)  uint32: width and height, upright
    looked   (N,)    uint8: 1 where the next is known
    looks    (N,)    uint64: `data.near_duplicates.picture_hash`

A file with another stamp is decoded anew, and so is all that was rejected as broken. A file that is changed without a
change of size and of both times is not noticed: where the system's clock for files is coarse (2 s on FAT, 1 s on some
network file systems), one that is overwritten at the same size within such a step of its scan. A record that is damaged
or of other rules is not used.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from whole_files import write_file

log = logging.getLogger(__name__)
VERSION = "1"  # of the rules by which pictures are found whole; another one has all decoded anew
DIGEST_BYTES = 16
_ARRAYS = ("files", "stamps", "digests", "sizes", "looked", "looks")


class Stamp(NamedTuple):
    """What tells a file from a changed one."""

    size: int
    mtime_ns: int
    ctime_ns: int  # which programs do not set: what is written over and given its old time has another one


class Scanned(NamedTuple):
    """What decoding a picture has found."""

    stamp: Stamp | None  # None where the file changed meanwhile or has gone
    digest: bytes  # of its file
    size: tuple[int, int]  # upright
    look: int | None = None  # None where it is not known


def stamp_of(path: Path) -> Stamp | None:
    """None where there is no such file, or the system does not say, or says a time that 64 bits do not hold (after the
    year 2262)."""
    try:
        status = path.stat()
    except OSError:
        return None
    stamp = Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return stamp if max(map(abs, stamp)) < 2**63 else None


class Scans:
    """The record of a folder; empty where there is none.

    Args:
        path: the record's file; None keeps nothing.
        folder: of the pictures.
    """

    def __init__(self, path: Path | None, folder: Path) -> None:
        self._path, self._folder = path, folder.resolve()
        self._found = {} if path is None else _load(path)
        self._new = False

    def get(self, key: str, stamp: Stamp | None) -> Scanned | None:
        """What is known of a picture whose file has this stamp now."""
        found = self._found.get(self._file(key))
        return found if found is not None and found.stamp == stamp else None

    def add(self, key: str, scanned: Scanned) -> None:
        """Notes what was found; nothing where the file changed meanwhile."""
        if self._path is not None and scanned.stamp is not None and self._found.get(self._file(key)) != scanned:
            self._found[self._file(key)] = scanned
            self._new = True

    def keep(self, keys: Iterable[str] | None = None) -> None:
        """Writes the record if anything in it is new; of these pictures, or of all. Where it cannot, it says so."""
        if not self._new:
            return
        if keys is not None:
            files = set(map(self._file, keys))
            self._found = {file: scanned for file, scanned in self._found.items() if file in files}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, _to_bytes(self._found))
            self._new = False
        except OSError as error:
            log.warning("%s cannot be kept, so that the next start decodes all pictures again: %s", self._path, error)

    def _file(self, key: str) -> bytes:
        return hashlib.blake2b(os.fsencode(self._folder / key), digest_size=DIGEST_BYTES).digest()


def _to_bytes(found: dict[bytes, Scanned]) -> bytes:
    looks = [scanned.look for scanned in found.values()]
    arrays = {
        "files": np.frombuffer(b"".join(found), np.uint8).reshape(-1, DIGEST_BYTES),
        "stamps": np.array([scanned.stamp for scanned in found.values()], np.int64).reshape(-1, 3),
        "digests": np.frombuffer(b"".join(each.digest for each in found.values()), np.uint8).reshape(-1, DIGEST_BYTES),
        "sizes": np.array([scanned.size for scanned in found.values()], np.uint32).reshape(-1, 2),
        "looked": np.array([look is not None for look in looks], np.uint8),
        "looks": np.array([look or 0 for look in looks], np.uint64),
    }
    return save(arrays, {"scans": json.dumps({"version": VERSION, "sum": _sum(arrays)})})


def _load(path: Path) -> dict[bytes, Scanned]:
    if not path.is_file():  # a named pipe would block for ever
        return {}
    try:
        with safe_open(path, "np") as file:
            header = json.loads((file.metadata() or {})["scans"])
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
        if header["version"] != VERSION or header["sum"] != _sum(arrays):
            return {}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    rows = zip(*(arrays[name].tolist() for name in ("stamps", "sizes", "looked", "looks")), strict=True)
    files, digests = (arrays[name].tobytes() for name in ("files", "digests"))
    found = {}
    for row, (stamp, size, looked, look) in enumerate(rows):
        part = slice(DIGEST_BYTES * row, DIGEST_BYTES * (row + 1))
        found[files[part]] = Scanned(Stamp(*stamp), digests[part], tuple(size), look if looked else None)
    return found


def _sum(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
