import math

import pytest

from transformer.schedules import cosine_factor, warmup_factor


@pytest.mark.parametrize(("step", "expected"), [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (4, 1.0), (900, 1.0)])
def test_warmup_by_hand(step, expected):
    assert warmup_factor(step, 4) == expected


def test_no_warmup():
    assert warmup_factor(0, 0) == 1.0
    assert cosine_factor(0, 0, 10, 0.0) == 1.0


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.25),
        (3, 1.0),
        (4, 1.0),
        (8, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2),  # a quarter of the way: cos(pi / 4)
        (12, 0.55),
        (20, 0.1),
        (50, 0.1),
    ],
)
def test_cosine_by_hand(step, expected):
    assert cosine_factor(step, warmup_steps=4, total_steps=20, min_ratio=0.1) == pytest.approx(expected)
