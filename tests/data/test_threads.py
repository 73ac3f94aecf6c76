"""Many items on threads: all results in order, and few of them waiting."""

import time

import data.threads
from data.threads import in_threads


def test_results_come_in_the_order_of_the_items():
    assert list(in_threads(lambda item: time.sleep(0.002 * (3 - item % 4)) or 2 * item, range(20))) == [
        2 * item for item in range(20)
    ]
    assert list(in_threads(str, [])) == []


def test_few_items_wait(monkeypatch):
    """Of a hundred, those are begun of which a result has been asked for, and at most ten more."""
    monkeypatch.setattr(data.threads, "QUEUED", 10)
    begun = []
    results = in_threads(lambda item: begun.append(item) or item, range(100))
    for asked in range(1, 101):
        assert next(results) == asked - 1
        assert len(begun) <= asked + 9
    assert len(begun) == 100
