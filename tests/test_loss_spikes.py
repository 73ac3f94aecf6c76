"""The rule by which a loss is a spike."""

import torch

from callbacks.loss_spikes import FEWEST, WINDOW, LossSpikes, usual


def seen(losses: list[float]) -> list[int]:
    """The numbers of those at which a spike begins."""
    spikes = LossSpikes()
    return [number for number, loss in enumerate(losses) if spikes.begins(loss) is not None]


def noise(count: int, seed: int = 0) -> list[float]:
    return (3 + 0.1 * torch.randn(count, generator=torch.Generator().manual_seed(seed))).tolist()


def test_what_is_usual():
    """Distances from 3 are 2, 1, 0, 1, 97."""
    assert usual([1.0, 2.0, 3.0, 4.0, 100.0]) == (3.0, 1.4826)
    assert usual([-2.0] * 5) == (-2.0, 0.002)


def test_noise_and_what_falls_is_no_spike():
    assert seen(noise(1000)) == []
    assert seen([9 * 0.99**step + noise for step, noise in enumerate(noise(500))]) == []
    assert seen([*noise(100), *[0.1] * 10]) == [], "only what is high"


def test_a_spike_is_told_once():
    high = [*noise(100), 4.5, 4.6, 4.4, *noise(50), 4.5, *noise(5)]
    assert seen(high) == [100, 153]
    assert seen([*noise(100), 3.7]) == [], "it is within ten spreads"


def test_a_lasting_rise_becomes_usual():
    spikes = LossSpikes()
    begun = [spikes.begins(loss) is not None for loss in [*noise(100), *(loss + 3 for loss in noise(150, seed=1))]]
    assert begun.index(True) == 100 and sum(begun) == 1
    assert not spikes.spiking and len(spikes.losses) == WINDOW


def test_the_first_losses_are_no_measure():
    assert seen([1.0] * (FEWEST - 1) + [100.0]) == []
    assert seen([1.0] * FEWEST + [100.0]) == [FEWEST]
