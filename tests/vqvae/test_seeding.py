import torch

from vqvae.seeding import seeded

CPU = torch.device("cpu")


def draw(*counters: int) -> tuple[float, ...]:
    with seeded(CPU, *counters):
        return tuple(torch.rand(4).tolist())


def test_numbers_follow_from_the_counters():
    torch.manual_seed(1)
    first = draw(0, 7, 3)
    torch.manual_seed(2)
    assert draw(0, 7, 3) == first


def test_counters_do_not_collide():
    places = [(seed, step, rank) for seed in range(3) for step in range(30) for rank in range(3)]
    assert len({draw(*place) for place in places}) == len(places)


def test_outside_nothing_was_drawn():
    torch.manual_seed(3)
    expected = torch.rand(8)
    torch.manual_seed(3)
    before = torch.rand(4)
    draw(0, 1)
    assert torch.equal(torch.cat([before, torch.rand(4)]), expected)
