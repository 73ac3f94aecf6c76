"""Which pictures are drawn side by side."""

from collections.abc import Sequence
from itertools import groupby


def batches_of(captions: Sequence[str], batch_size: int) -> list[slice]:
    """Captions cut into batches, about equally large, of at most `batch_size`, which is at least 1.

    Equal captions that follow one another stay together, as their text is then computed once and its keys are kept
    once; more than `batch_size` of them are cut among themselves. Few different sizes, as each is compiled anew.
    """
    batches: list[slice] = []
    start, runs = 0, [len(list(run)) for _, run in groupby(captions)]
    for too_long, group in groupby(runs, key=lambda run: run > batch_size):
        for whole in [[1] * run for run in group] if too_long else [list(group)]:  # what is not to be cut, in pictures
            for size in _balanced(whole, batch_size):
                batches.append(slice(start, start + size))
                start += size
    return batches


def _balanced(runs: Sequence[int], batch_size: int) -> list[int]:
    """Sizes of batches of whole runs, none of them longer than `batch_size`, in their order.

    As few batches as can be, and the largest as small as can be.
    """
    least = len(_filled(runs, batch_size))
    capacity = max(max(runs), -(-sum(runs) // least))
    while len(filled := _filled(runs, capacity)) > least:
        capacity += 1
    return filled


def _filled(runs: Sequence[int], capacity: int) -> list[int]:
    sizes = [0]
    for run in runs:
        if sizes[-1] + run > capacity:
            sizes.append(0)
        sizes[-1] += run
    return sizes
