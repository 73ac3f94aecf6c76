"""JPEGs that are decoded at a fraction of their size, against the same files decoded whole."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from data.folder import FolderSource
from data.pictures import PictureError, Place, decode_picture, place_of
from data.samples import PictureReader
from data.transforms import evaluation_crop, least_side, prior_augmentation, tokenizer_augmentation

SIZE = 32
TRANSFORMS = [tokenizer_augmentation, prior_augmentation, evaluation_crop]


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Clouds of all sizes with sharp discs on them: smooth and hard at once, as photographs are."""
    rng = np.random.default_rng(seed)
    clouds = np.zeros((height, width, 3))
    for cells in (2, 4, 8, 16, 32):
        coarse = rng.uniform(-1, 1, (cells, cells, 3)) / cells
        layers = [Image.fromarray(coarse[..., c].astype(np.float32)).resize((width, height), 3) for c in range(3)]
        clouds += np.stack([np.asarray(layer) for layer in layers], axis=-1)
    image = Image.fromarray(np.clip(128 + 160 * clouds, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, r = rng.integers(0, width), rng.integers(0, height), rng.integers(3, min(width, height) // 5)
        draw.ellipse([int(x - r), int(y - r), int(x + r), int(y + r)], fill=tuple(map(int, rng.integers(0, 256, 3))))
    return image


def jpeg(image: Image.Image, orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, "exif": exif} | options)
    return buffer.getvalue()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def view(image: Image.Image, transform, seed: int) -> torch.Tensor:
    return transform(image, SIZE) if transform is evaluation_crop else transform(image, SIZE, seeded(seed))


def decibels(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * math.log10((a - b).square().mean().item())


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 60}, {"mode": "CMYK"}, {"mode": "L"}],
    ids=str,
)
def test_the_same_view_as_of_the_whole_picture(transform, options):
    image = scene(803, 601).convert(options.get("mode", "RGB"))
    data = jpeg(image, **{name: value for name, value in options.items() if name != "mode"})
    whole, reduced = decode_picture(data), decode_picture(data, least_side(SIZE, transform))
    assert whole.size == (803, 601) and max(reduced.size) <= 201
    for seed in range(8):
        assert decibels(view(whole, transform, seed), view(reduced, transform, seed)) > 40


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(803, 601), (601, 803), (800, 800)])
def test_turned_pictures_lie_where_they_did(orientation, shape):
    data = jpeg(scene(*shape), orientation)
    whole, reduced = decode_picture(data), decode_picture(data, least_side(SIZE, evaluation_crop))
    assert place_of(reduced).size == whole.size
    assert place_of(reduced).scale == 1 / 8
    for transform in TRANSFORMS[1:]:
        assert decibels(view(whole, transform, 5), view(reduced, transform, 5)) > 40


def test_a_shift_by_a_pixel_would_be_seen():
    data = jpeg(scene(803, 601))
    reduced = decode_picture(data, least_side(SIZE, evaluation_crop))
    moved = reduced.copy()
    moved.info = {key: value._replace(left=1.0) for key, value in reduced.info.items() if isinstance(value, Place)}
    assert decibels(evaluation_crop(decode_picture(data), SIZE), evaluation_crop(moved, SIZE)) < 30


@pytest.mark.parametrize(
    ("shape", "least", "expected"),
    [
        ((800, 600), 75, (100, 75)),
        ((800, 600), 76, (200, 150)),
        ((800, 600), 151, (400, 300)),
        ((800, 600), 301, (800, 600)),
        ((803, 601), 75, (101, 76)),
        ((800, 600), 10_000, (800, 600)),
        ((9, 9), 1, (2, 2)),
        ((1, 1), 1, (1, 1)),
    ],
)
def test_the_smallest_size_that_is_enough(shape, least, expected):
    reduced = decode_picture(jpeg(scene(*shape) if min(shape) > 20 else Image.new("RGB", shape)), least)
    assert reduced.size == expected
    assert place_of(reduced).size == shape


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("GIF", {})])
def test_other_formats_come_whole(kind, options):
    buffer = io.BytesIO()
    scene(200, 100).save(buffer, kind, **options)
    image = decode_picture(buffer.getvalue(), 10)
    assert image.size == (200, 100)
    assert place_of(image) == Place((200, 100), 1, 0, 0)


@pytest.mark.parametrize("progressive", [False, True])
def test_what_is_truncated_is_found_as_in_the_whole_picture(progressive):
    data = jpeg(scene(400, 300), progressive=progressive)

    def broken(cut: int, least: int | None) -> bool:
        try:
            decode_picture(data[:cut], least)
        except PictureError:
            return True
        return False

    cuts = [*range(1, len(data), len(data) // 60), len(data)]
    assert [broken(cut, 1) for cut in cuts] == [broken(cut, None) for cut in cuts] == [True] * (len(cuts) - 1) + [False]


def test_least_sides():
    assert [least_side(256, transform) for transform in TRANSFORMS] == [557, 418, 372]
    assert least_side(256, lambda image, size, generator: None) is None


def test_training_and_validation_read_reduced_pictures(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(jpeg(scene(803, 551)))
    source = FolderSource(tmp_path, need_captions=False)
    whole = source.image(0)
    seen = []
    resize = Image.Image.resize

    def recorded(image: Image.Image, *args: object, **options: object) -> Image.Image:
        seen.append(image.size)
        return resize(image, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    for transform in TRANSFORMS:
        reader = PictureReader(source, SIZE, None if transform is evaluation_crop else transform)
        assert decibels(reader(0, seeded(3))["images"], view(whole, transform, 3)) > 40
    assert seen[::2] == [(201, 138), (101, 69), (101, 69)]
