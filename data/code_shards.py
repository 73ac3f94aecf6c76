"""A shard of codes: one file of encoded pictures with their captions, read through a memory map.

A shard is a safetensors file, so that any tool can look into it. Of N pictures with K crops each it holds

    codes    (N, K, h, w) uint16: two bytes a token
    strings  (bytes,)     uint8: each picture's key, then its captions, one after the other, UTF-8
    bounds   (S + 1,)     uint64: string s is strings[bounds[s] : bounds[s + 1]]
    firsts   (N + 1,)     uint64: the strings of picture n are firsts[n] .. firsts[n + 1] - 1
    hashes   (N,)         uint64: `data.split.key_hash` of each key
    splits   (N,)         uint8: place in `data.split.SPLITS`, or UNSAID
    sums     (N, K + 1)   uint32: CRC-32 of each crop's codes, and of the picture's strings, bounds and firsts

and in its header what made it and digests. Nothing is read into Python objects but what is asked for, so a set of
millions opens at once; and whatever is read is checked: hashes, splits and the header before training, codes and
strings by their sums each time, which takes two microseconds. Shards of version 1 had no sums, and are read without
this.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from data.split import SPLITS, UNSAID, key_hash
from data.text import is_visible

CODE = np.dtype("<u2")
MAX_CODEBOOK_SIZE = 2**16  # what uint16 holds
VERSION = 2
_DTYPES = {"codes": CODE, "strings": "<u1", "bounds": "<u8", "firsts": "<u8", "hashes": "<u8", "splits": "<u1"}
_DTYPES_OF = {1: _DTYPES, VERSION: _DTYPES | {"sums": "<u4"}}
_DTYPE_NAMES = {"U8": "<u1", "U16": CODE, "U32": "<u4", "U64": "<u8"}  # as safetensors says them
_AXES = {"codes": 4, "sums": 2}  # the others have one
_TABLES = ("hashes", "splits")  # which are read whole when a set is opened
_REMEDY = "Remove the file: the encode.py command that made the folder then makes this one anew"
_HEADER = "shard"  # one entry of safetensors' metadata: of several, the order in the file would be by chance


class Row(NamedTuple):
    """What a picture brings along, as `data.source.Source` has it."""

    key: str
    captions: tuple[str, ...]
    split: str | None


class Header(NamedTuple):
    """What a shard says of itself.

    Attributes:
        recipe: digest of what the whole set was made by (data/code_manifest.py).
        number: its place in the set.
        bare: keys of pictures without a caption, or with one of which nothing is seen: how many, and the first.
        digest: of all it holds, this header included.
        version: of the form of the file.
        tables: digest of hashes, splits and this header; none in version 1.
    """

    recipe: str
    number: int
    bare: tuple[int, str | None]
    digest: str
    version: int = 1
    tables: str | None = None


def pack(recipe: str, number: int, rows: Sequence[Row], codes: np.ndarray) -> bytes:
    """The file of a shard; equal input gives equal bytes.

    Args:
        recipe, number: as in `Header`.
        rows: N of them.
        codes: (N, K, h, w) of dtype CODE.

    Raises ValueError where lengths differ or a split is unknown.
    """
    if codes.ndim != 4 or codes.dtype != CODE or len(codes) != len(rows):
        raise ValueError(f"got codes {codes.dtype} {codes.shape} for {len(rows)} rows, expected {CODE} (rows, K, h, w)")
    strings = [text.encode("utf-8", "surrogatepass") for row in rows for text in (row.key, *row.captions)]
    arrays = {
        "codes": codes,
        "strings": np.frombuffer(b"".join(strings), np.uint8),
        "bounds": np.cumsum([0, *map(len, strings)], dtype=np.uint64),
        "firsts": np.cumsum([0, *(1 + len(row.captions) for row in rows)], dtype=np.uint64),
        "hashes": np.array([key_hash(row.key) for row in rows], np.uint64),
        "splits": np.array([_place(row) for row in rows], np.uint8),
    }
    arrays = {name: np.ascontiguousarray(array, _DTYPES[name]) for name, array in arrays.items()}
    bare = [row.key for row in rows if not row.captions or not all(map(is_visible, row.captions))]
    said = {"recipe": recipe, "number": number, "bare": (len(bare), bare[0] if bare else None)}
    return sealed(said | {"version": VERSION}, arrays | {"sums": sums_of(arrays)})


def sums_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The sums (N, K + 1) of a shard's other arrays."""
    texts = _Texts(arrays)
    crops = [[zlib.crc32(crop) for crop in picture] for picture in arrays["codes"]]
    sums = [[*of, texts.sum(row)] for row, of in enumerate(crops)]
    return np.array(sums, np.uint32).reshape(len(crops), -1)


def sealed(said: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The file of these arrays, with what it says of itself and the digests."""
    said = dict(said) | {"tables": _digest(said, {name: arrays[name] for name in _TABLES})}
    said |= {"digest": _digest(said, arrays)}
    return save(dict(arrays), {_HEADER: json.dumps(said)})


def sound_tables(path: Path, shape: tuple[int, ...], digest: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Hashes and splits of a shard, in a third of the time that mapping it takes, and without a map that stays.

    None where it is not of VERSION, or anything in its header or of these is not as it was written, or it is not the
    shard of this digest with codes of this shape: opening it says what is wrong.
    """
    try:
        with safe_open(path, "np") as file:
            said = json.loads(file.metadata()[_HEADER])
            header = Header(**said)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            dtypes = {name: _DTYPE_NAMES[part.get_dtype()] for name, part in slices.items()}
            tables = {name: file.get_tensor(name) for name in _TABLES}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            ends = {name: int(slices[name][shapes[name][0] - 1 :][0]) for name in ("bounds", "firsts")}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    said = {name: value for name, value in said.items() if name not in ("tables", "digest")}
    sound = (
        dtypes == _DTYPES_OF[VERSION]
        and (header.version, header.digest, shapes["codes"]) == (VERSION, digest, shape)
        and header.tables == _digest(said, tables)
        and shapes["hashes"] == shapes["splits"] == shape[:1]
        and shapes["strings"] == (ends["bounds"],)
        and shapes["bounds"] == (ends["firsts"] + 1,)
    )
    return (tables["hashes"], tables["splits"]) if sound else None


def _place(row: Row) -> int:
    if row.split is None:
        return UNSAID
    if row.split not in SPLITS:
        raise ValueError(f"split of {row.key!r} is {row.split!r}, expected {', '.join(SPLITS)} or None")
    return SPLITS.index(row.split)


def _digest(said: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16)
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        digest.update(arrays[name].reshape(-1).view(np.uint8))
    return digest.hexdigest()


class CodeShard:
    """Reads a shard. What is mapped here stays on the disk until it is asked for.

    Raises ValueError naming the file where it is missing, cut short, or its header, hashes, splits or the shapes of
    what it holds are wrong. Other damage is found where it is read, and by `verify`.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        self.path = path
        try:
            with safe_open(path, "pt") as file:  # its tensors are views of a memory map; as "np" they would be copies
                self._said = json.loads(file.metadata()[_HEADER])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            self.header = Header(**self._said | {"bare": tuple(self._said["bare"])})
            if self.header.version not in _DTYPES_OF:
                raise ValueError(
                    f"it is of version {self.header.version}, expected {' or '.join(map(str, _DTYPES_OF))}"
                )
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged or no shard of codes: {error}") from error
        self._arrays = _checked(tensors, self.header.version, path)
        self.codes = self._arrays["codes"]
        self.hashes, self.splits = self._arrays["hashes"], self._arrays["splits"]
        self._sums = memoryview(self._arrays["sums"]) if "sums" in self._arrays else None
        self._texts = _Texts(self._arrays)
        self._last: tuple[int, tuple[str, ...]] = (-1, ())  # a picture and its strings: its key is asked for first
        if self._sums is not None:
            tables = {name: self._arrays[name] for name in _TABLES}
            self._compare("hashes and splits", "tables", _digest(self._without("tables", "digest"), tables))

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def captions_in_all(self) -> int:
        return len(self._arrays["bounds"]) - 1 - len(self)

    def key(self, row: int) -> str:
        return self._strings(row)[0]

    def captions(self, row: int) -> tuple[str, ...]:
        return self._strings(row)[1:]

    def crop(self, row: int, crop: int) -> np.ndarray:
        """Codes of one crop of one picture, (h, w) of dtype CODE. Raises ValueError where they are damaged."""
        codes = self.codes[row, crop]
        if self._sums is not None and zlib.crc32(codes) != self._sums[row, crop]:
            raise ValueError(f"{self.path} is damaged at picture {row}: the checksum of its codes is wrong. {_REMEDY}")
        return codes

    def split(self, row: int) -> str | None:
        place = self.splits[row]
        if place != UNSAID and place >= len(SPLITS):
            raise ValueError(f"{self.path} is damaged: the split of picture {row} is {place}, of {len(SPLITS)}")
        return None if place == UNSAID else SPLITS[place]

    def _strings(self, row: int) -> tuple[str, ...]:
        """The picture's key and its captions. Raises ValueError where they are not what was written."""
        last, strings = self._last
        if row == last:
            return strings
        try:
            if self._sums is not None and self._texts.sum(row) != self._sums[row, -1]:
                raise ValueError("the checksum of its key and captions is wrong")
            strings = self._texts.of(row)
        except (ValueError, IndexError) as error:
            raise ValueError(f"{self.path} is damaged at picture {row}: {error}. {_REMEDY}") from error
        self._last = row, strings
        return strings

    def verify(self) -> None:
        """Reads all of it. Raises ValueError where it is not what was written."""
        self._compare("content", "digest", _digest(self._without("digest"), self._arrays))

    def _without(self, *digests: str) -> dict[str, Any]:
        return {name: value for name, value in self._said.items() if name not in digests}

    def _compare(self, what: str, name: str, found: str) -> None:
        if found != (said := self._said.get(name)):
            raise ValueError(f"{self.path} is damaged: the checksum of its {what} is {found}, expected {said}")


class _Texts:
    """The strings of a shard's pictures, whatever its bounds say of them."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        # Indexing a memoryview gives an int in a third of the time that numpy takes.
        self._strings, self._bounds, self._firsts = (
            memoryview(arrays[name]) for name in ("strings", "bounds", "firsts")
        )

    def sum(self, row: int) -> int:
        """CRC-32 of all that decides the strings of a picture."""
        firsts = self._firsts[row : row + 2]
        bounds = self._bounds[firsts[0] : firsts[1] + 1]
        begun = zlib.crc32(bounds, zlib.crc32(firsts))
        return zlib.crc32(self._strings[bounds[0] : bounds[-1]], begun) if len(bounds) else begun

    def of(self, row: int) -> tuple[str, ...]:
        """Raises ValueError or IndexError where they are none."""
        strings = tuple(map(self._string, range(self._firsts[row], self._firsts[row + 1])))
        if not strings:
            raise ValueError("it has no key")
        return strings

    def _string(self, number: int) -> str:
        start, end = self._bounds[number], self._bounds[number + 1]
        if not start <= end <= len(self._strings):
            raise IndexError(f"a string runs from {start} to {end} of {len(self._strings)} bytes")
        return bytes(self._strings[start:end]).decode("utf-8", "surrogatepass")


def _checked(tensors: Mapping[str, Tensor], version: int, path: Path) -> dict[str, np.ndarray]:
    """The tensors as arrays that cannot be written to."""
    problem = next(_problems(tensors, _DTYPES_OF[version]), None)
    if problem is not None:
        raise ValueError(f"{path} is damaged or no shard of codes: {problem}")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _problems(tensors: Mapping[str, Tensor], dtypes: Mapping[str, Any]) -> Iterator[str]:
    if tensors.keys() != dtypes.keys():
        yield f"it holds {', '.join(sorted(tensors))}, expected {', '.join(sorted(dtypes))}"
        return
    for name, tensor in tensors.items():
        dtype, axes = np.dtype(dtypes[name]), _AXES.get(name, 1)
        if str(tensor.dtype) != f"torch.{dtype.name}" or tensor.ndim != axes:
            yield f"{name} is {tensor.dtype} of {tensor.ndim} axes, expected {dtype.name} of {axes}"
            return
    rows = len(tensors["codes"])
    for name, length in (("firsts", rows + 1), ("hashes", rows), ("splits", rows)):
        if len(tensors[name]) != length:
            yield f"{name} has {len(tensors[name])} entries for {rows} pictures, expected {length}"
    expected = (rows, tensors["codes"].shape[1] + 1)
    if "sums" in tensors and tensors["sums"].shape != expected:
        yield f"sums is of shape {tuple(tensors['sums'].shape)}, expected {expected}"
    if len(tensors["bounds"]) == 0 or tensors["bounds"][-1].item() != len(tensors["strings"]):
        yield "its strings have another length than its bounds say"
    elif tensors["firsts"][-1].item() != len(tensors["bounds"]) - 1:
        yield "its pictures have another number of strings than its bounds say"
