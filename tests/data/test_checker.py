"""The checker: right on true drawings, blurred and noisy ones too, and not to be talked into a wrong caption."""

import io
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from data.checker import Verdict, check, relation_of, score
from data.reader import Found, read
from data.scene import COLOURS, INVERSE, SHAPES, SIZES, Item, Scene, caption_of, count_phrasings
from data.shapes import Drawing, ShapesConfig, draw
from data.tints import RGB


@cache
def drawings(size: int, count: int) -> tuple[Drawing, ...]:
    config = ShapesConfig(size=size, seed=21, held_out="include")
    return tuple(draw(config, index) for index in range(count))


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(image.width / 64))


def compressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file).convert("RGB")


def noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 10, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def halved(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2,) * 2, Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


# ---- true pictures


@pytest.mark.parametrize(("size", "count"), [(64, 250), (128, 100)])
def test_true_pictures_are_right(size: int, count: int):
    figures = score(check(d.image, d.scene) for d in drawings(size, count))
    assert min(figures.values()) >= 0.99, figures


def test_large_pictures_are_read_too():
    config = ShapesConfig(size=512)
    assert all(check(d.image, d.scene).correct for d in (draw(config, index) for index in range(8)))


@pytest.mark.parametrize("worsen", [blurred, compressed, noisy, halved])
def test_reconstructions_are_read(worsen):
    figures = score(check(worsen(d.image), d.scene) for d in drawings(64, 120))
    assert min(value for name, value in figures.items() if name != "correct") >= 0.95, figures
    assert figures["correct"] >= 0.9, figures


def test_every_combination_is_read():
    """One object of every colour and shape in every size, of which a few hundred pictures hold only a part."""
    config = ShapesConfig(max_objects=1, held_out="include", count=3000)
    firsts = {}
    for index in range(3000):
        drawing = draw(config, index)
        item = drawing.scene.items[0]
        firsts.setdefault((item.colour, item.shape, item.size), drawing)
    assert len(firsts) == len(COLOURS) * len(SHAPES) * len(SIZES)
    assert all(check(drawing.image, drawing.scene).correct for drawing in firsts.values())


def test_every_phrasing_judges_alike():
    for drawing in drawings(64, 12):
        for phrasing in range(count_phrasings(drawing.scene)):
            assert check(drawing.image, caption_of(drawing.scene, phrasing)).correct


def test_arrays_and_tensors_are_read_like_pictures():
    drawing = drawings(64, 12)[2]
    array = np.asarray(drawing.image).transpose(2, 0, 1) / 255
    found = read(drawing.image)
    assert read(array) == read(torch.from_numpy(array).float()) == found
    assert [thing.shape for thing in found] != []


def test_positions_are_measured():
    for drawing in drawings(64, 30):
        for item, here in zip(check(drawing.image, drawing.scene).items, drawing.placed, strict=True):
            assert math.hypot(item.found.x - here.x, item.found.y - here.y) < 0.15 * here.body.extent + 1 / 64
            assert item.found.extent == pytest.approx(here.body.extent, rel=0.1)


# ---- wrong captions


def with_first(scene: Scene, **changes: str) -> Scene:
    return Scene((replace(scene.items[0], **changes), *scene.items[1:]), scene.relation)


def other(value: str, values: tuple[str, ...]) -> str:
    return values[(values.index(value) + 1) % len(values)]


@pytest.mark.parametrize(("field", "names"), [("colour", COLOURS), ("shape", SHAPES), ("size", SIZES)])
def test_a_wrong_word_is_noticed_and_named(field: str, names: tuple[str, ...]):
    for drawing in drawings(64, 40):
        wrong = with_first(drawing.scene, **{field: other(getattr(drawing.scene.items[0], field), names)})
        verdict = check(drawing.image, wrong)
        assert not verdict.correct
        answers = [getattr(item, name) for item in verdict.items for name in ("colour", "shape", "size")]
        assert answers.count(False) == 1
        assert [getattr(item, field) for item in verdict.items].count(False) == 1


def test_a_wrong_relation_is_noticed():
    pairs = [d for d in drawings(64, 100) if d.scene.relation]
    assert len(pairs) > 20
    for drawing in pairs:
        told = {r: check(drawing.image, Scene(drawing.scene.items, r)) for r in INVERSE}
        assert [r for r, verdict in told.items() if verdict.correct] == [drawing.scene.relation]
        assert all(verdict.relation is (r == drawing.scene.relation) for r, verdict in told.items())


def test_a_missing_object_is_wrong_in_everything():
    drawing = next(d for d in drawings(64, 40) if len(d.scene.items) == 1)
    extra = Item(other(drawing.scene.items[0].colour, COLOURS), drawing.scene.items[0].shape, "small")
    verdict = check(drawing.image, Scene((extra, *drawing.scene.items), "above"))
    assert (verdict.count, verdict.relation, verdict.correct) == (False, False, False)
    missing, present = verdict.items
    assert missing.found is None
    assert (missing.colour, missing.shape, missing.size) == (False, False, False)
    assert (present.colour, present.shape, present.size) == (True, True, True)


def test_an_object_too_many_is_wrong():
    drawing = next(d for d in drawings(64, 40) if len(d.scene.items) == 3)
    verdict = check(drawing.image, Scene(drawing.scene.items[:2]))
    assert all(item.colour and item.shape and item.size for item in verdict.items)
    assert not verdict.count
    assert not verdict.correct


def test_sizes_left_unsaid_are_not_judged():
    drawing = drawings(64, 12)[0]
    assert check(drawing.image, Scene(tuple(replace(i, size=None) for i in drawing.scene.items))).correct


# ---- pictures that are no drawings


def test_an_empty_picture_holds_nothing():
    assert read(torch.full((3, 64, 64), 0.5)) == []
    assert check(torch.zeros(3, 64, 64), "a red circle").items[0].found is None


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_no_object(seed: int):
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed))
    assert not check(picture, "a red circle").correct


def test_a_bar_is_an_object_without_a_shape():
    picture = np.full((3, 64, 64), 0.9)
    picture[:2, 30:34, 8:56] = 0.1
    (bar,) = read(picture)
    assert (bar.colour, bar.shape, bar.size) == ("blue", None, None)
    assert (bar.x, bar.y) == pytest.approx((0.5, 0.5))


def test_a_background_in_the_colour_of_an_object_is_survived():
    picture = Image.new("RGB", (64, 64), RGB["black"])
    picture.paste((75, 75, 78), (20, 20, 40, 40))
    (thing,) = read(picture)
    assert (thing.x, thing.y) == pytest.approx((30 / 64, 30 / 64), abs=0.01)


@pytest.mark.parametrize("shape", [(64, 64, 3), (64, 64), (1, 3, 64, 64), (4, 64, 64)])
def test_other_layouts_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"expected \(3, H, W\)"):
        read(np.zeros(shape))


def test_oblong_pictures_are_refused():
    with pytest.raises(ValueError, match="64 x 32 pixels; expected a square"):
        read(Image.new("RGB", (64, 32)))


def test_sentences_outside_the_grammar_are_refused():
    with pytest.raises(ValueError, match="no item"):
        check(Image.new("RGB", (64, 64)), "a dog")


# ---- figures


def test_relation_of():
    def at(x: float, y: float) -> Found:
        return Found("red", "circle", "small", x, y, 0.2, 1.0)

    assert relation_of(at(0.2, 0.5), at(0.8, 0.6)) == "left of"
    assert relation_of(at(0.8, 0.5), at(0.2, 0.6)) == "right of"
    assert relation_of(at(0.5, 0.2), at(0.6, 0.8)) == "above"
    assert relation_of(at(0.5, 0.8), at(0.6, 0.2)) == "below"


def test_score_counts_objects_and_pictures():
    one, two = (next(d for d in drawings(64, 40) if len(d.scene.items) == n) for n in (1, 2))
    wrong = with_first(one.scene, colour=other(one.scene.items[0].colour, COLOURS))
    figures = score([check(one.image, wrong), check(two.image, two.scene)])
    assert figures == {
        "colour": 2 / 3,
        "shape": 1.0,
        "size": 1.0,
        "colour_and_shape": 2 / 3,
        "count": 1.0,
        "relation": 1.0,
        "correct": 0.5,
    }


def test_score_of_nothing_is_not_a_number():
    assert all(math.isnan(value) for value in score([]).values())
    assert math.isnan(score([Verdict((), True, None)])["relation"])
