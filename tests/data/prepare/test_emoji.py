import csv
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data.prepare.build import BuildSettings, Piece, Rejects
from data.prepare.emoji import EmojiSet, Labels, iconify_svg, plain_label, spellings
from data.prepare.flags import cap_flags
from data.prepare.recipes import prepare_emoji
from data.prepare.splits import split_of
from data.prepare.wording import Style

GROUPS = ["smileys-emotion", "people-body", "component", "food-drink", "flags", "activities"]
ENTRIES = [
    {"label": "red apple", "hexcode": "1F34E", "tags": ["fruit", "food", "diet"], "group": 3},
    {"label": "bear", "hexcode": "1F43B", "tags": ["face"], "group": 3},
    {"label": "red heart", "hexcode": "2764-FE0F", "tags": ["love"], "group": 0},
    {"label": "flag: Côte d’Ivoire", "hexcode": "1F1E8-1F1EE", "group": 4},
    {"label": "light skin tone", "hexcode": "1F3FB", "group": 2},
    {"label": "joker", "hexcode": "1F0CF", "group": 5},
    {"label": "regional indicator A", "hexcode": "1F1E6"},
]
NICKNAMES = {"1F34E": ["apple", "crimson_fruit"], "2764": "heart", "1F9FF": ["unknown"]}


@pytest.fixture
def labels():
    return Labels(ENTRIES, GROUPS, [NICKNAMES])


@pytest.fixture
def label_package(fakes):
    return fakes.npm(
        "emojibase-data",
        {
            "package/en/data.json": ENTRIES,
            "package/de/data.json": [{"label": "roter Apfel", "hexcode": "1F34E", "group": 3}],
            "package/en/messages.json": {"groups": [{"key": key, "order": i} for i, key in enumerate(GROUPS)][::-1]},
            "package/en/shortcodes/github.json": NICKNAMES,
            "package/en/shortcodes/iamcal.json": {},
            "package/en/shortcodes/emojibase.json": {},
            "package/evil.js": "process.exit(1)",
        },
    )


@pytest.mark.parametrize(
    ("hexcodes", "names", "label"),
    [
        (["1f34e"], [], "red apple"),
        (["2764"], [], "red heart"),
        (["2764-fe0f"], [], "red heart"),
        (["ffff", "1f43b"], [], "bear"),
        ([], ["red-apple"], "red apple"),
        ([], ["red-apple-2"], "red apple"),
        ([], ["bear-face", "bear"], "bear"),
        ([], ["crimson-fruit"], "red apple"),
        ([], ["flag-for-cote-divoire"], "flag of Côte d'Ivoire"),
        ([], ["flag-for-flag-cote-divoire"], "flag of Côte d'Ivoire"),
        ([], ["cote-divoire"], "flag of Côte d'Ivoire"),
    ],
)
def test_labels_are_found(labels, hexcodes, names, label):
    assert labels.find(hexcodes, names).label == label


def test_labels_that_are_none(labels):
    assert labels.find(["1f1e6"], ["no-such-thing", "unknown"]) is None


def test_labels_of_the_package_are_the_english_ones(fakes, label_package):
    found = Labels.read(fakes.folder / label_package.file).find(["1f34e"], [])
    assert (found.label, found.tags, found.group) == ("red apple", ("fruit", "food", "diet"), "food-drink")
    assert found.countable


@pytest.mark.parametrize(
    ("label", "plain"),
    [
        ("flag: France", "flag of France"),
        ("keycap: 1", "keycap 1"),
        ("man: beard", "man with beard"),
        ("woman: bald", "bald woman"),
        ("family: man, woman", "family, man, woman"),
        ("Japanese “secret” button", "Japanese secret button"),
        ("one o’clock", "one o'clock"),
    ],
)
def test_plain_label(label, plain):
    assert plain_label(label) == plain


def test_spellings_begin_with_the_name_itself():
    assert spellings("pool-8-ball")[0] == "pool-8-ball"
    assert "prince" in spellings("prince-2")


def test_iconify_frame_falls_back_from_icon_to_file_to_default():
    assert 'viewBox="0 0 16 16" width="16" height="16"' in iconify_svg({}, {"body": "b"})
    assert 'viewBox="0 0 32 48"' in iconify_svg({"width": 32, "height": 48}, {"body": "b"})
    svg = iconify_svg({"width": 32, "left": 2}, {"body": "<g/>", "width": 8, "top": -1})
    assert 'viewBox="2 -1 8 16" width="8"' in svg
    assert svg.endswith("><g/></svg>")


def flat(package):
    return EmojiSet(package=package, style=Style(name="flat style", phrase="a flat drawing of {}"))


def rendered(package):
    style = Style(name="3D render", phrase="a 3D render of {}")
    return EmojiSet(package=package, style=style, form="webp")


@pytest.fixture
def sets(fakes):
    names = ["red-apple", "bear-face", "red-heart", "thumbs-up-dark", "joker", "light-skin-tone", "mystery"]
    bodies = {name: {"body": f'<circle cx="8" cy="8" r="{place + 1}"/>'} for place, name in enumerate(names)}
    drawn = {
        "width": 16,
        "height": 16,
        "icons": {**bodies, "old-apple": {"body": "<g/>", "hidden": True}},
        "aliases": {"bear": {"parent": "bear-face"}, "left-apple": {"parent": "red-apple", "hFlip": True}},
    }
    files = {"package/icons.json": drawn, "package/chars.json": {"2764": "red-heart"}}
    webp = fakes.picture((0, 0, 255, 255), (32, 32), "WEBP")
    return [
        flat(fakes.npm("@iconify-json/flat", files)),
        rendered(fakes.npm("3d", {f"package/assets/{name}.webp": webp for name in ("1f34e", "1f34e-1f3fb", "1f0cf")})),
    ]


def test_prepare_emoji_from_end_to_end(fakes, label_package, sets, tmp_path):
    settings = BuildSettings(out=tmp_path / "out", size=32, workers=1)
    report = prepare_emoji(settings, fakes.folder, labels=label_package, sets=sets, clip_art=None)
    with (settings.out / "captions.csv").open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    files = {row["file_name"]: row for row in rows}
    assert sorted(files) == [
        "3d-render/red-apple-1f34e.png",
        "flat-style/bear-face.png",
        "flat-style/red-apple.png",
        "flat-style/red-heart.png",
    ]
    assert Counter(row["file_name"] for row in rows)["flat-style/red-apple.png"] >= 5
    assert {row["concept"] for row in rows} == {"red-apple", "bear", "red-heart"}
    assert all(row["split"] == split_of(row["concept"]) for row in rows)
    assert rows[0]["text"] == "red apple, flat style"
    apple = files["flat-style/red-apple.png"]
    assert (apple["licence"], apple["source"]) == ("MIT", "npm @iconify-json/flat 1.0.0: red-apple")
    assert {reason: found["count"] for reason, found in report["rejects"].items()} == {
        "skin tone": 2,
        "playing card or swatch": 3,
        "no label found": 1,
        "withdrawn by its set": 1,
    }
    blue = np.asarray(Image.open(settings.out / "3d-render/red-apple-1f34e.png"))
    assert np.abs(blue.astype(int) - (0, 0, 255)).max() <= 4  # webp has losses
    assert [package["name"] for package in report["packages"]] == ["emojibase-data", "@iconify-json/flat", "3d"]
    assert json.loads((settings.out / "recipe.json").read_text())["size"] == 32


def test_emoji_and_clip_art_share_a_folder_and_keep_their_splits(fakes, label_package, sets, tmp_path):
    settings = BuildSettings(out=tmp_path / "out", size=32, workers=1)
    prepare_emoji(settings, fakes.folder, labels=label_package, sets=sets, clip_art=None)
    alone = (settings.out / "captions.csv").read_text()
    root = "./usr/share/openclipart/svg/"
    clip_art = fakes.deb("openclipart-svg", {f"{root}food/red_apple_01.svg": fakes.clip_art("Red Apple")})
    report = prepare_emoji(settings, fakes.folder, labels=label_package, sets=sets, clip_art=clip_art)
    together = (settings.out / "captions.csv").read_text()
    assert together.startswith(alone)
    assert "clip-art/food/red_apple_01.png" in together
    assert report["styles"] == {"flat style": 3, "3D render": 1, "clip art": 1}
    assert report["concepts"] == 3


def test_unknown_form_of_a_set(fakes):
    with pytest.raises(ValueError, match=r"form must be.*'gif'"):
        EmojiSet(package=fakes.npm("x", {}), style=Style(name="x", phrase="{}"), form="gif")


def bare(concept, number):
    return Piece(
        file_name=f"{concept}-{number}.png",
        content=b"",
        make=bytes.fromhex,
        captions=(),
        split="train",
        style="flat style",
        concept=concept,
        licence="",
        source="",
    )


def test_flags_are_capped_by_whole_concepts():
    others = [bare("thing", number) for number in range(200)]
    flags = [bare(f"flag-of-{country}", number) for country in "abcdefgh" for number in range(3)]
    rejects = Rejects()
    kept = cap_flags([*flags, *others], rejects)
    count = Counter(piece.concept for piece in kept)
    assert count.pop("thing") == 200
    assert set(count.values()) == {3}
    assert len(count) == 3  # 9 of at most 10 = 5% of 200
    assert rejects.counts == {"flag above the cap": 15}
    assert kept == cap_flags([*flags, *others], Rejects())
