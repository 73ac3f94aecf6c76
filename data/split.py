"""What a set of samples is called, and which of them train and which validate."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

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


def fingerprint(source: Keyed) -> str:
    """16 hexadecimal digits that name the samples of a source, wherever it lies."""
    digest = hashlib.blake2b(digest_size=8)
    for line in source.identity():
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def split_by_key(source: Keyed, val_fraction: float) -> tuple[list[int], list[int]]:
    """Indices for training and for validation: by the source's own split, else by a hash of the key.

    Samples of the split "test" are in neither.
    """
    splits: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for index in range(len(source)):
        by_hash = "val" if is_validation(source.key(index), val_fraction) else "train"
        splits[source.split(index) or by_hash].append(index)
    return splits["train"], splits["val"]


def key_hash(key: str) -> int:
    """64 bits of BLAKE2b: the same key, the same number, in any set."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def is_validation(key: str, fraction: float) -> bool:
    """Whether a key is in the `fraction` held back for validation: by itself alone, so it stays when the set grows."""
    return key_hash(key) < fraction * 2**64


def spread(indices: Sequence[int] | Tensor, count: int) -> Tensor:
    """At most `count` of the indices, evenly spaced, in their order; int64."""
    indices = torch.as_tensor(indices, dtype=torch.int64)
    n = len(indices)
    return indices if n <= count else indices[torch.arange(count) * n // count]
