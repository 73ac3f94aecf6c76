"""What one shard holds: made by reading it once, kept in a small file, and read from there until the shard changes.

The index is a safetensors file. Of N samples in the order of the shard it holds

    strings  (bytes,)  uint8: the keys, one after the other, UTF-8
    bounds   (N + 1,)  uint64: key n is strings[bounds[n] : bounds[n + 1]]
    hashes   (N,)      uint64: `data.split.key_hash` of each key
    splits   (N,)      uint8: place in `data.split.SPLITS`, or UNSAID
    contents (N,)      uint64: 64 bits of BLAKE2b of the picture's bytes
    sizes    (N, 2)    uint32: width and height of the picture as its header has them, not turned as EXIF asks
    pictures (N, 2)    uint64: first byte and length of the picture in the shard
    captions (N, 2)    uint64: the same of what holds the caption
    forms    (N,)      uint8: `grouping.Form` of the caption

and in its header the shard's size and time of change, a digest of all samples and what was rejected. It is made anew
where the shard has another size or time. Once somebody has had all pictures decoded, it also holds what that found, so
that they need not be decoded for it again: in the header the rows whose pictures are broken, and

    looks    (N,)      uint64: `data.near_duplicates.picture_hash`, 0 where the picture is broken
"""

import hashlib
import json
import logging
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data.near_duplicates import LEAST_SIDE, picture_hash
from data.pictures import PictureError, decode_picture
from data.rejects import Reason, Reject
from data.shards.grouping import Sample, read_bytes, read_samples
from data.shards.tar import DamagedShard
from data.split import SPLITS, UNSAID, key_hash
from data.waiting import with_progress
from whole_files import write_file

log = logging.getLogger(__name__)
VERSION = "3"  # of the rules by which samples are found; another one makes every index anew
SUFFIX = ".index"
_SHOWN = 5  # damaged shards that a message names


class Stamp(NamedTuple):
    """What tells a shard from a changed one."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        return cls(status.st_size, status.st_mtime_ns)


class ShardIndex(NamedTuple):
    """The samples of a shard; see the file's description. `digest` names their keys, pictures, captions and splits."""

    stamp: Stamp
    strings: np.ndarray
    bounds: np.ndarray
    hashes: np.ndarray
    splits: np.ndarray
    contents: np.ndarray
    sizes: np.ndarray
    pictures: np.ndarray
    captions: np.ndarray
    forms: np.ndarray
    digest: str
    rejects: tuple[Reject, ...]
    broken: tuple[tuple[int, str], ...] | None = None  # rows that cannot be decoded, and why; None: not known
    looks: np.ndarray | None = None  # None where `broken` is

    def training_rows(self) -> np.ndarray:
        """(R,) int64, the rows whose split is train or not said."""
        return np.flatnonzero(np.isin(self.splits, (SPLITS.index("train"), UNSAID)))

    def key(self, row: int) -> str:
        return self.strings[int(self.bounds[row]) : int(self.bounds[row + 1])].tobytes().decode()


_ARRAYS = ("strings", "bounds", "hashes", "splits", "contents", "sizes", "pictures", "captions", "forms")
_LOOKS = "looks"


def open_indexes(shards: Sequence[Path], folder: Path | None, *, decode: bool) -> list[ShardIndex]:
    """The index of each shard, read or made; those made are kept in `folder`, or beside the shards where it is None.

    `decode` has every picture decoded, so that `broken` and `looks` are known. Raises ValueError naming all shards that
    are damaged.
    """
    # Processes that start at the same time, one a device, find what the others have made, each going its own way round.
    # The drawing is the system's: the global generator is seeded alike in all of them, and the run's own.
    places = random.SystemRandom().sample(range(len(shards)), len(shards))
    with ThreadPoolExecutor() as pool:  # reading and hashing release the interpreter's lock
        found = pool.map(lambda place: _index_or_damage(shards[place], folder, decode), places)
        told = with_progress(found, len(shards), shards[0].parent, done="indexed", things="shards")
        indexes = [index for _, index in sorted(zip(places, told, strict=True), key=itemgetter(0))]
    damaged = [
        f"{shard} ({index})" for shard, index in zip(shards, indexes, strict=True) if isinstance(index, DamagedShard)
    ]
    if damaged:
        more = f", and {len(damaged) - _SHOWN:,} more" if len(damaged) > _SHOWN else ""
        raise ValueError(
            f"{len(damaged):,} of {len(shards):,} shards damaged; get them anew or take them out: "
            f"{', '.join(damaged[:_SHOWN])}{more}"
        )
    _warn_if_not_kept(shards, folder)
    return indexes


def index_file(shard: Path, folder: Path | None) -> Path:
    """Where the index of a shard is kept. In a folder, shards of one name from several places have several files."""
    if folder is None:
        return shard.with_name(shard.name + SUFFIX)
    place = hashlib.blake2b(os.fsencode(shard.resolve().parent), digest_size=6).hexdigest()
    return folder / f"{shard.name}.{place}{SUFFIX}"


def _index_or_damage(shard: Path, folder: Path | None, decode: bool) -> ShardIndex | DamagedShard:
    path = index_file(shard, folder)
    kept = _load(path, Stamp.of(shard.stat()))
    if kept is not None and (kept.broken is not None or not decode):
        return kept
    try:
        index = kept or make_index(shard)
        if decode:
            index = _with_looks(index, shard)
    except DamagedShard as error:
        return error
    _keep(index, path)
    return index


def make_index(shard: Path) -> ShardIndex:
    """Read all of a shard. Raises DamagedShard where it is no whole tar, or changes meanwhile."""
    with shard.open("rb") as file:
        return index_of(file, shard.name)


def _with_looks(index: ShardIndex, shard: Path) -> ShardIndex:
    broken, looks = [], np.zeros(len(index.pictures), np.uint64)
    with shard.open("rb") as file:
        for row, (offset, size) in enumerate(index.pictures.tolist()):
            try:
                looks[row] = picture_hash(decode_picture(read_bytes(file, offset, size), LEAST_SIDE))
            except PictureError as error:
                broken.append((row, str(error)))
    return index._replace(broken=tuple(broken), looks=looks)


def index_of(file: BinaryIO, name: str) -> ShardIndex:
    """As `make_index`, of an open file; `name` stands before what is rejected."""
    stamp = Stamp.of(os.fstat(file.fileno()))
    samples, rejects = read_samples(file, name)
    if Stamp.of(os.fstat(file.fileno())) != stamp:
        raise DamagedShard("changed while it was read: something still writes it")
    return _index(stamp, samples, tuple(rejects))


def _index(stamp: Stamp, samples: Sequence[Sample], rejects: tuple[Reject, ...]) -> ShardIndex:
    keys = [sample.key.encode() for sample in samples]
    digest = hashlib.blake2b(digest_size=16)
    for sample in samples:
        digest.update(json.dumps([sample.key, sample.texts, sample.split, sample.digest.hex()]).encode() + b"\n")
    return ShardIndex(
        stamp=stamp,
        strings=np.frombuffer(b"".join(keys), np.uint8),
        bounds=np.cumsum([0, *map(len, keys)], dtype=np.uint64),
        hashes=np.array([key_hash(sample.key) for sample in samples], np.uint64),
        splits=np.array(
            [UNSAID if sample.split is None else SPLITS.index(sample.split) for sample in samples], np.uint8
        ),
        contents=np.frombuffer(b"".join(sample.digest[:8] for sample in samples), "<u8"),
        sizes=np.array([sample.size for sample in samples], np.uint32).reshape(-1, 2),
        pictures=np.array([sample.picture for sample in samples], np.uint64).reshape(-1, 2),
        captions=np.array([sample.caption for sample in samples], np.uint64).reshape(-1, 2),
        forms=np.array([sample.form for sample in samples], np.uint8),
        digest=digest.hexdigest(),
        rejects=rejects,
    )


def _keep(index: ShardIndex, path: Path) -> None:
    """Write the file beside and rename it; where that cannot be, the index lives in memory alone."""
    arrays = {name: getattr(index, name) for name in _ARRAYS}
    if index.looks is not None:
        arrays[_LOOKS] = index.looks
    header = {
        "version": VERSION,
        "stamp": index.stamp,
        "digest": index.digest,
        "rejects": index.rejects,
        "broken": index.broken,
    }
    header["sum"] = _sum(header, arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, save(arrays, metadata={"index": json.dumps(header)}))
    except OSError as error:
        log.debug("%s is not kept: %s", path, error)


def _load(path: Path, stamp: Stamp) -> ShardIndex | None:
    """The index that is kept, or None where there is none, or it is damaged, of other rules or of another shard."""
    if not path.is_file():  # a named pipe would block for ever
        return None
    try:
        with safe_open(path, "np") as file:
            header = json.loads((file.metadata() or {})["index"])
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
            if header["broken"] is not None:
                arrays[_LOOKS] = file.get_tensor(_LOOKS)
        said = header.pop("sum")
        if header["version"] != VERSION or Stamp(*header["stamp"]) != stamp or said != _sum(header, arrays):
            return None
        rejects = tuple(Reject(name, Reason(reason), detail) for name, reason, detail in header["rejects"])
        broken = header["broken"]
        return ShardIndex(
            stamp=stamp,
            digest=header["digest"],
            rejects=rejects,
            broken=None if broken is None else tuple((row, detail) for row, detail in broken),
            **arrays,
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _sum(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """Of everything that the file holds but the sum itself."""
    digest = hashlib.blake2b(json.dumps(header).encode(), digest_size=16)
    for array in arrays.values():
        digest.update(f"{array.dtype.str} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _warn_if_not_kept(shards: Sequence[Path], folder: Path | None) -> None:
    files = [index_file(shard, folder) for shard in shards]
    there: set[Path] = set()  # of thousands, one listing of a folder in the place of a look at each
    for parent in {file.parent for file in files}:
        with suppress(OSError), os.scandir(parent) as entries:
            there.update(parent / entry.name for entry in entries if entry.is_file())
    missing = sum(file not in there for file in files)
    if missing:
        log.warning(
            "%s: the indexes of %s shards cannot be kept there, so that each start reads the shards anew: "
            "data.shards.index names a folder for them",
            folder or shards[0].parent,
            f"{missing:,}",
        )
