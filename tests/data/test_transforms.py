"""Augmentations and the evaluation crop, read off pictures whose pixels carry their own coordinates."""

import numpy as np
import pytest
import torch
from PIL import Image

from data import transforms
from data.transforms import evaluation_crop, prior_augmentation, tokenizer_augmentation


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinates(width: int, height: int) -> Image.Image:
    """Red is x, green is y."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def values(image: Image.Image) -> torch.Tensor:
    """(3, H, W), 0 to 255."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def same(picture: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether floats in [0, 1] are these values of 0 to 255, but for the last bits."""
    return bool((picture * 255 - expected).abs().max() < 1e-4)


def first_pixel(picture: torch.Tensor) -> tuple[int, int]:
    return round(picture[0, 0, 0].item() * 255), round(picture[1, 0, 0].item() * 255)


AUGMENTATIONS = [tokenizer_augmentation, prior_augmentation]


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(64, 64), (64, 200), (201, 64), (33, 40), (65, 64), (300, 171), (1, 1), (1, 9)])
def test_shape_range_and_purity(augment, shape):
    image = noise(*shape)
    before = image.tobytes()
    picture = augment(image, 64, seeded(3))
    assert picture.shape == (3, 64, 64) == evaluation_crop(image, 64).shape
    assert picture.dtype == torch.float32
    assert 0 <= picture.min() <= picture.max() <= 1
    assert torch.equal(picture, augment(image, 64, seeded(3)))
    assert image.tobytes() == before


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_another_seed_another_view(augment):
    views = [augment(noise(300, 200), 64, seeded(seed)) for seed in range(4)]
    assert not any(torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])


def test_a_picture_of_the_right_size_is_not_touched(monkeypatch):
    image = noise(64, 64)
    exact = values(image)
    monkeypatch.delattr(transforms.F, "crop")
    monkeypatch.delattr(transforms.F, "resize")
    assert same(evaluation_crop(image, 64), exact)
    assert all(same(prior_augmentation(image, 64, seeded(seed)), exact) for seed in range(20))
    flipped = [same(tokenizer_augmentation(image, 64, seeded(seed)), exact.flip(-1)) for seed in range(40)]
    plain = [same(tokenizer_augmentation(image, 64, seeded(seed)), exact) for seed in range(40)]
    assert all(a != b for a, b in zip(flipped, plain, strict=True))
    assert 8 < sum(flipped) < 32


def recorded_sides(monkeypatch, augment, shape, size, n=400) -> set[int]:
    sides = set()
    resize = transforms.F.resize

    def spy(image, target, **settings):
        sides.add(target[0])
        return resize(image, target, **settings)

    monkeypatch.setattr(transforms.F, "resize", spy)
    for seed in range(n):
        augment(Image.new("RGB", shape), size, seeded(seed))
    return sides


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((100, 120), 64, set(range(72, 97))),  # 9/8 and 3/2 of 64
        ((90, 200), 64, set(range(72, 90))),  # s itself needs no resizing
        ((70, 70), 64, set()),
        ((50, 80), 64, {64}),
        ((13, 13), 8, {9, 10, 11, 12}),
    ],
)
def test_sides_of_the_tokenizer_augmentation(monkeypatch, shape, size, expected):
    assert recorded_sides(monkeypatch, tokenizer_augmentation, shape, size) == expected


def test_sides_of_the_paper(monkeypatch):
    sides = recorded_sides(monkeypatch, tokenizer_augmentation, (400, 390), 256, n=120)
    assert sides <= set(range(288, 385)) and min(sides) < 292 and max(sides) > 380
    assert recorded_sides(monkeypatch, prior_augmentation, (400, 390), 256, n=3) == {288}


@pytest.mark.parametrize(
    ("shape", "expected"), [((100, 120), {72}), ((72, 99), set()), ((66, 66), set()), ((50, 80), {64})]
)
def test_sides_of_the_prior_augmentation(monkeypatch, shape, expected):
    assert recorded_sides(monkeypatch, prior_augmentation, shape, 64, n=20) == expected


def test_where_the_first_crop_begins():
    wide, tall = coordinates(96, 32), coordinates(32, 96)  # s is size: nothing is resized
    drawn = [first_pixel(prior_augmentation(wide, 32, seeded(seed)))[0] for seed in range(400)]
    assert set(drawn) == set(range(24, 41))  # 3/8 to 5/8 of 64
    drawn = [first_pixel(prior_augmentation(tall, 32, seeded(seed)))[1] for seed in range(400)]
    assert set(drawn) == set(range(24, 41))
    left_edges = [round(tokenizer_augmentation(wide, 32, seeded(seed))[0].min().item() * 255) for seed in range(700)]
    assert set(left_edges) == set(range(65))
    assert first_pixel(evaluation_crop(wide, 32)) == (32, 0)
    assert first_pixel(evaluation_crop(tall, 32)) == (0, 32)


def test_where_the_last_crop_begins():
    square = coordinates(36, 36)  # 9/8 of 32: cropped, not resized
    drawn = {first_pixel(prior_augmentation(square, 32, seeded(seed))) for seed in range(400)}
    assert drawn == {(x, y) for x in range(5) for y in range(5)}


def test_the_prior_never_flips_and_the_tokenizer_does_every_other_time():
    image = coordinates(120, 100)
    ascending = [
        [bool(view[0, 0, 0] < view[0, 0, -1]) for view in (augment(image, 64, seeded(s)) for s in range(200))]
        for augment in AUGMENTATIONS
    ]
    assert 70 < sum(ascending[0]) < 130
    assert all(ascending[1])
    assert evaluation_crop(image, 64)[0, 0, 0] < evaluation_crop(image, 64)[0, 0, -1]
    for seed in range(20):  # never upside down
        assert tokenizer_augmentation(image, 64, seeded(seed))[1, 0, 0] < 0.5


def test_reduction_averages_areas():
    image = noise(96, 96)
    blocks = np.array(image).reshape(32, 3, 32, 3, 3).mean(axis=(1, 3))
    expected = torch.from_numpy(blocks).permute(2, 0, 1)
    assert (evaluation_crop(image, 32) * 255 - expected).abs().max() <= 1.01  # rounded once for each axis


def test_enlargement_is_smooth_and_keeps_flat_colours():
    flat = evaluation_crop(Image.new("RGB", (10, 10), (10, 200, 77)), 64)
    assert same(flat, values(Image.new("RGB", (64, 64), (10, 200, 77))))
    ramp = evaluation_crop(coordinates(32, 32), 64)[0, 20]
    assert (ramp[8:56].diff() * 255).max() <= 1.01  # blocks would step by 0 and 1, never more; edges overshoot
    assert len(ramp.unique()) > 25


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_modes_are_refused(mode):
    with pytest.raises(ValueError, match=f"mode is {mode}, expected RGB"):
        evaluation_crop(Image.new(mode, (64, 64)), 64)
