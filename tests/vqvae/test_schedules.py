import math

import pytest

from vqvae.gumbel import Gumbel
from vqvae.optim import TokenizerOptim
from vqvae.schedules import cosine


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 3.0),
        (10, 2 + math.cos(math.pi / 4)),  # a quarter of the way
        (20, 2.0),
        (30, 2 - math.cos(math.pi / 4)),
        (40, 1.0),
        (41, 1.0),
        (10**9, 1.0),
    ],
)
def test_cosine_by_hand(step, expected):
    assert cosine(step, 3.0, 1.0, 40) == pytest.approx(expected)


def test_it_can_rise_and_can_be_over_at_once():
    assert cosine(1, 0.0, 8.0, 3) == pytest.approx(2.0)  # cos(pi / 3) is a half
    assert cosine(0, 3.0, 1.0, 0) == 1.0


@pytest.mark.parametrize(
    ("step", "tau", "beta"),
    [
        (0, 1.0, 0.0),
        (2_500, 0.99936, 3.3),  # 1 - 15/32 (1 - cos(pi / 60)): the angle is 3 degrees
        (5_000, 0.99743, 6.6),  # cos(6 degrees) = 0.994522
        (50_000, 0.765625, 6.6),  # cos(60 degrees) = 1/2: 1/16 + 3/4 * 15/16
        (75_000, 0.53125, 6.6),
        (150_000, 0.0625, 6.6),
        (3_000_000, 0.0625, 6.6),
    ],
)
def test_the_papers_temperature_and_weight_of_the_kl(step, tau, beta):
    assert Gumbel(8192, 192).anneal(step) == pytest.approx({"tau": tau, "beta": beta}, abs=1e-5)


@pytest.mark.parametrize(
    ("step", "lr"),
    [(0, 1e-4), (400_000, 7.53125e-5), (600_000, 5.0625e-5), (1_200_000, 1.25e-6), (3_000_000, 1.25e-6)],
)
def test_the_papers_step_size(step, lr):
    assert TokenizerOptim().lr_at(step, run_steps=3_000_000) == pytest.approx(lr, rel=1e-6)


def test_step_size_over_the_whole_run_with_warmup():
    optim = TokenizerOptim(lr=4.0, min_lr=2.0, decay_steps=None, warmup_steps=4)
    assert [optim.lr_at(step, run_steps=12) for step in (0, 3, 6, 12)] == pytest.approx(
        [1.0, 3 + math.cos(math.pi / 4), 3.0, 2.0]
    )
