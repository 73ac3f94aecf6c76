"""Says whether a caption is true of a picture: what data/reader.py finds in it, held against what the caption says."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from PIL import Image
from torch import Tensor

from data.reader import Found, read
from data.scene import Item, Scene, parse_caption

MOST_MATCHED = 6  # objects considered as stand-ins, the largest first: a ruined picture can hold a hundred specks


@dataclass(frozen=True)
class ItemVerdict:
    """What was expected, what was found in its place, and what of it is right; nothing found, nothing right."""

    expected: Item
    found: Found | None
    colour: bool
    shape: bool
    size: bool


@dataclass(frozen=True)
class Verdict:
    """A picture judged; `relation` is None where the caption states none."""

    items: tuple[ItemVerdict, ...]
    count: bool
    relation: bool | None

    @property
    def correct(self) -> bool:
        """Everything that the caption says is in the picture, and nothing else."""
        named = all(item.colour and item.shape and item.size for item in self.items)
        return named and self.count and self.relation is not False


def check(image: Image.Image | Tensor | np.ndarray, expected: Scene | str) -> Verdict:
    """Compares a picture with a scene or a caption.

    Args:
        image: a square PIL picture, or a float tensor or array (3, H, W) in [0, 1].
        expected: what the picture should show. A size that it does not name is not judged.

    Raises:
        ValueError: the caption is not of the grammar of data/scene.py, or the picture has the wrong layout.
    """
    scene = parse_caption(expected) if isinstance(expected, str) else expected
    found = read(image)
    matched = _match(scene.items, found)
    items = tuple(_judge(item, thing) for item, thing in zip(scene.items, matched, strict=True))
    relation = None
    if scene.relation is not None:
        relation = None not in matched and relation_of(matched[0], matched[1]) == scene.relation
    return Verdict(items, len(found) == len(scene.items), relation)


def score(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Fractions of right answers: of objects (colour, shape, size, colour_and_shape), of pictures (count, relation,
    correct). `relation` is over the pictures whose caption states one; a fraction of nothing is NaN.
    """
    verdicts = list(verdicts)
    items = [item for verdict in verdicts for item in verdict.items]
    return {
        "colour": _fraction(item.colour for item in items),
        "shape": _fraction(item.shape for item in items),
        "size": _fraction(item.size for item in items),
        "colour_and_shape": _fraction(item.colour and item.shape for item in items),
        "count": _fraction(verdict.count for verdict in verdicts),
        "relation": _fraction(verdict.relation for verdict in verdicts if verdict.relation is not None),
        "correct": _fraction(verdict.correct for verdict in verdicts),
    }


def _fraction(answers: Iterable[bool]) -> float:
    answers = list(answers)
    return sum(answers) / len(answers) if answers else float("nan")


def relation_of(first: Found, second: Found) -> str:
    """How the first lies to the second, along the axis on which they are further apart."""
    dx, dy = second.x - first.x, second.y - first.y
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def _match(items: tuple[Item, ...], found: list[Found]) -> tuple[Found | None, ...]:
    """For every item the object that stands for it, so that as much as possible is right in all."""
    slots = [*found[:MOST_MATCHED], *[None] * len(items)]
    gain = [[_agreement(item, thing) for thing in slots] for item in items]
    best = max(
        permutations(range(len(slots)), len(items)),
        key=lambda chosen: sum(row[slot] for row, slot in zip(gain, chosen, strict=True)),
    )
    return tuple(slots[slot] for slot in best)


def _agreement(item: Item, thing: Found | None) -> float:
    if thing is None:
        return 0.0
    verdict = _judge(item, thing)
    # Any object stands in for an item rather than none; where two claims are alike, colour tells more than shape.
    return 0.1 + 1.02 * verdict.colour + verdict.shape + 0.5 * verdict.size


def _judge(item: Item, thing: Found | None) -> ItemVerdict:
    if thing is None:
        return ItemVerdict(item, None, False, False, False)
    return ItemVerdict(
        item, thing, thing.colour == item.colour, thing.shape == item.shape, item.size in (None, thing.size)
    )
