"""Shares in whole numbers."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from data.shards.mixture import MixedOrder, apportion


@given(st.integers(0, 10**9), st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8))
def test_shares_sum_to_all_and_are_nearly_right(total, weights):
    counts = apportion(total, weights)
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        share = weight / math.fsum(weights)
        assert abs(count - total * share) < 0.501 + share * len(weights) / 2


@given(
    st.integers(0, 10**6),
    st.integers(0, 100),
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8),
    st.integers(1, 20),
)
def test_more_take_nothing_away(total, epochs, weights, more):
    before = apportion(total * epochs, weights)
    for after in (apportion(total * epochs + more, weights), apportion(total * (epochs + 1), weights)):
        assert all(a <= b for a, b in zip(before, after, strict=True))


def test_a_small_share_comes_in_some_epochs():
    """A tenth of a sample an epoch: one every ten epochs, and all of its set before any again."""
    large, small = torch.arange(999), torch.arange(1000, 1003)
    order = MixedOrder([large, small], [1, 1e-4], seed=0, batch_size=6)
    seen = []
    for epoch in range(60):
        order.begin(epoch, 0)
        items = order._order().tolist()
        assert len(items) == 1002
        seen += [index for index in items if index >= 1000]
        assert abs(len(seen) - 1002e-4 * (epoch + 1)) < 1
    assert len(seen) == 6 and set(seen[:3]) == set(seen[3:]) == {1000, 1001, 1002}


def test_remainders():
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(7, [2, 1]) == [5, 2]
    assert apportion(0, [1, 2]) == [0, 0]
