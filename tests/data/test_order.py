"""The order of the data against its definition, for any number of devices, and going on in the middle of an epoch."""

import gc
import math
import weakref
from functools import partial

import pytest
import torch

from data.order import EpochLoader, EpochOrder, Item, Progress, generator_of, mix


def order_of(n: int = 23, batch_size: int = 4, **settings) -> EpochOrder:
    return EpochOrder(torch.arange(100, 100 + n), seed=5, batch_size=batch_size, **({"shuffle": True} | settings))


class Echo(torch.utils.data.Dataset):
    def __getitem__(self, item: Item) -> list[int]:
        return list(item)


def loader_of(order: EpochOrder, workers: int = 0, progress=None) -> EpochLoader:
    return EpochLoader(Echo(), order, progress, num_workers=workers, persistent_workers=workers > 0, collate_fn=list)


def test_mix_is_pinned():
    """A change of these numbers would reorder everybody's data."""
    assert mix(0) == 1786884285633530058
    assert mix(1, 2, 3) == 13041116711478803063
    assert mix(-1) == 3246705950370657501
    assert len({mix(0), mix(0, 0), mix(0, 1), mix(1, 0), mix(-1, 0), mix(0, 0, 0)}) == 6
    assert all(0 <= mix(i) < 2**64 for i in range(100))


def test_mix_is_even():
    buckets = torch.tensor([mix(0, 0, position) % 16 for position in range(4096)]).bincount(minlength=16)
    assert (buckets - 256).abs().max() < 4.5 * math.sqrt(256)
    draws = torch.stack([torch.rand(1, generator=generator_of(0, 0, position)) for position in range(2000)])
    assert abs(draws.mean() - 0.5) < 0.03


def test_an_epoch_is_a_permutation_cut_to_whole_batches():
    order = order_of(23, 4)
    items = list(order)
    assert len(items) == len(order) == 20
    assert [item.position for item in items] == list(range(20))
    assert len({item.index for item in items}) == 20
    assert {item.index for item in items} <= set(range(100, 123))
    assert [item.index for item in items] != sorted(item.index for item in items)
    assert items == list(order)


def test_epochs_and_seeds_differ():
    order = order_of(16)
    epochs = []
    for epoch in range(3):
        order.begin(epoch, 0)
        epochs.append([item.index for item in order])
        assert sorted(epochs[-1]) == list(range(100, 116))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    other = EpochOrder(torch.arange(100, 116), seed=6, batch_size=4, shuffle=True)
    assert [item.index for item in other] != epochs[0]


def test_beginning_in_the_middle():
    whole = list(order_of())
    for start in (0, 4, 16, 20):
        order = order_of()
        order.begin(0, start)
        assert list(order) == whole[start:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_devices_share_the_order(world_size):
    whole = list(order_of(31, 2 * world_size))
    shares = [list(order_of(31, 2, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert {len(share) for share in shares} == {len(whole) // world_size}
    assert sorted(item for share in shares for item in share) == sorted(whole)
    for rank, share in enumerate(shares):
        assert all(item.position % world_size == rank for item in share)


def test_without_shuffling_nothing_is_cut_on_one_device():
    assert [item.index for item in order_of(7, 4, shuffle=False)] == list(range(100, 107))
    assert list(order_of(7, 4, shuffle=False)) == [Item(0, i, 100 + i) for i in range(7)]
    assert [len(order_of(7, 4, shuffle=False, rank=rank, world_size=2)) for rank in (0, 1)] == [3, 3]


def test_a_loaders_epochs_follow_each_other():
    order = order_of()
    loader = loader_of(order)
    assert len(loader) == 5
    for epoch in range(3):
        order.set_epoch(7)  # Lightning's count has no say
        batches = list(loader)
        assert [len(batch) for batch in batches] == [4] * 5
        assert {row[0] for batch in batches for row in batch} == {epoch}


def test_an_unused_iterator_costs_no_epoch():
    loader = loader_of(order_of())
    iter(loader)
    iter(loader)
    assert next(iter(loader))[0] == [0, 0, next(iter(order_of())).index]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_is_left_early_is_over(workers):
    loader = loader_of(order_of(), workers)
    iterator = iter(loader)
    next(iterator), next(iterator)
    assert [row[0] for row in next(iter(loader))] == [1] * 4
    assert loader.state_dict()["epoch"] == 1 and loader.state_dict()["position"] == 4


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_resuming_goes_on_with_the_next_batch(workers):
    expected = [batch for _, batch in zip(range(15), stream(loader_of(order_of())), strict=False)]  # which has no end
    for done in (0, 1, 3, 4, 5, 6, 9, 10):
        first = loader_of(order_of())
        before = [batch for _, batch in zip(range(done), stream(first), strict=False)]  # as above
        second = loader_of(order_of(), workers)
        second.load_state_dict(first.state_dict())
        after = [batch for _, batch in zip(range(15 - done), stream(second), strict=False)]
        assert before + after == expected


def stream(loader):
    while True:
        yield from loader


def test_state_in_numbers():
    about = {"samples": 23, "global_batch_size": 4, "seed": 5}
    loader = loader_of(order_of())
    assert loader.state_dict() == {"epoch": 0, "position": 0, **about}
    for _ in range(2):
        iterator = iter(loader)
        next(iterator), next(iterator)
    assert loader.state_dict() == {"epoch": 1, "position": 8, **about}
    list(iterator)
    assert loader.state_dict() == {"epoch": 2, "position": 0, **about}


def test_state_when_a_step_was_interrupted_or_epochs_are_cut_short():
    for worked_off, epoch_batches, expected in [(2, 5, (0, 8)), (1, 5, (0, 4)), (2, 2, (1, 0)), (1, 2, (0, 4))]:
        before = 7  # by a process that this one goes on for
        told = iter([Progress(before, epoch_batches), Progress(before + worked_off, epoch_batches)])
        loader = loader_of(order_of(), progress=partial(next, told))
        iterator = iter(loader)
        next(iterator), next(iterator)
        state = loader.state_dict()
        assert (state["epoch"], state["position"]) == expected


def test_positions_are_counted_over_all_devices():
    loader = loader_of(order_of(40, 4, rank=1, world_size=2))
    iterator = iter(loader)
    next(iterator), next(iterator)
    state = loader.state_dict()
    assert state["position"] == 16
    other = loader_of(order_of(40, 4, rank=0, world_size=2))
    other.load_state_dict(state)
    assert [row[1] for row in next(iter(other))] == [16, 18, 20, 22]


def test_other_data_cannot_be_gone_on_with_in_the_middle():
    loader = loader_of(order_of())
    next(iter(loader))
    state = loader.state_dict()
    other = loader_of(order_of(24, 6))
    message = "samples was 23 and is 24, global_batch_size was 4 and is 6"
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state)
    other.load_state_dict(state | {"epoch": 3, "position": 0})  # but from the beginning of an epoch on
    assert next(iter(other))[0][:2] == [3, 0]


def test_a_dropped_loader_stops_its_workers_at_once():
    """A loader that refers to itself waits for the cycle collector, which closes the workers' pipes before they are
    told to stop; then each of them is waited for in vain."""
    loader = loader_of(order_of(), workers=2)
    list(loader)
    processes, gone = list(loader._iterator._workers), weakref.ref(loader)
    gc.disable()
    try:
        del loader
        assert gone() is None
        assert not any(process.is_alive() for process in processes)
    finally:
        gc.enable()
