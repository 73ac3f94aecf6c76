"""From streamed shards to batches: the order of an epoch over devices and workers, and its samples.

Batches are made by the workers in turn. Logical worker w of device r makes the batches w, w + W, ... of r, from the row
that `StreamedShards.draws` gives to reader r W + w; a run that goes on at batch b lets logical worker b mod W begin,
and each skips as many samples as it has given before, which fetches the shards of the epoch again but decodes nothing.
So the number of workers and devices has to stay the same within an epoch.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from data.order import REJECTS, generator_of
from data.rejects import Reject, Rejected
from data.samples import MOST_REJECTED, Reader
from data.shards.stream import FetchedShard, StreamedShards


class StreamOrder:
    """The positions of one epoch on one device.

    Args:
        samples: of an epoch over all devices; it is cut to whole batches.
        seed: of all that is drawn.
        batch_size, workers: per device; no workers are one.
        rank, world_size: this device and their number.
    """

    def __init__(
        self, samples: int, *, seed: int, batch_size: int, workers: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.samples, self.seed, self.batch_size = samples, seed, batch_size
        self.workers, self.rank, self.world_size = max(1, workers), rank, world_size
        self.global_batch_size = batch_size * world_size
        self.batches = samples // self.global_batch_size
        self.epoch = self.start = 0

    def begin(self, epoch: int, start: int) -> None:
        """The next iteration is that of `epoch` from position `start` (over all devices) on."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def arithmetic(self) -> dict[str, int]:
        """What has to be the same for a run to go on in the middle of an epoch."""
        names = ("samples", "global_batch_size", "seed", "workers", "world_size")
        return {name: getattr(self, name) for name in names}


class Drawn:
    """The shard that a sample lies in, by which readers get at it as at any source."""

    shard: FetchedShard

    def key(self, row: int) -> str:
        return self.shard.key(row)

    def image(self, row: int, least: int | None = None) -> Image.Image:
        return self.shard.image(row, least)

    def captions(self, row: int) -> tuple[str, ...]:
        return self.shard.captions(row)


class StreamSamples(IterableDataset):
    """Rows as `data.samples.Samples` has them, of an epoch from where its order begins.

    A picture that turns out broken is replaced by another of its shard, drawn from (seed, epoch, position, attempt);
    the row names it, and with the first sample after a shard was fetched, what was left out of that (FetchedRejects).

    Args:
        shards: the streams.
        order: of this device.
        readers: gives what makes up a row of a source.
    """

    def __init__(self, shards: StreamedShards, order: StreamOrder, readers: Callable[[Any], Sequence[Reader]]) -> None:
        self.shards, self.order = shards, order
        self.drawn = Drawn()
        self.readers = tuple(readers(self.drawn))

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        order, info = self.order, get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        first = order.start // order.global_batch_size
        logical = (first + worker) % workers
        row = self.shards.draws(order.seed, order.epoch, order.rank * workers + logical, order.world_size * workers)
        done = len(range(logical, first, workers)) * order.batch_size
        row = itertools.islice(row, done, None)
        for batch in range(first + worker, order.batches, workers):
            for place in range(order.batch_size):
                position = batch * order.global_batch_size + place * order.world_size + order.rank
                yield self._sample(*next(row), position)

    def _sample(self, shard: FetchedShard, row: int, position: int) -> dict[str, Any]:
        """Raises ValueError where one sample after the other is unusable."""
        rejects, self.drawn.shard = self.shards.take_rejects(), shard
        broken: list[Reject] = []
        for attempt in range(MOST_REJECTED):
            generator = generator_of(self.order.seed, self.order.epoch, position)
            sample: dict[str, Any] = {"keys": shard.key(row)}
            try:
                for reader in self.readers:
                    sample |= reader(row, generator)
            except Rejected as error:
                broken.append(error.reject)
                draws = generator_of(self.order.seed, self.order.epoch, position, attempt)
                row = int(shard.rows[torch.randint(len(shard.rows), (), generator=draws)])
            else:
                return sample | {REJECTS: rejects + broken}
        raise ValueError(f"{len(broken)} samples of {shard.url} in a row are unusable, the last one {broken[-1]}")
