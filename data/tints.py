"""The colours of the drawings: what objects are painted in, and the backgrounds they stand out from.

A background is one tint seen through a soft pattern over another that is close to it. Which tints suit which colours is
decided by distance in CIELAB, where equal distances look equally different.
"""

import math
from functools import cache, lru_cache

import numpy as np
from PIL import Image

RGB = {
    "red": (220, 38, 42),
    "orange": (250, 140, 22),
    "yellow": (250, 222, 50),
    "green": (38, 155, 70),
    "cyan": (45, 205, 215),
    "blue": (40, 80, 215),
    "purple": (128, 45, 165),
    "pink": (250, 135, 190),
    "brown": (122, 74, 38),
    "black": (24, 24, 28),
    "white": (250, 250, 250),
}
TINTS = (
    (240, 236, 224),  # paper
    (206, 222, 236),  # sky
    (232, 212, 200),  # peach
    (204, 222, 200),  # sage
    (216, 206, 232),  # lilac
    (156, 170, 186),  # slate
    (176, 168, 156),  # stone
    (52, 58, 74),  # night
)
CONTRAST = 30.0  # least distance, in CIELAB, between a tint and a colour drawn on it
PATTERNS = ("gradient", "stripes", "checks", "dots")
PATTERN_STRENGTH = 0.09  # how far the second tint goes towards black or white
VARIANTS = 8  # of each pattern: direction, frequency


def background(tint: int, pattern: str, variant: int, towards: int, size: int) -> Image.Image:
    """A background of `size` x `size` pixels, mode RGB.

    Args:
        tint: position in TINTS.
        pattern: "plain" or one of PATTERNS.
        variant: 0 to VARIANTS - 1, direction and frequency of the pattern.
        towards: 0 or 255; the second tint goes towards black or white.
    """
    image = Image.new("RGB", (size, size), TINTS[tint])
    if pattern != "plain":
        red, green, blue = (round(c + PATTERN_STRENGTH * (towards - c)) for c in TINTS[tint])
        image.paste((red, green, blue), mask=_pattern(pattern, variant, size))
    return image


@cache
def tints_for(colours: tuple[str, ...]) -> tuple[int, ...]:
    """Positions in TINTS of the backgrounds on which all these colours stand out."""
    tints = lab(np.array(TINTS) / 255)
    inks = lab(np.array([RGB[colour] for colour in colours]) / 255)
    distances = np.linalg.norm(tints[:, None] - inks[None], axis=-1)  # (tints, colours)
    return tuple(int(i) for i in np.flatnonzero(distances.min(axis=1) >= CONTRAST))


@lru_cache(maxsize=len(PATTERNS) * VARIANTS)
def _pattern(kind: str, variant: int, size: int) -> Image.Image:
    """A soft pattern, mode L: 0 shows the first tint and 255 the second."""
    angle = math.pi * variant / VARIANTS
    line = (np.arange(size) + 0.5) / size - 0.5
    u = line[None, :] * math.cos(angle) + line[:, None] * math.sin(angle)
    v = line[:, None] * math.cos(angle) - line[None, :] * math.sin(angle)
    across, along = (np.sin(2 * math.pi * (4 + variant % 3) * w) for w in (u, v))
    height = {
        "gradient": u / np.abs(u).max(),
        "stripes": 2.5 * across,
        "checks": 4 * across * along,
        "dots": 5 * (across + along - 1.15),
    }[kind]
    return Image.fromarray(np.round(255 * (0.5 + 0.5 * np.clip(height, -1, 1))).astype(np.uint8))


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of sRGB values in [0, 1], both (..., 3), white point D65: equal distances look equally different."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ_FROM_RGB.T / _XYZ_FROM_RGB.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


_XYZ_FROM_RGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
