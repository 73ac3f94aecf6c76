"""The order of the data, as arithmetic: what is seen at a position is a pure function of (seed, epoch, position).

An epoch is a permutation drawn from (seed, epoch). What is random about one sample is drawn from a generator made of
(seed, epoch, position), in whichever process it is read: the number of workers changes nothing, and a run that stopped
goes on at the next position instead of replaying what came before. With several devices, position p belongs to rank
p mod world size.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from data.worker_signals import leave_signals_to_main

REJECTS = "rejects"  # in a batch from a dataset: what was unusable


class Item(NamedTuple):
    """What a dataset is asked for."""

    epoch: int
    position: int  # in the epoch, over all devices
    index: int  # in the source


def mix(*numbers: int) -> int:
    """64 well-mixed bits of signed 64-bit integers: BLAKE2b of their bytes. Another count of numbers, other bits."""
    return int.from_bytes(hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest(), "little")


def generator_of(*numbers: int) -> torch.Generator:
    """A CPU generator seeded with `mix(*numbers)`; torch uses the lower 32 bits of it."""
    return torch.Generator().manual_seed(mix(*numbers))


class Order(Protocol):
    """The positions of one epoch on one device, as a loader asks for them."""

    batch_size: int  # per device
    global_batch_size: int

    def begin(self, epoch: int, start: int) -> None: ...
    def arithmetic(self) -> dict[str, int]: ...


class EpochOrder(DistributedSampler[Item]):
    """The items of one epoch on one device.

    Being a DistributedSampler, it is left in place by Lightning's Trainer, which would shard any other once more.

    Args:
        indices: (N,) int64, the samples of the source that take part.
        seed: of the permutations.
        batch_size: per device. The epoch is cut to whole batches over all devices where `shuffle` is set (training),
            else to as many samples on each device (fewer than `world_size` are left out, none on one device).
        shuffle: a new permutation each epoch, else the order of `indices`.
        rank, world_size: this device and their number.
    """

    def __init__(
        self, indices: Tensor, *, seed: int, batch_size: int, shuffle: bool, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(indices, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)
        self.indices = indices
        self.batch_size = batch_size
        self.global_batch_size = batch_size * world_size
        unit = self.global_batch_size if shuffle else world_size
        self.end = len(indices) // unit * unit  # positions in an epoch, over all devices
        self.start = 0

    def begin(self, epoch: int, start: int) -> None:
        """The next iteration is that of `epoch` from position `start` (over all devices) on."""
        self.epoch, self.start = epoch, start

    def arithmetic(self) -> dict[str, int]:
        """What has to be the same for a run to go on in the middle of an epoch."""
        return {"samples": len(self.indices), "global_batch_size": self.global_batch_size, "seed": self.seed}

    def set_epoch(self, epoch: int) -> None:
        """Nothing: `EpochLoader` counts the epochs of the data.

        Lightning calls this with its own count, which after some resumes runs ahead of the data, and not before the
        workers of a resumed run have been told what to prefetch.
        """

    def __len__(self) -> int:
        return self.end // self.num_replicas

    def __iter__(self) -> Iterator[Item]:
        epoch, order = self.epoch, self._order()
        for position in range(self.start + self.rank, self.end, self.num_replicas):
            yield Item(epoch, position, int(order[position]))

    def _order(self) -> Tensor:
        if not self.shuffle:
            return self.indices
        return self.indices[torch.randperm(len(self.indices), generator=generator_of(self.seed, self.epoch))]


class Progress(NamedTuple):
    """What a training loop knows."""

    worked_off: int  # batches whose step has ended, those of former processes included
    epoch_batches: int  # how many the loop takes of each epoch


class EpochLoader(DataLoader):
    """A DataLoader whose epochs follow each other, and which can begin in the middle of one.

    Its length is that of a whole epoch, also where the first one is shorter after `load_state_dict`.

    Args:
        dataset: gives the sample of an `Item`, or is an IterableDataset that goes by the order itself.
        order: of the items.
        progress: asks the training loop; None where each batch is worked off when it is delivered.
        on_rejects: is given each batch's "rejects", where the dataset has them; the batch goes on without.
        settings: DataLoader's.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        progress: Callable[[], Progress] | None = None,
        on_rejects: Callable[[list[Any]], None] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            dataset,
            sampler=None if isinstance(dataset, IterableDataset) else order,
            batch_size=order.batch_size,
            worker_init_fn=leave_signals_to_main,
            **settings,
        )
        self.order = order
        self.on_rejects = on_rejects
        self.progress = progress  # no function of self stands in for None: a cycle delays the end of the workers
        self.epoch = 0
        self.delivered = 0  # batches of this epoch, those before a resume included
        self.delivered_in_all = 0  # batches since this loader was made
        self._begun = False
        self._worked_off_before = 0  # when this loader delivered its first batch

    def __iter__(self) -> Iterator[Any]:
        """Batches of the epoch; those of the next one if this one was begun. Nothing happens before the first `next`:
        an iterator that Lightning makes and drops costs no epoch. By then the training loop is where it goes on; it is
        not yet when Lightning has loaders made early, to count the steps of some epochs."""
        if self.progress and not self.delivered_in_all:
            self._worked_off_before = self.progress().worked_off
        if self._begun:
            self.epoch, self.delivered = self.epoch + 1, 0
        self.order.begin(self.epoch, self.delivered * self.order.global_batch_size)
        for batch in super().__iter__():
            self._begun = True
            self.delivered += 1
            self.delivered_in_all += 1
            if self.on_rejects is not None:
                self.on_rejects(batch.pop(REJECTS))
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the data goes on. Batches that were delivered and not worked off (an interrupted step) come again."""
        epoch, batches, epoch_batches = self.epoch, self.delivered, len(self)
        if self.progress and self.delivered_in_all:
            worked_off, epoch_batches = self.progress()
            batches -= self.delivered_in_all - (worked_off - self._worked_off_before)
        if batches >= epoch_batches:
            epoch, batches = epoch + 1, 0
        return {"epoch": epoch, "position": batches * self.order.global_batch_size, **self.order.arithmetic()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken.

        Raises ValueError where that is in the middle of an epoch and the number of samples, the batches or the seed are
        others now.
        """
        if state["position"]:
            now = self.order.arithmetic()
            check_same({key: state.get(key) for key in now}, now)
        self.epoch, self.delivered = state["epoch"], state["position"] // self.order.global_batch_size
        self._begun = False


def check_same(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """ValueError that names what has changed since a checkpoint in the middle of an epoch."""
    changes = [f"{name} was {saved[name]} and is {now[name]}" for name in now if saved[name] != now[name]]
    if changes:
        raise ValueError(
            f"cannot resume in the middle of an epoch: {', '.join(changes)}. Set it back, or begin another run."
        )
