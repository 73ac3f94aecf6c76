"""What a set of samples is called, and which of them train and which validate."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "val", "test")
UNSAID = 255  # in the place of a split's number where the source does not say


class Keyed(Protocol):
    """What pictures (`data.source.Source`) and codes (`data.codes.CodesSource`) have in common."""

    def __len__(self) -> int: ...
    def key(self, index: int) -> str: ...
    def captions(self, index: int) -> tuple[str, ...]: ...
    def split(self, index: int) -> str | None: ...

    def identity(self) -> Iterable[str]:
        """Lines that are the same for the same samples in the same order, and for no others."""
        ...


class SplitTable(NamedTuple):
    """Of all samples of a source, what decides their split."""

    hashes: np.ndarray  # (N,) uint64, `key_hash` of each key
    splits: np.ndarray  # (N,) uint8, place in SPLITS or UNSAID


@runtime_checkable
class Tabled(Protocol):
    """A source that knows its `SplitTable` without a look at every key."""

    def split_table(self) -> SplitTable: ...


def fingerprint(source: Keyed) -> str:
    """16 hexadecimal digits that name the samples of a source, wherever it lies."""
    digest = hashlib.blake2b(digest_size=8)
    for line in source.identity():
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def split_by_key(source: Keyed, val_fraction: float) -> tuple[Tensor, Tensor]:
    """Indices (int64) for training and for validation: by the source's own split, else by a hash of the key.

    Samples of the split "test" are in neither.
    """
    hashes, splits = table_of(source)
    least = math.ceil(val_fraction * 2**64)  # of the hashes that train
    held_back = hashes < np.uint64(least) if least < 2**64 else np.full(len(hashes), True)
    split = np.where(splits != UNSAID, splits, held_back)  # False is 0 is "train", True is 1 is "val"
    train, val = (torch.from_numpy(np.flatnonzero(split == place)) for place in (0, 1))
    return train, val


def table_of(source: Keyed) -> SplitTable:
    """The source's own table, or one from a look at every key."""
    return source.split_table() if isinstance(source, Tabled) else _table(source)


def _table(source: Keyed) -> SplitTable:
    splits = [source.split(index) for index in range(len(source))]
    places = [UNSAID if split is None else SPLITS.index(split) for split in splits]
    hashes = [key_hash(source.key(index)) for index in range(len(source))]
    return SplitTable(np.array(hashes, np.uint64), np.array(places, np.uint8))


def key_hash(key: str) -> int:
    """64 bits of BLAKE2b, of the key by itself alone: a key stays on its side of the split when the set grows."""
    return encoded_key_hash(key.encode("utf-8", "surrogatepass"))


def encoded_key_hash(key: bytes) -> int:
    """`key_hash` of a key that is encoded already."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def spread(indices: Sequence[int] | Tensor, count: int) -> Tensor:
    """At most `count` of the indices, evenly spaced, in their order; int64."""
    indices = torch.as_tensor(indices, dtype=torch.int64)
    n = len(indices)
    return indices if n <= count else indices[torch.arange(count) * n // count]


def in_places(indices: Tensor, count: int, places: int) -> Tensor:
    """At most `count` of the indices, in rows of equal length at evenly spaced places, in their order; int64."""
    n = len(indices)
    if n <= count:
        return indices
    row = count // places
    return indices[(torch.arange(places)[:, None] * n // places + torch.arange(row)).flatten()]
