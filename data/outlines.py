"""The shapes: each a polygon in the unit box, filled anti-aliased at any place, extent and turn.

Chosen to be told apart by area and silhouette alone, at twelve pixels and through the blur of an image tokenizer.
"""

import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

Outline = np.ndarray  # (points, 2): x to the right, y downwards, centred on the bounding box, longest side 1


def coverage(
    shape: str, centre: tuple[float, float], extent: float, turn: float, size: int
) -> tuple[Image.Image, tuple[int, int]]:
    """How much of each pixel a shape covers, mode L, and the pixel of the picture where that patch's corner goes.

    Args:
        centre: of the turned shape's bounding box, x and y in sides of the picture.
        extent: longest side of the unturned shape, in sides of the picture.
        turn: radians, clockwise.
        size: side of the picture in pixels.
    """
    outlines = [points * (extent * size) + np.array(centre) * size for points in turned(shape, turn)]
    left, top = np.floor(outlines[0].min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(outlines[0].max(axis=0)).astype(int).tolist()
    fine = 8 if extent * size < 128 else 4
    patch = Image.new("L", ((right - left) * fine, (bottom - top) * fine))
    pen = ImageDraw.Draw(patch)
    for points, fill in zip(outlines, (255, 0), strict=False):  # most have one; a second is a hole
        pen.polygon(((points - (left, top)) * fine - 0.5).ravel().tolist(), fill=fill)
    return patch.reduce(fine), (left, top)


def turned(shape: str, turn: float) -> tuple[Outline, ...]:
    """The outlines of a shape turned by so many radians about the centre of its box, centred on its new box."""
    cosine, sine = math.cos(turn), math.sin(turn)
    outlines = [points @ np.array([[cosine, sine], [-sine, cosine]]) for points in outlines_of(shape)]
    middle = (outlines[0].min(axis=0) + outlines[0].max(axis=0)) / 2
    return tuple(points - middle for points in outlines)


@cache
def outlines_of(shape: str) -> tuple[Outline, ...]:
    """A shape's outer outline, and its hole if it has one."""
    outlines = _OUTLINES[shape]()
    low, high = outlines[0].min(axis=0), outlines[0].max(axis=0)
    return tuple((points - (low + high) / 2) / (high - low).max() for points in outlines)


def _arc(radius: float, start: float = 0.0, stop: float = 360.0, x: float = 0.0, points: int = 48) -> Outline:
    angles = np.radians(np.linspace(start, stop, points))
    return np.stack([x + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _star() -> Outline:
    angles = np.radians(np.arange(10) * 36 - 90)
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.38)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _cross(arm: float = 0.17) -> Outline:
    quarter = np.array([(arm, -0.5), (arm, -arm), (0.5, -arm)])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def _heart() -> Outline:
    t = np.linspace(0, 2 * np.pi, 48)
    y = -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, y], axis=1)


def _crescent(bite: float = 0.8, shift: float = 0.48) -> Outline:
    """The unit disc without a disc of radius `bite` whose centre lies `shift` to its right."""
    x = (1 - bite**2 + shift**2) / (2 * shift)
    outer = math.degrees(math.acos(x))
    inner = math.degrees(math.acos((x - shift) / bite))
    return np.concatenate([_arc(1.0, outer, 360 - outer), _arc(bite, 360 - inner, inner, x=shift)])


_OUTLINES = {
    "circle": lambda: (_arc(1.0),),
    "square": lambda: (np.array([(0.0, 0.0), (0.9, 0.0), (0.9, 0.9), (0.0, 0.9)]),),
    "triangle": lambda: (np.array([(0.0, 0.92), (0.5, 0.0), (1.0, 0.92)]),),
    "star": lambda: (_star(),),
    "cross": lambda: (_cross(),),
    "ring": lambda: (_arc(1.0), _arc(0.52)),
    "heart": lambda: (_heart(),),
    "diamond": lambda: (np.array([(0.36, 0.0), (0.72, 0.5), (0.36, 1.0), (0.0, 0.5)]),),
    "crescent": lambda: (_crescent(),),
    "arrow": lambda: (np.array([(0, 0.33), (0.5, 0.33), (0.5, 0.06), (1, 0.5), (0.5, 0.94), (0.5, 0.67), (0, 0.67)]),),
}
