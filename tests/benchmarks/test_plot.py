"""Curves as pictures."""

import itertools

from benchmarks.plot import COLOURS, draw_curves


def test_curves_lie_where_their_values_are():
    picture = draw_curves({"rises": [(0, 1), (10, 5)], "flat": [(0, 1), (10, 1)]}, "seconds", "loss")
    pixels = {tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)): colour for colour in COLOURS[:2]}
    found = {colour: [] for colour in COLOURS[:2]}
    for x, y in itertools.product(range(60, 500), range(50, 400)):
        if (colour := pixels.get(picture.getpixel((x, y)))) is not None:
            found[colour].append((x, y))
    rising, flat = found.values()
    assert max(y for _, y in rising) > min(y for _, y in rising) + 100
    assert max(y for _, y in flat) - min(y for _, y in flat) <= 2
    assert min(rising)[1] > max(rising)[1]  # y counts from the top
