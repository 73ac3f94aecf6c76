"""Pictures that look the same: 64 bits of what a picture looks like, and those that differ in few of them.

The bits are those of the difference hash, half of them across and half of them down: the picture is made few grey
pixels, and each bit says whether one is darker than the next. Where neighbours are as dark as each other, as in flags,
drawings and plain pages, that would say nothing of the picture, and noise would decide; there the bit says whether a
colour reaches a threshold, another one for each bit. Scaling, recompression and small changes of colour flip few of
them; mirrored or cropped pictures have others.

Hashes that differ in at most d of 64 bits agree in one of d + 1 parts of them, so only those that share a part are
compared (multi-index hashing, https://arxiv.org/abs/1307.2982). Where many share one, white margins for example, the
same is done to the bits that are left. What is kept depends on what was kept before it, so the hashes are halved again
and again: a half is settled by itself, then what is kept of it is compared with the other half, all at once.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.rejects import Reject

MOST_BITS = 7  # that may differ: with more, parts are so short that everything shares one
LEAST_SIDE = 64  # pixels that a hash needs of a side
_STEPS, _LINES = 8, 4  # bits along, and lines of them
_FLAT = 3  # greys by which neighbours differ at least: less is noise
_LUMA = np.array([0.299, 0.587, 0.114])  # grey of red, green and blue (ITU-R BT.601)
_SETTLED_ONE_BY_ONE = 256  # hashes
_COMPARED = 1 << 16  # pairs that are compared as they are; more are parted further
_AT_ONCE = 1 << 20  # pairs in memory
_THRESHOLDS = np.arange(64) * 37 % 64 * 4 + 2  # 2, 6, ..., 254, so mixed that every few in a row spread over all


class Hashes(NamedTuple):
    """What the pictures of a source look like.

    Attributes:
        bits: (N,) uint64, `picture_hash` of each; of a broken one, anything.
        broken: those that turned out broken, by their row.
    """

    bits: np.ndarray
    broken: dict[int, Reject]


def picture_hash(image: Image.Image) -> int:
    """64 bits of a picture of mode RGB."""
    across = np.asarray(image.resize((_STEPS + 1, _LINES), Image.Resampling.BOX))  # (4, 9, 3)
    down = np.asarray(image.resize((_LINES, _STEPS + 1), Image.Resampling.BOX))  # (9, 4, 3)
    first = np.concatenate([across[:, :-1].reshape(-1, 3), down[:-1].reshape(-1, 3)])  # (64, 3)
    second = np.concatenate([across[:, 1:].reshape(-1, 3), down[1:].reshape(-1, 3)])
    rise = second @ _LUMA - first @ _LUMA
    channel = first[np.arange(64), np.arange(64) % 3]  # red, green, blue, red, ...
    bits = np.where(np.abs(rise) >= _FLAT, rise > 0, channel > _THRESHOLDS)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_duplicates(hashes: np.ndarray, most_bits: int) -> np.ndarray:
    """Of each hash, the place of the first one before it that it repeats, or -1.

    One after the other is kept unless it differs in at most `most_bits` bits from one that was kept: where each of a
    row resembles the next one only, every other one stays.

    Args:
        hashes: (N,) uint64.
        most_bits: 0 to MOST_BITS.

    Returns (N,) int64.
    """
    if not 0 <= most_bits <= MOST_BITS:
        raise ValueError(f"most_bits is {most_bits}, expected 0 to {MOST_BITS}")
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    places = np.sort(first)  # of the distinct ones, in the order in which they come
    kept_by = np.full(len(places), -1)
    _settle(hashes[places], kept_by, 0, len(places), most_bits)
    own = np.argsort(np.argsort(first))[which]  # the distinct one that each is
    before = np.where(kept_by[own] < 0, places[own], places[kept_by[own]])
    return np.where(before == np.arange(len(hashes)), -1, before)


def _settle(hashes: np.ndarray, repeated: np.ndarray, start: int, end: int, most_bits: int) -> None:
    """Does what `near_duplicates` says with those from `start` to `end`, distinct ones, of which all that repeat one
    before `start` are marked already."""
    if end - start <= _SETTLED_ONE_BY_ONE:
        _settle_one_by_one(hashes, repeated, start + np.flatnonzero(repeated[start:end] < 0), most_bits)
        return
    middle = (start + end) // 2
    _settle(hashes, repeated, start, middle, most_bits)
    kept = start + np.flatnonzero(repeated[start:middle] < 0)
    later = middle + np.flatnonzero(repeated[middle:end] < 0)
    first = np.full(len(later), len(kept))
    _Pairs(hashes[kept], hashes[later], most_bits, first).mark()
    found = first < len(kept)
    repeated[later[found]] = kept[first[found]]
    _settle(hashes, repeated, middle, end, most_bits)


def _settle_one_by_one(hashes: np.ndarray, repeated: np.ndarray, places: np.ndarray, most_bits: int) -> None:
    own = hashes[places]
    near = np.triu(np.bitwise_count(own[:, None] ^ own) <= most_bits, 1)
    for each in np.flatnonzero(near.any(axis=1)).tolist():
        if repeated[places[each]] < 0:
            those = places[near[each]]
            repeated[those[repeated[those] < 0]] = places[each]


class _Pairs:
    """Pairs of one of `kept` and one of `later`, (K,) and (L,) uint64; sets `first`, (L,) int64, to the first near one.

    Where a hash of `later` has no near one, its `first` stays as it is, at least K.
    """

    def __init__(self, kept: np.ndarray, later: np.ndarray, most_bits: int, first: np.ndarray) -> None:
        self.kept, self.later, self.most_bits, self.first = kept, later, most_bits, first

    def mark(self) -> None:
        self._among(np.arange(len(self.kept)), np.arange(len(self.later)))

    def _among(self, kept: np.ndarray, later: np.ndarray) -> None:
        """Those at these places, ascending. Bits in which all agree are in no part."""
        if len(kept) * len(later) <= _COMPARED:
            self._compare_all(kept, later)
            return
        some = self.kept[kept[0]]
        varying = np.bitwise_or.reduce(self.kept[kept] ^ some) | np.bitwise_or.reduce(self.later[later] ^ some)
        bits = np.flatnonzero(varying >> np.arange(64, dtype=np.uint64) & np.uint64(1))
        parts = self.most_bits + 1
        if 2 ** (len(bits) // parts) <= 2 * parts:  # too short to tell many apart
            self._compare_all(kept, later)
            return
        edges = [int(bits[len(bits) * part // parts]) for part in range(parts)] + [64]
        for low, high in pairwise(edges):
            self._sharing(kept, later, low, high)

    def _sharing(self, kept: np.ndarray, later: np.ndarray, low: int, high: int) -> None:
        """Those that agree in bits `low` to `high`."""
        ours, theirs = _bits(self.kept[kept], low, high), _bits(self.later[later], low, high)
        order, other = np.argsort(ours, kind="stable"), np.argsort(theirs, kind="stable")
        kept, later, ours, theirs = kept[order], later[other], ours[order], theirs[other]
        starts = np.flatnonzero(np.append(True, theirs[1:] != theirs[:-1]))
        counts = np.diff(np.append(starts, len(theirs)))
        begins, ends = (np.searchsorted(ours, theirs[starts], side=side) for side in ("left", "right"))
        many = (ends - begins) * counts > _COMPARED
        for begin, end, start, count in zip(*(each[many] for each in (begins, ends, starts, counts)), strict=True):
            self._among(kept[begin:end], later[start : start + count])
        begins, lengths = (np.repeat(np.where(many, 0, each), counts) for each in (begins, ends - begins))
        self._compare_runs(kept, later, begins, lengths)

    def _compare_all(self, kept: np.ndarray, later: np.ndarray) -> None:
        if not len(kept):
            return
        step = max(1, _AT_ONCE // len(kept))
        for start in range(0, len(later), step):
            those = later[start : start + step]
            near = np.bitwise_count(self.later[those][:, None] ^ self.kept[kept]) <= self.most_bits
            found = near.any(axis=1)
            self.first[those[found]] = np.minimum(self.first[those[found]], kept[near[found].argmax(axis=1)])

    def _compare_runs(self, kept: np.ndarray, later: np.ndarray, begins: np.ndarray, lengths: np.ndarray) -> None:
        """Each of `later` with `lengths` of `kept` from `begins` on."""
        some = np.flatnonzero(lengths)
        ends = np.cumsum(lengths[some])
        start = 0
        while start < len(some):
            done = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, done + _AT_ONCE)))
            rows, counts = some[start:stop], lengths[some[start:stop]]
            run = np.arange(ends[stop - 1] - done) - np.repeat(ends[start:stop] - done - counts, counts)
            ours, theirs = kept[np.repeat(begins[rows], counts) + run], np.repeat(later[rows], counts)
            near = np.bitwise_count(self.kept[ours] ^ self.later[theirs]) <= self.most_bits
            np.minimum.at(self.first, theirs[near], ours[near])
            start = stop


def _bits(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """Bits `low` to `high` of each, in as few bytes as they need: these are sorted sooner."""
    few = (values >> np.uint64(low)) & np.uint64(2 ** (high - low) - 1)
    return few.astype(np.uint16) if high - low <= 16 else few
