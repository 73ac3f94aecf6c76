"""The drawings: pure functions of (config, index), true to their captions, with nothing held out let through."""

import os
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from data.outlines import coverage, outlines_of, turned
from data.scene import COLOURS, HELD_OUT, SHAPES, SIZES, parse_caption
from data.shapes import EXTENT, GAP, MARGIN, Placed, ShapesConfig, ShapesSource, draw
from data.source import Source
from data.split import fingerprint
from data.tints import PATTERNS, VARIANTS, background, lab, tints_for

HERE = Path(__file__).parents[2]


def drawings(count: int, **settings):
    config = ShapesConfig(count=count, **settings)
    return [draw(config, index) for index in range(count)]


def pairs_of(drawing) -> set[tuple[str, str]]:
    return {(item.colour, item.shape) for item in drawing.scene.items}


def same(a, b) -> bool:
    return (a.image.tobytes(), a.scene, a.caption, a.placed) == (b.image.tobytes(), b.scene, b.caption, b.placed)


# ---- purity


def test_a_drawing_depends_on_seed_and_index_only():
    config = ShapesConfig(seed=4)
    forwards = [draw(config, index) for index in range(20)]
    backwards = [draw(ShapesConfig(seed=4, count=50), index) for index in reversed(range(20))][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_other_indices_and_seeds_are_other_drawings():
    pictures = {d.image.tobytes() for seed in (0, 1) for d in drawings(100, seed=seed)}
    assert len(pictures) == 200


def test_another_process_draws_the_same():
    code = (
        "import hashlib; from data.shapes import ShapesConfig, draw;"
        "d = [draw(ShapesConfig(seed=9), i) for i in range(5)];"
        "print(hashlib.sha256(b''.join(x.image.tobytes() + x.caption.encode() for x in d)).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=HERE,
            env=os.environ | {"PYTHONHASHSEED": salt},
            check=True,
            capture_output=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert len(digests) == 1


def test_golden_captions():
    """Reports name drawings by index: a change here makes old reports speak of other pictures."""
    assert [d.caption for d in drawings(4)] == [
        "a white arrow",
        "a medium brown arrow and a small yellow heart and a medium yellow triangle",
        "a drawing of a small pink triangle below a large orange diamond",
        "a small white diamond is above a small black ring",
    ]


@pytest.mark.parametrize("size", [16, 100, 512])
def test_the_scene_is_the_same_at_every_size(size: int):
    drawing, reference = draw(ShapesConfig(size=size), 7), draw(ShapesConfig(size=64), 7)
    assert drawing.image.size == (size, size)
    assert drawing.image.mode == "RGB"
    assert (drawing.scene, drawing.caption, drawing.placed) == (reference.scene, reference.caption, reference.placed)


def test_the_picture_is_the_same_at_every_size():
    small = np.asarray(draw(ShapesConfig(size=64, backgrounds="plain"), 7).image, dtype=float)
    large = np.asarray(draw(ShapesConfig(size=256, backgrounds="plain"), 7).image.reduce(4), dtype=float)
    assert np.abs(small - large).mean() < 1


# ---- what is drawn


@pytest.mark.parametrize("count", [1, 2, 3])
def test_number_of_objects(count: int):
    assert all(len(d.scene.items) == count for d in drawings(30, min_objects=count, max_objects=count))


def test_all_names_are_used_about_equally():
    items = [item for d in drawings(1500) for item in d.scene.items]
    for names, field in ((COLOURS, "colour"), (SHAPES, "shape")):
        counts = Counter(getattr(item, field) for item in items)
        assert set(counts) == set(names)
        assert min(counts.values()) > 0.75 * len(items) / len(names)
    assert {item.size for item in items} == set(SIZES)


def test_no_two_objects_of_a_picture_share_colour_and_shape():
    assert all(len(pairs_of(d)) == len(d.scene.items) for d in drawings(300, held_out="include"))


def test_held_out_is_excluded():
    assert not set.union(*(pairs_of(d) for d in drawings(1000))) & HELD_OUT


def test_held_out_only():
    seen = [pairs_of(d) & HELD_OUT for d in drawings(400, held_out="only")]
    assert all(len(pairs) == 1 for pairs in seen)
    assert set.union(*seen) == HELD_OUT


def test_held_out_included():
    pairs = set.union(*(pairs_of(d) for d in drawings(1500, held_out="include")))
    assert len(pairs) == len(COLOURS) * len(SHAPES)


def box(here: Placed) -> tuple[float, float, float, float]:
    half_width, half_height = here.body.width / 2, here.body.height / 2
    return here.x - half_width, here.y - half_height, here.x + half_width, here.y + half_height


def test_objects_stay_inside_and_apart():
    for drawing in drawings(400):
        boxes = [box(here) for here in drawing.placed]
        assert all(min(b) >= MARGIN - 1e-9 and max(b) <= 1 - MARGIN + 1e-9 for b in boxes)
        for a, b in combinations(boxes, 2):
            assert max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3]) >= GAP - 1e-9


def test_relations_are_true_beyond_doubt():
    seen = set()
    for drawing in drawings(300, min_objects=2, max_objects=2):
        first, second = drawing.placed
        dx, dy = second.x - first.x, second.y - first.y
        along, across = {
            "left of": (dx, dy),
            "right of": (-dx, dy),
            "above": (dy, dx),
            "below": (-dy, dx),
        }[drawing.scene.relation]
        assert along > 0
        assert abs(across) <= 0.5 * along + 1e-9
        seen.add(drawing.scene.relation)
    assert len(seen) == 4


def test_two_large_objects_fit():
    sizes = Counter(tuple(i.size for i in d.scene.items) for d in drawings(600, min_objects=2, max_objects=2))
    assert sizes["large", "large"] > 20


def test_sizes_are_what_they_are_called():
    for drawing in drawings(200):
        for here in drawing.placed:
            assert here.body.extent == pytest.approx(EXTENT[here.body.item.size], rel=0.05)


@pytest.mark.parametrize("backgrounds", ["plain", "mixed"])
def test_backgrounds(backgrounds: str):
    """Along the edge, where no object reaches, a plain background has one colour and others have several."""
    frames = [np.asarray(d.image)[0].tolist() for d in drawings(60, backgrounds=backgrounds)]
    several = sum(len({tuple(pixel) for pixel in frame}) > 1 for frame in frames)
    assert several == 0 if backgrounds == "plain" else 25 < several < 60


# ---- the source


def test_source_contract():
    source = ShapesSource(ShapesConfig(count=50))
    assert isinstance(source, Source)
    assert len(source) == 50
    assert source.key(12) == "shapes-000012"
    assert source.split(3) is None
    assert source.image(3).tobytes() == draw(source.config, 3).image.tobytes()


def test_the_fingerprint_is_that_of_the_config():
    first, again, other = (fingerprint(ShapesSource(ShapesConfig(seed=seed, count=10))) for seed in (0, 0, 1))
    assert first == again != other


def test_captions_are_all_phrasings_of_the_scene_and_the_drawn_one_comes_first():
    source = ShapesSource(ShapesConfig(count=60))
    for index in range(60):
        drawing, captions = draw(source.config, index), source.captions(index)
        assert captions[0] == drawing.caption
        assert len(set(captions)) == len(captions) >= 6
        assert all({(i.colour, i.shape) for i in parse_caption(c).items} == pairs_of(drawing) for c in captions)
        assert any(parse_caption(caption) == drawing.scene for caption in captions)


# ---- bad input


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"size": 15}, "size=15; expected 16 to 512"),
        ({"size": 513}, "size=513; expected 16 to 512"),
        ({"count": 0}, "count=0; expected at least 1"),
        ({"seed": -1}, "seed=-1; expected 0 or more"),
        ({"min_objects": 0}, "min_objects=0, max_objects=3; expected 1 <="),
        ({"max_objects": 4}, "min_objects=1, max_objects=4; expected 1 <="),
        ({"min_objects": 3, "max_objects": 2}, "min_objects=3, max_objects=2"),
        ({"held_out": "maybe"}, "held_out='maybe'; expected 'exclude'"),
        ({"backgrounds": "loud"}, "backgrounds='loud'; expected 'plain'"),
    ],
)
def test_bad_settings_are_refused(setting: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ShapesConfig(**setting)


@pytest.mark.parametrize("index", [-1, 10])
def test_indices_outside_are_refused(index: int):
    with pytest.raises(ValueError, match=f"index={index}; expected 0 to 9"):
        draw(ShapesConfig(count=10), index)
    with pytest.raises(ValueError, match=f"index={index}"):
        ShapesSource(ShapesConfig(count=10)).captions(index)


# ---- outlines


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_fill_the_unit_box(shape: str):
    outer = outlines_of(shape)[0]
    assert np.ptp(outer, axis=0).max() == pytest.approx(1)
    assert outer.max(axis=0) == pytest.approx(-outer.min(axis=0))
    tilted = turned(shape, 0.1)[0]
    assert tilted.max(axis=0) == pytest.approx(-tilted.min(axis=0))


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("square", 1.0),
        ("circle", np.pi / 4),
        ("ring", np.pi / 4 * (1 - 0.52**2)),
        ("diamond", 0.36),
        ("triangle", 0.46),
    ],
)
@pytest.mark.parametrize("extent", [12.8, 25.3, 150.0])
def test_coverage_sums_to_the_area(shape: str, area: float, extent: float):
    patch, _ = coverage(shape, (0.51, 0.47), extent / 256, 0.05, 256)
    assert np.asarray(patch).sum() / 255 == pytest.approx(area * extent**2, rel=0.04)


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_lies_where_it_should(shape: str):
    """Half a pixel to the right is half a pixel to the right: nothing is rounded to whole pixels."""
    centroids = []
    for x in (0.5, 0.5 + 0.5 / 64):
        patch, (left, _) = coverage(shape, (x, 0.5), 0.3, 0.0, 64)
        columns = np.asarray(patch, dtype=float).sum(axis=0)
        centroids.append(left + columns @ (np.arange(patch.width) + 0.5) / columns.sum())
    assert centroids[1] - centroids[0] == pytest.approx(0.5, abs=0.06)
    if shape not in ("crescent", "arrow"):  # the others are their own mirror images
        assert centroids[0] == pytest.approx(32, abs=0.1)


# ---- colours


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
    ],
)
def test_lab_against_published_values(rgb: tuple, expected: tuple):
    assert lab(np.array(rgb, dtype=float)) == pytest.approx(expected, abs=0.05)


def test_every_choice_of_colours_has_a_background():
    assert all(tints_for(colours) for colours in combinations(sorted(COLOURS), 3))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_faint(pattern: str):
    plain = lab(np.asarray(background(0, "plain", 0, 0, 64)) / 255)
    for variant in range(VARIANTS):
        difference = np.linalg.norm(lab(np.asarray(background(0, pattern, variant, 0, 64)) / 255) - plain, axis=-1)
        assert 3 < difference.max() < 12
