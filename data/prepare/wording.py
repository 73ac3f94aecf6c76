"""From a label, a style and tags to the several captions of a picture."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


def word_set(*lines: str) -> frozenset[str]:
    """Words out of lines of text: long lists stay readable so."""
    return frozenset(" ".join(lines).split())


MASS_NOUNS = word_set("bacon bread broccoli butter fog garlic honey ice oden popcorn rice salt sand sushi tennis wind")
PLURAL_STARTS = word_set("hands men people two women")
PREPOSITION = re.compile(r"\s(?:with|without|in|of|on|over|and|for|at|behind|holding)\s")
PLURAL = re.compile(r"(?<![ius])(?<!o)s$")  # "grapes" is one, "cactus", "compass", "iris" and "rhinoceros" are none
ACTIVITY = re.compile(r"(?!ring$|wing$)\w+ing$")  # "bowling"
USEFUL_TAG = re.compile(r"[A-Za-z][A-Za-z' -]{2,}$")  # tags also hold digits, symbols and abbreviations
CLOCK = re.compile(r"(o'clock|-thirty)$")
TAGS_A_CAPTION = 2


@dataclass(frozen=True, kw_only=True)
class Style:
    """One hand that draws: `name` follows the label ("apple, flat style"), `phrase` wraps it ("a drawing of {}")."""

    name: str
    phrase: str

    @property
    def folder(self) -> str:
        return slug(self.name)


def slug(text: str) -> str:
    """ASCII words joined by "-": "Côte d’Ivoire" -> "cote-divoire". The name that sets share for one concept."""
    plain = unicodedata.normalize("NFKD", re.sub(r"[’'“”.]", "", text)).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower().replace("&", " and ")).strip("-")


def stable_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: the same on every machine and in every version."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def stable_order(words: Sequence[str], seed: str) -> list[str]:
    """The words in an order that only they and `seed` decide."""
    return sorted(words, key=lambda word: stable_fraction(f"{seed}/{word}"))


def takes_article(label: str) -> bool:
    """Whether "a" or "an" can stand before the label: one countable thing, no proper name, no plural."""
    head = PREPOSITION.split(label)[0].split()
    if not head or label[0].isupper() or label[0].isdigit() or CLOCK.search(label):
        return False
    if head[0] in PLURAL_STARTS or "," in label or ACTIVITY.fullmatch(label):
        return False
    return head[-1] not in MASS_NOUNS and not PLURAL.search(head[-1])


def with_article(label: str) -> str:
    """ "an apple", "a red apple"; the label alone where no article fits."""
    return article(label) if takes_article(label) else label


def article(label: str) -> str:
    """The label with "a" or "an" in front, by its sound."""
    start = label.lower()
    vowel = start[0] in "aeiou" or start.startswith("hour")
    consonant_sound = start.startswith(("uni", "use", "one", "eu", "ukulele", "utens"))
    return f"an {label}" if vowel and not consonant_sound else f"a {label}"


def styled_captions(label: str, style: Style, tags: Sequence[str], *, countable: bool) -> tuple[str, ...]:
    """Five or so captions, "label, style" first; the last one leaves the style open.

    `tags` are words about the concept; those that the label says already are passed over. `countable` says whether the
    label names a thing at all (a symbol such as "up arrow button" does, "input numbers" does not).
    """
    thing = with_article(label) if countable else label
    said = set(label.lower().split())
    useful = [tag for tag in tags if USEFUL_TAG.match(tag) and not set(tag.lower().split()) <= said]
    news = stable_order(useful, f"{label}/{style.name}")
    captions = [f"{label}, {style.name}", f"{thing}, {style.name}", style.phrase.format(thing)]
    for start in range(0, 2 * TAGS_A_CAPTION, TAGS_A_CAPTION):
        some = news[start : start + TAGS_A_CAPTION]
        captions += [f"{label}, {', '.join(some)}, {style.name}"] if some else []
    return tuple(dict.fromkeys([*captions, thing]))
