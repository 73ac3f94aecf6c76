"""The order of an epoch where several sets of samples are mixed by weights.

An epoch has as many positions as all sets have training samples together, cut to whole batches as without weights. The
share of each set in them is its weight over the sum of all, to one sample. What a set's share is too small for comes in
the next epochs, before anything of it comes again; a set that is too small for its share begins again in the same one.
So a set of n samples of which c are due in an epoch is an endless row of permutations of its n, drawn from (seed, set,
round), and epoch e takes places e c to (e + 1) c of that row; the samples of all sets are then put in an order drawn
from (seed, epoch). What is seen at a position is a function of (seed, epoch, position), as everywhere.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from data.order import EpochOrder, generator_of

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
        self.counts = apportion(len(self.indices), weights)

    def _order(self) -> Tensor:
        due = torch.cat([self._due(number) for number in range(len(self.sets))])
        return due[torch.randperm(len(due), generator=generator_of(self.seed, self.epoch))]

    def _due(self, number: int) -> Tensor:
        """What a set gives to this epoch."""
        indices, count = self.sets[number], self.counts[number]
        n, start = len(indices), self.epoch * count
        rounds = range(start // n, -(-(start + count) // n))
        row = torch.cat([indices[:0], *(indices[self._permutation(number, n, each)] for each in rounds)])
        return row[start % n :][:count]

    def _permutation(self, number: int, n: int, each: int) -> Tensor:
        return torch.randperm(n, generator=generator_of(self.seed, _ROUNDS, number, each))


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in the proportion of the weights whose sum is `total`: rounded down, the largest remainders up."""
    quotas = [total * (weight / math.fsum(weights)) for weight in weights]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(weights)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
