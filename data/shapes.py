"""Endless captioned drawings: a source of pictures whose captions are exactly true.

A drawing is a pure function of (config, index). All its geometry is in fractions of the side, so the same index shows
the same scene at any resolution.
"""

import math
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from data.outlines import coverage, turned
from data.scene import COLOURS, HELD_OUT, MAX_ITEMS, RELATIONS, SHAPES, SIZES, Item, Scene, caption_of, count_phrasings
from data.tints import PATTERNS, RGB, VARIANTS, background, tints_for

EXTENT = {"small": 0.30, "medium": 0.365, "large": 0.44}  # longest side of an unturned shape, in sides of the picture
EXTENT_JITTER = 0.04  # relative; the classes are 1.2 apart
TURN = math.radians(8)  # small enough that a turned square is no diamond
RGB_JITTER = 7
MARGIN = 0.04  # background kept free along the edges, in sides of the picture
GAP = 0.06  # between the boxes of two objects
SLANT = 0.5  # two objects side by side differ in height by at most this part of their distance

MIN_SIZE, MAX_SIZE = 16, 512

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """A set of drawings.

    Attributes:
        size: side of the pictures in pixels, 16 to 512.
        count: number of drawings.
        seed: another seed, another set.
        min_objects, max_objects: 1 to 3 objects a picture, each number equally often.
        held_out: "exclude" never draws a combination of HELD_OUT, "only" draws one of them in every picture (any other
            object is an ordinary one), "include" makes no difference between combinations.
        backgrounds: "plain" tints only, or "mixed": plain, gradients, stripes, checks and dots.
    """

    size: int = 64
    count: int = 20_000
    seed: int = 0
    min_objects: int = 1
    max_objects: int = 3
    held_out: Literal["exclude", "only", "include"] = "exclude"
    backgrounds: Literal["plain", "mixed"] = "mixed"

    def __post_init__(self) -> None:
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ValueError(f"size={self.size}; expected {MIN_SIZE} to {MAX_SIZE} pixels")
        if self.count < 1:
            raise ValueError(f"count={self.count}; expected at least 1 drawing")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}; expected 0 or more")
        if not 1 <= self.min_objects <= self.max_objects <= MAX_ITEMS:
            raise ValueError(
                f"min_objects={self.min_objects}, max_objects={self.max_objects}; "
                f"expected 1 <= min_objects <= max_objects <= {MAX_ITEMS}"
            )
        if self.held_out not in ("exclude", "only", "include"):
            raise ValueError(f"held_out={self.held_out!r}; expected 'exclude', 'only' or 'include'")
        if self.backgrounds not in ("plain", "mixed"):
            raise ValueError(f"backgrounds={self.backgrounds!r}; expected 'plain' or 'mixed'")


@dataclass(frozen=True)
class Body:
    """An item as it is drawn: extent (longest side of the unturned shape), width and height (of the turned shape's
    bounding box) in sides of the picture, turn in radians."""

    item: Item
    extent: float
    turn: float
    rgb: tuple[int, int, int]
    width: float
    height: float


@dataclass(frozen=True)
class Placed:
    """A body and the centre of its bounding box, in sides of the picture."""

    body: Body
    x: float
    y: float


@dataclass(frozen=True)
class Drawing:
    """A picture, mode RGB, with what it shows, one way to say it, and where its objects lie."""

    image: Image.Image
    scene: Scene
    caption: str
    placed: tuple[Placed, ...]


class ShapesSource:
    """The drawings of a config as a `data.source.Source`."""

    def __init__(self, config: ShapesConfig) -> None:
        self.config = config

    def __len__(self) -> int:
        return self.config.count

    def key(self, index: int) -> str:
        return f"shapes-{index:06d}"

    def image(self, index: int, least: int | None = None) -> Image.Image:
        return draw(self.config, index).image

    def captions(self, index: int) -> tuple[str, ...]:
        """Every phrasing of the scene; the caption of the drawing comes first."""
        rng = _rng(self.config, index)
        scene = _arrange(self.config, rng).scene
        first = _choose_phrasing(scene, rng)
        return tuple(caption_of(scene, p) for p in (first, *(p for p in range(count_phrasings(scene)) if p != first)))

    def split(self, index: int) -> None:
        """Drawings carry no split of their own."""
        return

    def identity(self) -> tuple[str]:
        """The config, of which all the rest follows."""
        return (repr(self.config),)


def draw(config: ShapesConfig, index: int) -> Drawing:
    """The drawing at a position: the same picture, scene and caption in every process and in any order.

    Raises:
        ValueError: `index` is outside [0, config.count).
    """
    rng = _rng(config, index)
    arrangement = _arrange(config, rng)
    caption = caption_of(arrangement.scene, _choose_phrasing(arrangement.scene, rng))
    image = _choose_background(config, arrangement.scene, rng)
    for placed in arrangement.placed:
        body = placed.body
        mask, (left, top) = coverage(body.item.shape, (placed.x, placed.y), body.extent, body.turn, config.size)
        image.paste(body.rgb, (left, top, left + mask.width, top + mask.height), mask)
    return Drawing(image, arrangement.scene, caption, arrangement.placed)


def _rng(config: ShapesConfig, index: int) -> random.Random:
    if not 0 <= index < config.count:
        raise ValueError(f"index={index}; expected 0 to {config.count - 1}")
    # Seeding by a string hashes it with SHA-512: equal on every platform and far apart for neighbours.
    return random.Random(f"shapes {config.seed} {index}")


# ---- what is drawn, and where


@dataclass(frozen=True)
class _Arrangement:
    scene: Scene
    placed: tuple[Placed, ...]


def _arrange(config: ShapesConfig, rng: random.Random) -> _Arrangement:
    count = rng.randint(config.min_objects, config.max_objects)
    names = _choose_names(config, count, rng)
    relation = rng.choice(RELATIONS) if count == 2 else None
    positions = None
    while positions is None:  # three large objects rarely fit: choose other sizes
        bodies = [_body(colour, shape, rng) for colour, shape in names]
        positions = _place_pair(bodies, relation, rng) if relation else _place_freely(bodies, rng)
    placed = tuple(Placed(body, x, y) for body, (x, y) in zip(bodies, positions, strict=True))
    return _Arrangement(Scene(tuple(body.item for body in bodies), relation), placed)


def _choose_names(config: ShapesConfig, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Pairs of colour and shape, no two alike."""
    pool = _COMBINATIONS if config.held_out == "include" else _ORDINARY
    names = rng.sample(pool, count)
    if config.held_out == "only":
        names[rng.randrange(count)] = rng.choice(_UNSEEN)
    return names


_COMBINATIONS = [(colour, shape) for colour in COLOURS for shape in SHAPES]
_ORDINARY = [pair for pair in _COMBINATIONS if pair not in HELD_OUT]
_UNSEEN = [pair for pair in _COMBINATIONS if pair in HELD_OUT]


def _body(colour: str, shape: str, rng: random.Random) -> Body:
    size = rng.choice(SIZES)
    extent = EXTENT[size] * (1 + rng.uniform(-EXTENT_JITTER, EXTENT_JITTER))
    turn = rng.uniform(-TURN, TURN)
    red, green, blue = (min(255, max(0, c + rng.randint(-RGB_JITTER, RGB_JITTER))) for c in RGB[colour])
    width, height = np.ptp(turned(shape, turn)[0], axis=0) * extent
    return Body(Item(colour, shape, size), extent, turn, (red, green, blue), float(width), float(height))


def _place_pair(bodies: list[Body], relation: str, rng: random.Random) -> list[Point] | None:
    """Two centres for which the relation is true beyond doubt; None where the bodies are too large for it."""
    sideways = relation in ("left of", "right of")
    first_leads = relation in ("left of", "above")
    near, far = bodies if first_leads else bodies[::-1]
    lengths = [body.width if sideways else body.height for body in (near, far)]
    breadths = [body.height if sideways else body.width for body in (near, far)]
    slack = 1 - 2 * MARGIN - GAP - sum(lengths)
    if slack < 0:
        return None
    before, upto = sorted((rng.random() * slack, rng.random() * slack))
    along = MARGIN + before + lengths[0] / 2
    distance = sum(lengths) / 2 + GAP + upto - before
    across = _inside(breadths[0], rng)
    low = max(MARGIN + breadths[1] / 2, across - SLANT * distance)
    high = min(1 - MARGIN - breadths[1] / 2, across + SLANT * distance)
    if low > high:
        return None
    points = [(along, across), (along + distance, rng.uniform(low, high))]
    points = points if first_leads else points[::-1]
    return points if sideways else [(x, y) for y, x in points]


def _place_freely(bodies: list[Body], rng: random.Random) -> list[Point] | None:
    """Centres of bodies that keep their distance; None where they are not soon found."""
    placed: list[Placed] = []
    for body in bodies:
        tries = (Placed(body, _inside(body.width, rng), _inside(body.height, rng)) for _ in range(30))
        free = next((here for here in tries if all(_clear(here, other) for other in placed)), None)
        if free is None:
            return None
        placed.append(free)
    return [(here.x, here.y) for here in placed]


def _clear(a: Placed, b: Placed) -> bool:
    free_x = abs(a.x - b.x) - (a.body.width + b.body.width) / 2
    free_y = abs(a.y - b.y) - (a.body.height + b.body.height) / 2
    return max(free_x, free_y) > GAP


def _inside(length: float, rng: random.Random) -> float:
    return rng.uniform(MARGIN + length / 2, 1 - MARGIN - length / 2)


def _choose_phrasing(scene: Scene, rng: random.Random) -> int:
    return rng.randrange(count_phrasings(scene))


def _choose_background(config: ShapesConfig, scene: Scene, rng: random.Random) -> Image.Image:
    tint = rng.choice(tints_for(tuple(sorted({item.colour for item in scene.items}))))
    pattern = rng.choice(("plain", *PATTERNS)) if config.backgrounds == "mixed" else "plain"
    if pattern == "plain":
        return background(tint, pattern, 0, 0, config.size)
    towards = rng.choice((0, 255))
    return background(tint, pattern, rng.randrange(VARIANTS), towards, config.size)
