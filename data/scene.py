"""What a drawing shows, and the small language that says it.

A `Scene` is a description: one to three items, each a colour and a shape and perhaps a size, and for two items perhaps
how the first lies to the second. `caption_of` puts a scene into one of several phrasings; `parse_caption` reads any of
them back, so that a picture can be judged by its caption alone. What a phrasing leaves out comes back as None.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond", "crescent", "arrow")
SIZES = ("small", "medium", "large")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(INVERSE)
MAX_ITEMS = 3

# Never drawn while training: one combination a shape and at most one a colour, so that both are still well known.
HELD_OUT = frozenset(
    {
        ("red", "heart"),
        ("orange", "cross"),
        ("yellow", "circle"),
        ("green", "star"),
        ("cyan", "arrow"),
        ("blue", "triangle"),
        ("purple", "square"),
        ("pink", "diamond"),
        ("brown", "crescent"),
        ("white", "ring"),
    }
)


@dataclass(frozen=True)
class Item:
    """One object by its names; `size` None means that it is not said."""

    colour: str
    shape: str
    size: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("colour", self.colour, COLOURS),
            ("shape", self.shape, SHAPES),
            ("size", self.size, (*SIZES, None)),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown; expected one of {known}")


@dataclass(frozen=True)
class Scene:
    """One to three items; `relation` says how the first of two lies to the second, None that it is not said."""

    items: tuple[Item, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.items) <= MAX_ITEMS:
            raise ValueError(f"a scene of {len(self.items)} items; expected 1 to {MAX_ITEMS}")
        if self.relation is not None and (len(self.items) != 2 or self.relation not in RELATIONS):
            raise ValueError(
                f"relation={self.relation!r} between {len(self.items)} items; expected one of {RELATIONS} between 2"
            )

    def mirrored(self) -> "Scene":
        """The same scene told from its last item."""
        return Scene(self.items[::-1], None if self.relation is None else INVERSE[self.relation])


# {0} {1} {2} are the items with their articles, {p0} {p1} {p2} the same without their sizes, {bare} is the first one
# without its article. Two or three items may be told from either end.
_SINGLE = ("{0}", "a drawing of {0}", "there is {0}", "{bare}", "{p0}", "a picture of {p0}")
_RELATED = (
    "{0} {relation} {1}",
    "a drawing of {0} {relation} {1}",
    "there is {0} {relation} {1}",
    "{0} is {relation} {1}",
    "{p0} {relation} {p1}",
)
_PAIR = ("{0} and {1}", "a drawing of {0} and {1}", "there are {0} and {1}", "{p0} and {p1}")
_TRIPLE = (
    "{0}, {1} and {2}",
    "a drawing of {0}, {1} and {2}",
    "there are {0}, {1} and {2}",
    "{0} and {1} and {2}",
    "{p0}, {p1} and {p2}",
)


def _templates(scene: Scene) -> tuple[str, ...]:
    if scene.relation is not None:
        return _RELATED
    return (_SINGLE, _PAIR, _TRIPLE)[len(scene.items) - 1]


def count_phrasings(scene: Scene) -> int:
    """How many captions `caption_of` has for this scene."""
    return len(_templates(scene)) * (1 if len(scene.items) == 1 else 2)


def caption_of(scene: Scene, phrasing: int = 0) -> str:
    """The scene in words; phrasing 0 says all of it, some of the others leave the sizes out.

    Raises:
        ValueError: `phrasing` is not in [0, count_phrasings(scene)).
    """
    if not 0 <= phrasing < count_phrasings(scene):
        raise ValueError(f"phrasing={phrasing}; expected 0 to {count_phrasings(scene) - 1}")
    templates = _templates(scene)
    told = scene if phrasing < len(templates) else scene.mirrored()
    plain = {f"p{i}": _with_article(f"{item.colour} {item.shape}") for i, item in enumerate(told.items)}
    return templates[phrasing % len(templates)].format(
        *(_with_article(_words(item)) for item in told.items),
        relation=told.relation,
        bare=_words(told.items[0]),
        **plain,
    )


def _words(item: Item) -> str:
    return " ".join(filter(None, (item.size, item.colour, item.shape)))


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


_ITEM = re.compile(rf"(?:\b(?:an?|the) )?(?:\b({'|'.join(SIZES)}) )?\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
_OPENING = re.compile(r"(?:an? (?:drawing|picture) of|there (?:is|are))?")
_JOINT = re.compile(rf",|,? ?and|(?:is )?(?:to the )?({'|'.join(RELATIONS)})")


def parse_caption(caption: str) -> Scene:
    """The scene that a caption describes.

    Every word must be understood: a picture cannot be judged by half a sentence.

    Raises:
        ValueError: no item, more than three, words that the grammar does not have, or a relation among three items.
    """
    text = " ".join(caption.lower().split()).rstrip(".")
    found = list(_ITEM.finditer(text))
    if not found:
        raise ValueError(f"no item in caption {caption!r}; expected e.g. {caption_of(_EXAMPLE)!r}")
    opening, ending = text[: found[0].start()].strip(), text[found[-1].end() :].strip()
    joints = [text[a.end() : b.start()].strip() for a, b in pairwise(found)]
    unread = [joint for joint in joints if not _JOINT.fullmatch(joint)]
    unread += [opening] * (not _OPENING.fullmatch(opening)) + [ending] * (ending != "")
    if unread:
        raise ValueError(f"cannot read {unread} in caption {caption!r}; expected e.g. {caption_of(_EXAMPLE)!r}")
    relations = [relation for joint in joints for relation in _JOINT.fullmatch(joint).groups() if relation]
    if relations and len(found) > 2:
        raise ValueError(f"{relations} among {len(found)} items in caption {caption!r}; expected a relation between 2")
    items = tuple(Item(colour, shape, size) for size, colour, shape in (match.groups() for match in found))
    return Scene(items, relations[0] if relations else None)


_EXAMPLE = Scene((Item("red", "circle", "small"), Item("blue", "star", "large")), "left of")
