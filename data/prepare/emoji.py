"""Emoji in seven hands: about 1,600 concepts, most of them drawn in five or more styles, joined to English labels.

Names and tags come from emojibase-data. A drawing finds its label through its hexcode (without the variation selector
FE0F), or through the slug of its name. Skin tones, mirrored twins and most flags are left out.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data.prepare.archives import members
from data.prepare.build import Piece, Rejects
from data.prepare.flags import cap_flags
from data.prepare.packages import Package
from data.prepare.render import render_frame, render_raster
from data.prepare.splits import split_of
from data.prepare.wording import Style, slug, styled_captions, word_set

SKIN_TONE = re.compile(r"1f3f[b-f]|skin-tone|-tone\d|-(?:light|medium|dark)$")
SKIPPED_GROUPS = frozenset({"component"})  # swatches of skin and hair
SKIPPED_CONCEPTS = frozenset({"joker", "flower-playing-cards", "mahjong-red-dragon"})
# An article before these reads well; before most symbols, faces apart, it does not.
COUNTABLE_GROUPS = word_set("people-body animals-nature food-drink travel-places activities objects")
COUNTABLE_HEADS = word_set(
    "face heart cat monkey skull ghost alien robot button sign mark arrow bubble circle square diamond triangle"
)


@dataclass(frozen=True, kw_only=True)
class EmojiSet:
    """One package drawn in one style: Iconify's JSON of SVGs, or webp pictures named by their hexcode."""

    package: Package
    style: Style
    form: str = "iconify"

    def __post_init__(self) -> None:
        if self.form not in ("iconify", "webp"):
            raise ValueError(f"{self.package.name}: form must be 'iconify' or 'webp', got {self.form!r}")


def _npm(name: str, version: str, licence: str, sha256: str) -> Package:
    file = f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    return Package(client="npm", name=name, version=version, file=file, sha256=sha256, licence=licence)


LABELS = _npm("emojibase-data", "17.0.0", "MIT", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")
FLUENT_3D = _npm(
    "@lobehub/fluent-emoji-3d", "1.1.0", "MIT", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
)
FLUENT_FLAT = _npm(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "MIT",
    "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
)
NOTO = _npm(
    "@iconify-json/noto", "1.2.9", "Apache-2.0", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"
)
BLOB = _npm(
    "@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"
)
TWEMOJI = _npm(
    "@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"
)
EMOJIONE = _npm(
    "@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"
)
STREAMLINE = _npm(
    "@iconify-json/streamline-emojis",
    "1.2.4",
    "CC-BY-4.0",
    "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
)
SETS = (
    EmojiSet(package=FLUENT_3D, style=Style(name="3D render", phrase="a 3D render of {}"), form="webp"),
    EmojiSet(package=FLUENT_FLAT, style=Style(name="flat style", phrase="a flat drawing of {}")),
    EmojiSet(package=NOTO, style=Style(name="noto style", phrase="a noto drawing of {}")),
    EmojiSet(package=BLOB, style=Style(name="blob style", phrase="a blob drawing of {}")),
    EmojiSet(package=TWEMOJI, style=Style(name="twemoji style", phrase="a twemoji drawing of {}")),
    EmojiSet(package=EMOJIONE, style=Style(name="emojione style", phrase="an emojione drawing of {}")),
    EmojiSet(package=STREAMLINE, style=Style(name="outline style", phrase="an outline drawing of {}")),
)


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """A concept: `label` in plain words, `tags` about it, `group` as "food-drink"."""

    label: str
    tags: tuple[str, ...]
    group: str

    @property
    def concept(self) -> str:
        return slug(self.label)

    @property
    def countable(self) -> bool:
        return self.group in COUNTABLE_GROUPS or self.label.split()[-1] in COUNTABLE_HEADS


class Labels:
    """Finds the emoji that a hexcode or a set's own name stands for."""

    def __init__(
        self, entries: Iterable[Mapping[str, Any]], groups: Sequence[str], nicknames: Iterable[Mapping]
    ) -> None:
        self.by_hexcode: dict[str, Emoji] = {}
        self.by_name: dict[str, Emoji] = {}
        for entry in entries:
            if "group" in entry:  # the letters that flags are spelled with have none
                self._add(entry, groups[entry["group"]])
        for table in nicknames:
            for hexcode, names in table.items():
                self._add_nicknames(plain_hexcode(hexcode), [names] if isinstance(names, str) else names)

    def _add(self, entry: Mapping[str, Any], group: str) -> None:
        emoji = Emoji(label=plain_label(entry["label"]), tags=tuple(entry.get("tags", ())), group=group)
        self.by_hexcode[plain_hexcode(entry["hexcode"])] = emoji
        self.by_name[slug(entry["label"])] = emoji

    def _add_nicknames(self, hexcode: str, names: Iterable[str]) -> None:
        """A label's own name goes before another emoji's nickname."""
        if hexcode in self.by_hexcode:
            for name in names:
                self.by_name.setdefault(slug(name), self.by_hexcode[hexcode])

    @classmethod
    def read(cls, archive: Path) -> "Labels":
        """From the emojibase-data package."""
        wanted = re.compile(r"package/en/(data|messages|shortcodes/(emojibase|github|iamcal))\.json$")
        files = {PurePosixPath(name).stem: json.loads(raw) for name, raw in members(archive, wanted.match)}
        groups = [group["key"] for group in sorted(files["messages"]["groups"], key=lambda group: group["order"])]
        return cls(files["data"], groups, [files[name] for name in ("emojibase", "github", "iamcal")])

    def find(self, hexcodes: Iterable[str], names: Iterable[str]) -> Emoji | None:
        """The emoji of the first hexcode that is known, else of the first name; None where there is none."""
        for hexcode in hexcodes:
            if plain_hexcode(hexcode) in self.by_hexcode:
                return self.by_hexcode[plain_hexcode(hexcode)]
        for name in names:
            for spelling in spellings(name):
                if spelling in self.by_name:
                    return self.by_name[spelling]
        return None


def plain_hexcode(hexcode: str) -> str:
    """Upper case, without the variation selector that some sets write and others do not."""
    return hexcode.upper().replace("-FE0F", "")


def spellings(name: str) -> list[str]:
    """Ways a set may have written the slug of a label: numbered variants, flags with and without their prefix."""
    unnumbered = re.sub(r"-\d$", "", name)
    country = re.sub(r"^flag-for-(flag-)?", "", unnumbered)
    return [name, unnumbered, f"flag-{country}"]


def plain_label(label: str) -> str:
    """Plain words for "flag: France" (flag of France) and "man: beard" (man with beard), and plain quotes."""
    label = label.replace("’", "'").replace("“", "").replace("”", "")
    kind, colon, rest = label.partition(": ")
    if not colon:
        return label
    if kind in ("man", "woman", "person"):
        return f"bald {kind}" if rest == "bald" else f"{kind} with {rest}"
    return {"flag": f"flag of {rest}", "keycap": f"keycap {rest}"}.get(kind, f"{kind}, {rest}")


def emoji_pieces(files: Mapping[str, Path], sets: Sequence[EmojiSet], labels: Labels, rejects: Rejects) -> list[Piece]:
    """Every usable emoji of every set, flags capped. `files` maps package names to archives."""
    pieces = []
    for emoji_set in sets:
        archive = files[emoji_set.package.name]
        read = {"webp": _read_webp, "iconify": _read_iconify}[emoji_set.form]
        pieces += read(archive, emoji_set, labels, rejects)
    return cap_flags(pieces, rejects)


def _read_webp(archive: Path, emoji_set: EmojiSet, labels: Labels, rejects: Rejects) -> Iterator[Piece]:
    for name, content in members(archive, lambda name: name.endswith(".webp")):
        hexcode = PurePosixPath(name).stem
        emoji = labels.find([hexcode], [])
        if emoji := _usable(emoji, hexcode, f"{emoji_set.style.folder}/{hexcode}", rejects):
            yield _piece(emoji, emoji_set, f"{emoji.concept}-{hexcode}", content)


def _read_iconify(archive: Path, emoji_set: EmojiSet, labels: Labels, rejects: Rejects) -> Iterator[Piece]:
    files = dict(members(archive, re.compile(r"package/(icons|chars)\.json$").match))
    icons = json.loads(files["package/icons.json"])
    hexcodes, aliases = defaultdict(list), defaultdict(list)
    for hexcode, name in json.loads(files.get("package/chars.json", b"{}")).items():
        hexcodes[name].append(hexcode)
    for alias, target in icons.get("aliases", {}).items():
        if target.keys() == {"parent"}:  # others are mirrored or turned
            aliases[target["parent"]].append(alias)
    for name, icon in icons["icons"].items():
        where = f"{emoji_set.style.folder}/{name}"
        if icon.get("hidden"):
            rejects.add("withdrawn by its set", where)
            continue
        emoji = labels.find(hexcodes[name], [name, *aliases[name]])
        if emoji := _usable(emoji, name, where, rejects):
            yield _piece(emoji, emoji_set, name, iconify_svg(icons, icon))


def _usable(emoji: Emoji | None, name: str, where: str, rejects: Rejects) -> Emoji | None:
    if emoji is None:
        rejects.add("skin tone" if SKIN_TONE.search(name) else "no label found", where)
    elif emoji.group in SKIPPED_GROUPS or emoji.concept in SKIPPED_CONCEPTS:
        rejects.add("playing card or swatch", where)
    else:
        return emoji
    return None


def iconify_svg(icons: Mapping[str, Any], icon: Mapping[str, Any]) -> str:
    """The icon's body in an svg element; its frame falls back to the file's, then to Iconify's own defaults."""
    frame = {
        key: icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    }
    box = f"{frame['left']} {frame['top']} {frame['width']} {frame['height']}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}" '
        f'width="{frame["width"]}" height="{frame["height"]}">{icon["body"]}</svg>'
    )


def _piece(emoji: Emoji, emoji_set: EmojiSet, name: str, content: str | bytes) -> Piece:
    style, package = emoji_set.style, emoji_set.package
    return Piece(
        file_name=f"{style.folder}/{name}.png",
        content=content,
        make=render_raster if isinstance(content, bytes) else render_frame,
        captions=styled_captions(emoji.label, style, emoji.tags, countable=emoji.countable),
        split=split_of(emoji.concept),
        style=style.name,
        concept=emoji.concept,
        licence=package.licence,
        source=f"{package.source}: {name}",
    )
