"""The order of an epoch where several sets of samples are mixed by weights.

An epoch has as many positions as all sets have training samples together, cut to whole batches as without weights. The
share of each set in all epochs so far is its weight over the sum of all, to half a sample for each of the sets: of one
whose share of an epoch is less than a sample, some epochs have one. What a set's share is too small for comes in the
next epochs, before anything of it comes again; a set that is too small for its share begins again in the same one. So a
set of n samples is an endless row of permutations of its n, drawn from (seed, set, round), and an epoch takes of that
row the places from what was due before it to what is due after it; the samples of all sets are then put in an order
drawn from (seed, epoch). What is seen at a position is a function of (seed, epoch, position), as everywhere.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from data.order import EpochOrder, generator_of

ORDER = 2  # of which kind the order below is: 1 cut each epoch's shares by itself
_ROUNDS = -1  # tells the draws of a set's rounds from those of the epochs


class MixedOrder(EpochOrder):
    """The items of one epoch of a mixture on one device.

    Args:
        sets: the samples of each set that take part, (N_s,) int64.
        weights: of the sets, positive.
        settings: seed, batch_size, rank and world_size, as for `EpochOrder`.

    Raises ValueError where a set has no samples.
    """

    def __init__(self, sets: Sequence[Tensor], weights: Sequence[float], **settings: int) -> None:
        for number, indices in enumerate(sets):
            if len(indices) == 0:
                raise ValueError(
                    f"set {number + 1} of the shards has a weight of {weights[number]}, but no training samples"
                )
        super().__init__(torch.cat(list(sets)), shuffle=True, **settings)
        self.sets = tuple(sets)
        self.weights = tuple(weights)

    def arithmetic(self) -> dict[str, int]:
        return super().arithmetic() | {"order of mixtures": ORDER}

    def _order(self) -> Tensor:
        starts, ends = (apportion(epochs * len(self.indices), self.weights) for epochs in (self.epoch, self.epoch + 1))
        due = torch.cat([self._due(number, *places) for number, places in enumerate(zip(starts, ends, strict=True))])
        return due[torch.randperm(len(due), generator=generator_of(self.seed, self.epoch))]

    def _due(self, number: int, start: int, end: int) -> Tensor:
        """Places `start` to `end` of a set's row."""
        indices = self.sets[number]
        n = len(indices)
        rounds = range(start // n, -(-end // n))
        row = torch.cat([indices[:0], *(indices[self._permutation(number, n, each)] for each in rounds)])
        return row[start % n :][: end - start]

    def _permutation(self, number: int, n: int, each: int) -> Tensor:
        return torch.randperm(n, generator=generator_of(self.seed, _ROUNDS, number, each))


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in the proportion of the weights whose sum is `total`, none of which shrinks where `total` grows.

    By Webster's method: one after the other goes to where (2 k + 1) / weight is least, k being what is there already.
    Largest remainders would take some back. Each is right to (1 + share x number of the weights) / 2.
    """
    counts = [round(total * (weight / math.fsum(weights))) for weight in weights]  # nearly so already

    def cost(i: int, k: int) -> tuple[float, int]:
        """Of the k-th of set i, counted from 0: an order of all of them, of which the first `total` are taken."""
        return (2 * k + 1) / weights[i], i

    def last(i: int) -> tuple[float, int]:
        return cost(i, counts[i] - 1) if counts[i] else (-math.inf, i)

    every = range(len(weights))
    while True:
        given, due = max(map(last, every)), min(cost(i, counts[i]) for i in every)
        excess = sum(counts) - total
        if excess == 0 and given < due:
            return counts
        if excess <= 0:
            counts[due[1]] += 1
        if excess >= 0:
            counts[given[1]] -= 1
