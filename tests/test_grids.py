from pathlib import Path

import pytest
from PIL import Image, ImageFont

from grids import FONT_SIZE, GAP, MAX_LINES, captioned_grid, reconstruction_grid, save_png, wrap

COLOURS = ["red", "green", "blue", "yellow", "purple"]


def solid(colour: str, side: int = 128) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def colour_at(sheet: Image.Image, x: int, y: int) -> tuple[int, ...]:
    return sheet.getpixel((x, y))


def rgb(colour: str) -> tuple[int, ...]:
    return solid(colour, 1).getpixel((0, 0))


def ink_rows(sheet: Image.Image, left: int, right: int) -> set[int]:
    """Rows with something dark between two columns."""
    return {y for y in range(sheet.height) if any(sum(colour_at(sheet, x, y)) < 200 for x in range(left, right))}


def test_single_pictures_stand_side_by_side_in_rows():
    sheet = captioned_grid([(name, [solid(name)]) for name in COLOURS], columns=3)
    assert sheet.width == 3 * 128 + 2 * GAP
    row = sheet.height // 2
    places = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]
    for name, (column, line) in zip(COLOURS, places, strict=True):
        assert colour_at(sheet, column * (128 + GAP) + 64, line * (row + GAP // 2) + 64) == rgb(name)


def test_a_group_shares_one_caption():
    sheet = captioned_grid([("one caption for the two", [solid("red"), solid("green")])], columns=8)
    assert sheet.width == 2 * 128 + GAP
    below = sheet.crop((0, 128, sheet.width, sheet.height))
    assert ink_rows(below, 0, below.width)


def test_a_group_larger_than_a_row_continues_below_it():
    sheet = captioned_grid([("five", [solid(name) for name in COLOURS])], columns=2)
    assert sheet.width == 2 * 128 + GAP
    assert colour_at(sheet, 64, 2 * (128 + GAP) + 64) == rgb(COLOURS[4])


def test_groups_of_different_sizes_keep_their_places():
    sheet = captioned_grid([("a", [solid("red")]), ("b", [solid("green"), solid("blue")])], columns=2)
    assert sheet.width == 2 * 128 + GAP
    assert colour_at(sheet, 64, sheet.height // 2 + 64) == rgb("green")


def test_small_pictures_are_enlarged_by_a_whole_factor():
    picture = solid("red", 48)
    picture.putpixel((47, 47), (0, 0, 255))
    sheet = captioned_grid([("a", [picture])])
    assert sheet.width == 144
    assert colour_at(sheet, 141, 141) == colour_at(sheet, 143, 143) == (0, 0, 255)
    assert colour_at(sheet, 140, 140) == rgb("red")


def test_reconstructions_lie_under_their_originals():
    sheet = reconstruction_grid([solid(name, 16) for name in COLOURS], [solid("white", 16)] * 5, columns=3)
    assert sheet.size == (3 * 16 + 2 * GAP, 4 * 16 + 3 * GAP)
    for i, name in enumerate(COLOURS):
        x, y = i % 3 * (16 + GAP) + 8, i // 3 * 2 * (16 + GAP) + 8
        assert colour_at(sheet, x, y) == rgb(name)
        assert colour_at(sheet, x, y + 16 + GAP) == rgb("white")


def test_reconstructions_are_as_many_as_originals():
    with pytest.raises(ValueError, match="zip"):
        reconstruction_grid([solid("red")] * 2, [solid("red")])


@pytest.mark.parametrize("caption", ["a red circle left of a large blue star", "x" * 500, "word " * 100, "", "é 猫 🐈"])
def test_lines_fit_the_width(caption):
    font = ImageFont.load_default(FONT_SIZE)
    lines = wrap(caption, font, 128)
    assert 1 <= len(lines) <= MAX_LINES
    assert all(font.getlength(line) <= 128 for line in lines)
    whole = "".join(lines).replace(" ", "")
    assert whole == caption.replace(" ", "") or (
        lines[-1].endswith("…") and caption.replace(" ", "")[:20] == whole[:20]
    )


def test_metadata_survives_and_nothing_is_left_beside(tmp_path):
    save_png(solid("red"), tmp_path / "new" / "a.png", {"caption": "ein größerer Kreis 猫", "seed": "3"})
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.text == {"caption": "ein größerer Kreis 猫", "seed": "3"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_an_interrupted_write_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_png(solid("red"), path)
    whole = path.read_bytes()

    def fail(picture, file, **options):
        Path(file).write_bytes(whole[: len(whole) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_png(solid("blue"), path)
    with Image.open(path) as picture:
        assert colour_at(picture, 0, 0) == rgb("red")
