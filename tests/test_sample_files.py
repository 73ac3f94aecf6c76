import json
import string
from dataclasses import replace

import pytest
from PIL import Image

from grids import save_png
from sample_files import Sample, slug, write_grid
from transformer.sampling import SamplingConfig

ODD = [
    "../../etc/passwd",
    "a/b\\c:*?",
    "猫",
    "🐈",
    ".",
    "x" * 5000,
    "a red circle!",
    "A red circle",
    "a-red-circle",
    "\ud800",
]

SAMPLE = Sample("a größer circle", 7, SamplingConfig(top_p=0.9), "0123456789abcdef")
CHANGES = [
    {"caption": "a größer circle!"},
    {"seed": 8},
    {"config": SamplingConfig(top_p=0.9, guidance_schedule="cosine")},
    {"model": "0123456789abcde0"},
    {"weights": "int8"},
]


@pytest.fixture
def picture() -> Image.Image:
    return Image.effect_noise((32, 32), 64).convert("RGB")


def test_slugs_are_readable_and_unlike():
    assert slug("a red circle 2") == "a-red-circle-2"
    slugs = {slug(caption) for caption in [*ODD[:-1], "a red circle", "a--red circle", "a red circle.", "caption", ""]}
    assert len(slugs) == 14
    assert {each[0] for each in slugs} <= set(string.ascii_lowercase + string.digits), "none may pass for an option"
    assert slug("猫").startswith("caption--")


def test_what_is_saved_is_there(tmp_path, picture):
    assert not SAMPLE.is_in(tmp_path)
    SAMPLE.save(picture, tmp_path)
    assert SAMPLE.is_in(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [SAMPLE.name]
    with Image.open(tmp_path / SAMPLE.name) as written:
        assert written.tobytes() == picture.tobytes()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "".join(change))
def test_another_picture_under_the_same_name_is_not_it(tmp_path, picture, change):
    """As in a copy that was renamed; names hold eight digits of the model's sixteen only."""
    other = replace(SAMPLE, **change)
    other.save(picture, tmp_path)
    (tmp_path / other.name).rename(tmp_path / SAMPLE.name)
    assert not SAMPLE.is_in(tmp_path)
    SAMPLE.save(picture, tmp_path)
    assert SAMPLE.is_in(tmp_path)


def test_files_of_earlier_versions_are_of_float32_weights(tmp_path, picture):
    said = {name: text for name, text in SAMPLE.metadata.items() if name != "weights"}
    save_png(picture, tmp_path / SAMPLE.name, said)
    assert SAMPLE.is_in(tmp_path)
    narrow = replace(SAMPLE, weights="int8")
    (tmp_path / SAMPLE.name).rename(tmp_path / narrow.name)
    assert not narrow.is_in(tmp_path)


@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99])
def test_part_of_a_file_is_not_it(tmp_path, picture, part):
    SAMPLE.save(picture, tmp_path)
    content = (tmp_path / SAMPLE.name).read_bytes()
    (tmp_path / SAMPLE.name).write_bytes(content[: int(part * len(content))])
    assert not SAMPLE.is_in(tmp_path)


def test_a_damaged_file_is_not_it(tmp_path, picture):
    SAMPLE.save(picture, tmp_path)
    content = bytearray((tmp_path / SAMPLE.name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / SAMPLE.name).write_bytes(content)
    assert not SAMPLE.is_in(tmp_path)


def test_a_picture_without_metadata_is_not_it(tmp_path, picture):
    picture.save(tmp_path / SAMPLE.name)
    assert not SAMPLE.is_in(tmp_path)


def test_the_grid_shows_the_files(tmp_path):
    """Colours that come back from the grid where the pictures stand."""
    samples = [replace(SAMPLE, caption=caption, seed=seed) for caption in ("one", "two") for seed in (0, 1)]
    for sample, colour in zip(samples, ("red", "lime", "blue", "white"), strict=True):
        sample.save(Image.new("RGB", (128, 128), colour), tmp_path)
    path = write_grid(samples, tmp_path)
    with Image.open(path) as grid:
        assert [grid.getpixel((x, 60)) for x in (60, 192, 324)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
        assert json.loads(grid.text["captions"]) == ["one", "two"]
    listed = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert [row["file"] for row in listed["pictures"]] == [sample.name for sample in samples]
    assert len(list(tmp_path.iterdir())) == 4 + 2
