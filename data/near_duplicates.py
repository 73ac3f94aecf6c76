"""Pictures that look the same: 64 bits of what a picture looks like, and those that differ in few of them.

The bits are those of the difference hash, half of them across and half of them down: the picture is made few grey
pixels, and each bit says whether one is darker than the next. Where neighbours are as dark as each other, as in flags,
drawings and plain pages, that would say nothing of the picture, and noise would decide; there the bit says whether a
colour reaches a threshold, another one for each bit. Scaling, recompression and small changes of colour flip few of
them; mirrored or cropped pictures have others. Hashes that differ in at most d of 64 bits agree in one of d + 1 parts
of them, so only those that share a part are compared (multi-index hashing, https://arxiv.org/abs/1307.2982).
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from data.rejects import Reject

MOST_BITS = 7  # that may differ: with more, parts are so short that everything shares one
LEAST_SIDE = 64  # pixels that a hash needs of a side
_STEPS, _LINES = 8, 4  # bits along, and lines of them
_FLAT = 3  # greys by which neighbours differ at least: less is noise
_LUMA = np.array([0.299, 0.587, 0.114])  # grey of red, green and blue (ITU-R BT.601)
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
    repeated = np.full(len(hashes), -1)
    parts = [_by_part(hashes, part, 64 // _parts(most_bits)) for part in range(_parts(most_bits))]
    for place in range(len(hashes)):
        if repeated[place] >= 0:
            continue
        for order, position, end in parts:
            later = order[position[place] + 1 : end[place]]
            near = later[np.bitwise_count(hashes[later] ^ hashes[place]) <= most_bits]
            repeated[near[repeated[near] < 0]] = place
    return repeated


def _parts(most_bits: int) -> int:
    """How many, at least most_bits + 1, into which 64 bits divide evenly."""
    return next(parts for parts in (1, 2, 4, 8) if parts > most_bits)


def _by_part(hashes: np.ndarray, part: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For one part of `width` bits: places in the order of its values, then of each place where it is in that order and
    where those of its value end. Equal ones keep their order."""
    values = (hashes >> np.uint64(part * width)) & np.uint64(2**width - 1)
    order = np.argsort(values, kind="stable")
    position = np.empty(len(hashes), np.int64)
    position[order] = np.arange(len(hashes))
    return order, position, np.searchsorted(values[order], values, side="right")
