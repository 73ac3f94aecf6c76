"""Clip art of the Open Clip Art Library: public-domain drawings by many hands, with titles and keywords in their RDF.

Titles name the drawing, or only its author, or a whole collection; then the file's own name is asked. Generated stars,
icon themes, playing cards, gradients and the like are left out, and so is what needs fonts.
"""

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.prepare.archives import members
from data.prepare.build import Piece, Rejects
from data.prepare.flags import cap_flags
from data.prepare.packages import Package
from data.prepare.render import render_cropped
from data.prepare.splits import split_of
from data.prepare.wording import Style, slug, styled_captions, word_set

PACKAGE = Package(
    client="apt",
    name="openclipart-svg",
    version="1:0.18+dfsg-19",
    file="openclipart-svg_1%3a0.18+dfsg-19_all.deb",  # apt writes ":" as %3a
    sha256="989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    licence="public domain",
)
STYLE = Style(name="clip art", phrase="clip art of {}")
ROOT = "usr/share/openclipart/svg/"

# Generated, or parts of sets that say nothing alone, or other people's marks.
SKIPPED_FOLDERS = re.compile(
    r"computer/(icons|buttons|games|bb_)|shapes/(stars|jigsaw|flowchart|arrows|callouts)/|special/|recreation/games/cards/"
    r"|logos/|buttons/|signs_and_symbols/led/|games/(pong|tetris|pac)|people/clothing/pantyhose/"
)
# Marks of companies, people who can be recognised, and what does not belong into a set for everyone.
SKIPPED_WORDS = word_set(
    "balmer beckham chomper cisco coke coltrane einstein gates knievel leisler logo microsoft pacman tetris xbill",
    "naked nazi nude portrait sexy stripper swastika",
)
# Words of titles, file names and keywords that say nothing about the picture.
EMPTY_WORDS = word_set(
    "a advertising aiga aj art bwh clip clipart cliparts collection domain drawing elements flags ganson general hash",
    "ii iii icon icons lib library mapsym md new of open openclipart other public religholiday rpg sibmission signs",
    "svg symbol symbols the unnamed unsorted untitled various",
)
EMPTY_KEYWORDS = EMPTY_WORDS | word_set("activities education office people recreation shape sign work")
VAGUE_KEYWORDS = word_set(
    "animal beverage caution computer container decoration food fruit furniture game insect mammal menu plant",
    "security sports tool transport vegetable vehicle warning",
)
# Their titles are Italian and French; their keywords are English.
OTHER_LANGUAGES = re.compile(r"rollandin|guillou", re.IGNORECASE)
BLACK_AND_WHITE = re.compile(r"\(?\bb ?(?:and|&|n) ?w\b\)?|\bbw\b", re.IGNORECASE)
NOISE = re.compile(r"\S+@\S+|HASH\(\w+\)|&#?\w+;| - (rpg map elements|clothing|body part)$", re.IGNORECASE)
DANGLING = re.compile(r"(?:\b(?:in|of|on|with|for|and|to|by)\b\s*)+$")
NEEDS = {"needs fonts": re.compile(r"<(\w+:)?text[\s>]"), "embeds pixels": re.compile(r"<(\w+:)?image[\s>]")}
METADATA = re.compile(r"<metadata.*?</metadata>|<!--.*?-->|\s+", re.DOTALL)
SHARED_TITLE = 5  # files; a title with more names a collection, unless the file is called so too
MAX_WORDS = 7


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one file says about itself: `path` below the library's root, the SVG, and the fields of its RDF."""

    path: str
    svg: str
    title: str
    author: str
    keywords: tuple[str, ...]

    @property
    def is_flag(self) -> bool:
        return "/flags/" in self.path or "flag" in self.keywords


def read_work(path: str, svg: bytes) -> Work | None:
    """None where the file is no well-formed XML."""
    try:
        root = ET.fromstring(svg)
    except ET.ParseError:
        return None
    fields = {
        element.tag.rpartition("}")[2]: [text.strip() for text in element.itertext() if text.strip()]
        for work in root.iter()
        if work.tag.endswith("}Work")
        for element in work
    }
    return Work(
        path=path,
        svg=svg.decode("utf-8", errors="replace"),
        title=" ".join(fields.get("title", [])),
        author=" ".join(fields.get("creator", [])),
        keywords=tuple(word.lower() for word in fields.get("subject", [])),
    )


def clipart_pieces(archive: Path, rejects: Rejects) -> list[Piece]:
    """Every usable drawing of the Debian package, flags capped."""
    works = list(_read_works(archive, rejects))
    titles = Counter(work.title for work in works)
    pieces, seen = [], set()
    for work in works:
        body = METADATA.sub("", work.svg)
        label = label_of(work, titles[work.title])
        reason = "twin of another" if body in seen else _objection(work, label)
        seen.add(body)
        if reason is None:
            pieces.append(_piece(work, label))
        else:
            rejects.add(reason, work.path)
    return cap_flags(pieces, rejects)


def _read_works(archive: Path, rejects: Rejects) -> Iterator[Work]:
    for name, svg in members(archive, lambda name: name.startswith(ROOT) and name.endswith(".svg")):
        path = name.removeprefix(ROOT)
        if SKIPPED_FOLDERS.match(path):
            rejects.add("generated, a part, or an icon theme", path)
        elif (work := read_work(path, svg)) is None:
            rejects.add("not well-formed", path)
        else:
            yield work


def _objection(work: Work, label: str) -> str | None:
    words = set(slug(f"{work.title} {work.path} {' '.join(work.keywords)}").split("-"))
    if words & SKIPPED_WORDS:
        return "marks, persons, unsuitable"
    for reason, pattern in NEEDS.items():
        if pattern.search(work.svg):
            return reason
    if len(slug(label)) < 3:
        return "no title, or none in English"
    return None if len(label.split()) <= MAX_WORDS else "title too long"


def label_of(work: Work, files_with_title: int) -> str:
    """What the drawing shows, in lower case: from its title, its file's name or its keywords; "" where none says so."""
    if OTHER_LANGUAGES.search(work.author):
        return next((word for word in useful_keywords(work) if word not in VAGUE_KEYWORDS), "")
    stem = PurePosixPath(work.path).stem
    words = title_words(work.title, work.author)
    collection = files_with_title > SHARED_TITLE and not any(slug(word) in stem.lower() for word in words)
    if collection or work.title.startswith("Clipart by") or not words:
        words = title_words(stem, work.author)
    label = DANGLING.sub("", " ".join(words)).strip()
    if work.is_flag and label and "flag" not in label:
        label = f"flag of {label}"
    colourless = BLACK_AND_WHITE.search(work.title) or BLACK_AND_WHITE.search(stem.replace("_", " "))
    return f"{label} in black and white" if colourless and label else label


def title_words(text: str, author: str) -> list[str]:
    """Lower-case words without numbers, empty words and whatever follows once the author's name begins."""
    text = BLACK_AND_WHITE.sub(" ", NOISE.sub(" ", text.replace("_", " ")))
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    names = [name for name in slug(author).split("-") if len(name) > 2]
    words = []
    for word in re.findall(r"[^\W\d_]+(?:'[a-z]+)?", text.lower()):
        plain = slug(word)
        if len(plain) >= 4 and any(name.startswith(plain) for name in names):
            break
        if len(plain) > 1 and (plain not in EMPTY_WORDS or (plain == "of" and words)):
            words.append(word)
    return words


def useful_keywords(work: Work) -> list[str]:
    """Single words that are no file plumbing and not the author's name."""
    names = set(slug(work.author).split("-"))
    return [word for word in work.keywords if re.fullmatch(r"[a-z]{3,14}", word) and word not in EMPTY_KEYWORDS | names]


def _piece(work: Work, label: str) -> Piece:
    concept = slug(label.removesuffix(" in black and white"))
    named = work.is_flag or work.path.startswith("geography/") or "/weather/" in work.path  # no "a brazil", "a cloudy"
    return Piece(
        file_name=f"{STYLE.folder}/{work.path.removesuffix('.svg')}.png",
        content=work.svg,
        make=render_cropped,
        captions=styled_captions(label, STYLE, useful_keywords(work), countable=not named),
        split=split_of(concept),
        style=STYLE.name,
        concept=concept,
        licence=PACKAGE.licence,
        source=f"{PACKAGE.source}: {work.path}",
    )
