"""Pictures that look the same: 64 bits of what a picture looks like, and those that differ in few of them.

The bits are those of the difference hash: the picture is made 9x8 grey pixels, and each bit says whether a pixel is
darker than its right neighbour. Scaling, recompression and small changes of colour flip few of them; mirrored or
cropped pictures have others. Hashes that differ in at most d of 64 bits agree in one of d + 1 parts of them, so only
those that share a part are compared (multi-index hashing, https://arxiv.org/abs/1307.2982).
"""

import hashlib

import numpy as np
from PIL import Image

MOST_BITS = 7  # that may differ: with more, parts are so short that everything shares one
LEAST_SIDE = 64  # pixels that a hash needs of a side
_WIDTH, _HEIGHT = 9, 8
_FLAT = 3  # greys between the darkest and the brightest pixel, below which differences are noise


def picture_hash(image: Image.Image) -> int:
    """64 bits of a picture of mode RGB; of one without contrast they tell its colour, in steps of 16."""
    small = image.resize((_WIDTH, _HEIGHT), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L")).astype(np.int16)  # (8, 9)
    if int(grey.max()) - int(grey.min()) < _FLAT:
        colour = np.asarray(small).reshape(-1, 3).mean(axis=0) // 16  # (3,)
        return int.from_bytes(hashlib.blake2b(colour.astype(np.uint8).tobytes(), digest_size=8).digest(), "big")
    bits = grey[:, :-1] < grey[:, 1:]  # (8, 8)
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
