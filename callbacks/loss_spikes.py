"""When a loss is unusually high: a rule on its recent values."""

from statistics import median
from typing import NamedTuple

WINDOW = 100  # updates whose losses say what is usual
FEWEST = 20  # of them, before which nothing is a spike
SPREADS = 10  # above the usual loss, beyond which one is a spike
NORMAL = 1.4826  # the standard deviation of a normal distribution, in median absolute deviations


class Usual(NamedTuple):
    """Median of the recent losses, and NORMAL times the median of their distances from it (0.1 % of it at least)."""

    loss: float
    spread: float


def usual(losses: list[float]) -> Usual:
    """Of one loss or more, all finite."""
    middle = median(losses)
    spread = NORMAL * median(abs(loss - middle) for loss in losses)
    return Usual(middle, max(spread, 1e-3 * abs(middle)))


class LossSpikes:
    """Sees the loss of each update in turn. A spike lasts until a loss is no spike: a lasting rise, once most of the
    window has seen it.

    Attributes:
        losses: the last WINDOW, finite.
        spiking: whether the last one was a spike.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.spiking = False

    def begins(self, loss: float) -> Usual | None:
        """What was usual, where a spike begins at this loss, which is finite; else None."""
        before, was_spiking = self.losses, self.spiking
        self.losses = [*before[1 - WINDOW :], loss]
        if len(before) < FEWEST:
            return None
        expected = usual(before)
        self.spiking = loss > expected.loss + SPREADS * expected.spread
        return expected if self.spiking and not was_spiking else None
