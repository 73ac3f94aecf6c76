"""Shares in whole numbers."""

import math

from hypothesis import given
from hypothesis import strategies as st

from data.shards.mixture import apportion


@given(st.integers(0, 10**9), st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8))
def test_shares_sum_to_all_and_are_right_to_one(total, weights):
    counts = apportion(total, weights)
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * weight / math.fsum(weights)) < 1.001


def test_remainders():
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(7, [2, 1]) == [5, 2]
    assert apportion(0, [1, 2]) == [0, 0]
