"""A shard of codes: one file of encoded pictures with their captions, read through a memory map.

A shard is a safetensors file, so that any tool can look into it. Of N pictures with K crops each it holds

    codes    (N, K, h, w) uint16: two bytes a token
    strings  (bytes,)     uint8: each picture's key, then its captions, one after the other, UTF-8
    bounds   (S + 1,)     uint64: string s is strings[bounds[s] : bounds[s + 1]]
    firsts   (N + 1,)     uint64: the strings of picture n are firsts[n] .. firsts[n + 1] - 1
    hashes   (N,)         uint64: `data.split.key_hash` of each key
    splits   (N,)         uint8: place in `data.split.SPLITS`, or UNSAID

and in its header what made it and a digest of all this. Nothing is read into Python objects but what is asked for, so a
set of millions opens at once.
"""

import hashlib
import json
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
_DTYPES = {"codes": CODE, "strings": "<u1", "bounds": "<u8", "firsts": "<u8", "hashes": "<u8", "splits": "<u1"}
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
    """

    recipe: str
    number: int
    bare: tuple[int, str | None]
    digest: str


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
    header = Header(**said, digest=_digest(said, arrays))
    return save(arrays, {_HEADER: json.dumps(header._asdict())})


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

    Raises ValueError naming the file where it is missing, cut short, or its header or the shapes of what it holds are
    wrong. Damage inside is found by `verify`.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        self.path = path
        try:
            with safe_open(path, "pt") as file:  # its tensors are views of a memory map; as "np" they would be copies
                said = json.loads(file.metadata()[_HEADER])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            self.header = Header(**said | {"bare": tuple(said["bare"])})
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged or no shard of codes: {error}") from error
        self._arrays = _checked(tensors, path)
        self.codes = self._arrays["codes"]
        self.hashes, self.splits = self._arrays["hashes"], self._arrays["splits"]
        # Indexing a memoryview gives an int in a third of the time that numpy takes.
        self._strings, self._bounds, self._firsts = (
            memoryview(self._arrays[name]) for name in ("strings", "bounds", "firsts")
        )

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def captions_in_all(self) -> int:
        return len(self._bounds) - 1 - len(self)

    def key(self, row: int) -> str:
        return self._string(self._firsts[row])

    def captions(self, row: int) -> tuple[str, ...]:
        return tuple(map(self._string, range(self._firsts[row] + 1, self._firsts[row + 1])))

    def split(self, row: int) -> str | None:
        place = self.splits[row]
        if place != UNSAID and place >= len(SPLITS):
            raise ValueError(f"{self.path} is damaged: the split of picture {row} is {place}, of {len(SPLITS)}")
        return None if place == UNSAID else SPLITS[place]

    def _string(self, number: int) -> str:
        try:
            start, end = self._bounds[number], self._bounds[number + 1]
            if not start <= end <= len(self._strings):
                raise IndexError(f"it runs from {start} to {end} of {len(self._strings)} bytes")
            return bytes(self._strings[start:end]).decode("utf-8", "surrogatepass")
        except (UnicodeDecodeError, IndexError) as error:
            raise ValueError(f"{self.path} is damaged at string {number}: {error}") from error

    def verify(self) -> None:
        """Reads all of it. Raises ValueError where it is not what was written."""
        said = {name: value for name, value in self.header._asdict().items() if name != "digest"}
        found = _digest(said, self._arrays)
        if found != self.header.digest:
            raise ValueError(f"{self.path} is damaged: its checksum is {found}, expected {self.header.digest}")


def _checked(tensors: Mapping[str, Tensor], path: Path) -> dict[str, np.ndarray]:
    """The tensors as arrays that cannot be written to."""
    problem = next(_problems(tensors), None)
    if problem is not None:
        raise ValueError(f"{path} is damaged or no shard of codes: {problem}")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _problems(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    if tensors.keys() != _DTYPES.keys():
        yield f"it holds {', '.join(sorted(tensors))}, expected {', '.join(sorted(_DTYPES))}"
        return
    for name, tensor in tensors.items():
        dtype, axes = np.dtype(_DTYPES[name]), 4 if name == "codes" else 1
        if str(tensor.dtype) != f"torch.{dtype.name}" or tensor.ndim != axes:
            yield f"{name} is {tensor.dtype} of {tensor.ndim} axes, expected {dtype.name} of {axes}"
            return
    rows = len(tensors["codes"])
    for name, length in (("firsts", rows + 1), ("hashes", rows), ("splits", rows)):
        if len(tensors[name]) != length:
            yield f"{name} has {len(tensors[name])} entries for {rows} pictures, expected {length}"
    if len(tensors["bounds"]) == 0 or tensors["bounds"][-1].item() != len(tensors["strings"]):
        yield "its strings have another length than its bounds say"
    elif tensors["firsts"][-1].item() != len(tensors["bounds"]) - 1:
        yield "its pictures have another number of strings than its bounds say"
