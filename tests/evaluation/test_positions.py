import numpy as np
import pytest
from PIL import Image

from evaluation.positions import ANCHORS, BAR, SIDE, colours, heat_map

VALUES = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def cells(sheet: Image.Image, h: int, w: int) -> list[list[tuple[int, ...]]]:
    """Colours at the middles of a map's cells, found by where the map's own colours begin."""
    factor = -(-SIDE // max(h, w))
    top = next(y for y in range(sheet.height) if sheet.getpixel((w * factor - 1, y)) != (255, 255, 255))
    return [[sheet.getpixel(((2 * x + 1) * factor // 2, top + (2 * y + 1) * factor // 2)) for x in range(w)]
            for y in range(h)]  # fmt: skip


def test_each_place_has_its_number():
    sheet = heat_map(VALUES, "nats")
    expected = [[tuple(colours(np.array((value - 1) / 5)).tolist()) for value in row] for row in VALUES.tolist()]
    assert cells(sheet, 2, 3) == expected
    assert expected[0][0] == ANCHORS[0]
    assert expected[1][2] == ANCHORS[-1]


def test_higher_is_lighter():
    brightness = colours(np.linspace(0, 1, 100)).astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(brightness) > 0).all()


def test_the_scale_beside_it_runs_from_the_most_above_to_the_least_below():
    sheet = heat_map(VALUES, "nats")
    middle = 3 * -(-SIDE // 3) + 16 + BAR // 2
    column = [sheet.getpixel((middle, y)) for y in range(sheet.height)]
    inked = [colour for colour in column if colour != (255, 255, 255)]
    assert inked[0] == ANCHORS[-1]
    assert inked[-1] == ANCHORS[0]
    assert len(inked) == 2 * -(-SIDE // 3)


def test_places_without_a_number_are_white_and_the_others_as_without_them():
    values = np.array([[np.nan, 1.0, 3.0], [np.inf, 6.0, -np.inf]])
    first, second, third = (tuple(colours(np.array(share)).tolist()) for share in (0, 2 / 5, 1))
    white = (255, 255, 255)
    assert cells(heat_map(values, "nats"), 2, 3) == [[white, first, second], [white, third, white]]
    nothing = heat_map(np.full((2, 3), np.nan), "nats")
    assert {nothing.getpixel((x, nothing.height // 2)) for x in range(SIDE)} == {white}


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (40, 40)])
def test_a_map_without_differences_has_one_colour(shape):
    sheet = heat_map(np.full(shape, 2.5), "a title that is wider than the map of few places, were it not enlarged")
    assert {colour for row in cells(sheet, *shape) for colour in row} == {ANCHORS[0]}
    assert sheet.width > SIDE
