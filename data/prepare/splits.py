"""Who is trained on what: concepts are split, never pictures, and some (concept, style) pairs are held out.

Five sets draw the same apple, so a picture is only new if its concept is. The held-out pairs ask the other question,
composition: the concept was seen in other styles, the style in other concepts, the two never together.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Set
from typing import NamedTuple

from data.prepare.wording import stable_fraction, stable_order

VAL_SHARE, TEST_SHARE = 0.03, 0.03
HELD_OUT_PAIRS = 150
MIN_STYLES = 4  # of a concept, so that it is well known without the pair
MIN_PICTURES = 300  # of a style
PERSONS = re.compile(r"(?:^|(?<=-))(?:man|woman|person|men|women|people|boy|girl|child|adult|older|old)(?=-|$)")
VARIANT = re.compile(r"(?:-facing-right|-\d+)$")


class Pair(NamedTuple):
    concept: str
    style: str


def family(concept: str) -> str:
    """What decides the split: "woman-astronaut" and "man-astronaut" are one family, for they are drawn alike."""
    stem = PERSONS.sub("", VARIANT.sub("", concept))
    return re.sub(r"-+", "-", stem).strip("-") or concept


def split_of(concept: str) -> str:
    """ "train", "val" or "test", by a stable hash of the concept's family."""
    place = stable_fraction(f"split/{family(concept)}")
    if place < VAL_SHARE:
        return "val"
    return "test" if place < VAL_SHARE + TEST_SHARE else "train"


def held_out_pairs(pairs: Iterable[Pair], count: int = HELD_OUT_PAIRS) -> Set[Pair]:
    """`count` pairs, at most one a concept, of training concepts drawn in many styles and of common styles.

    `pairs` has an entry for each picture. Concepts with kin in their family are never held out, for the kin would show
    the drawing in the held-out style; nor are flags, which all styles draw the same.
    """
    pictures = Counter(pairs)
    in_style = Counter(pair.style for pair in pictures.elements())
    styles_of = defaultdict(set)
    for pair in pictures:
        styles_of[pair.concept].add(pair.style)
    chosen: list[Pair] = []
    members = Counter(family(concept) for concept in styles_of)
    alone = [c for c in styles_of if members[family(c)] == 1 and not c.startswith("flag-")]
    known = [c for c in alone if len(styles_of[c]) >= MIN_STYLES and split_of(c) == "train"]
    for concept in stable_order(known, "held-out"):
        common = [style for style in sorted(styles_of[concept]) if in_style[style] >= MIN_PICTURES]
        if common:
            chosen.append(Pair(concept, stable_order(common, concept)[0]))
    return frozenset(chosen[:count])
