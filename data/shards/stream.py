"""Shards that can only be read from their beginning: URLs, and the output of commands (`pipe:`).

They are opened by the webdataset library, so whatever it reads (http, s3 by a command, gs, hf) is read here. A shard is
fetched whole to a temporary file before anything of it is used: one that is cut off, or whose command fails, is fetched
again and at last stops the run by its name instead of being taken for a short one. What is a sample is decided by the
same rules as on disk (grouping.py). A sample whose picture is also validated on is rejected; pictures are told by their
bytes, for keys that number the samples of a shard are equal in others.

The order is a function of (seed, epoch, reader, number of readers), a reader being one worker of one device. In each
round of an epoch the shards are put in an order drawn from (seed, epoch, round) and dealt out to the readers; a reader
draws its samples at random from the two shards that it holds, and when it is through with its shards begins another
round. An epoch is as many samples as `samples` says. Where that is the number of all, all shards are equally large and
their number is a multiple of the readers', each sample comes once an epoch; else some come twice and some in a later
one.

With weights every set has rounds of its own, and each sample's set is drawn by weight.
"""

import itertools
import json
import logging
import random
import select
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from data.order import generator_of, mix
from data.rejects import FetchedRejects, Reason, Reject
from data.shards.config import ShardsConfig
from data.shards.grouping import CAPTIONED, Form, captioned, decoded, read_bytes, without_caption
from data.shards.index import ShardIndex, index_of
from data.shards.paths import expand
from data.shards.source import ShardsSource
from data.shards.tar import DamagedShard

log = logging.getLogger(__name__)
WAITS = (1.0, 10.0, 60.0)  # seconds before a stream that failed is read once more
STALLED = 300.0  # seconds without a byte after which a stream has failed: servers may be silent for ever
HELD = 2  # shards that a reader draws from at a time


class FetchedShard:
    """One shard in a temporary file, of which nothing is left when it is dropped."""

    def __init__(
        self, url: str, file: BinaryIO, index: ShardIndex, need_captions: bool, validation: ShardsSource | None
    ) -> None:
        self.url, self._file, self._index = url, file, index
        rejects: dict[int, Reject] = {}
        rows = index.training_rows()
        if need_captions:
            for row in rows[~np.isin(index.forms[rows], CAPTIONED)].tolist():
                rejects[row] = without_caption(self._where(row), index.forms[row])
        if validation is not None:
            for row in rows[validation.holds(index)[rows]].tolist():
                rejects[row] = Reject(self._where(row), Reason.HELD_BACK, "the same bytes are in shards.val")
        self.rows = rows[~np.isin(rows, list(rejects))]  # (N,) int64, the usable ones
        self.rejects = (*index.rejects, *rejects.values())

    def key(self, row: int) -> str:
        return self._index.key(row)

    def image(self, row: int, least: int | None = None) -> Image.Image:
        """As `data.source.Source` has it, by the row of the shard."""
        content = read_bytes(self._file, *map(int, self._index.pictures[row]))
        return decoded(content, self._where(row), least)

    def captions(self, row: int) -> tuple[str, ...]:
        form = Form(self._index.forms[row])
        if form not in CAPTIONED:
            return ()
        content = read_bytes(self._file, *map(int, self._index.captions[row]))
        return captioned(content, form, self._where(row))

    def _where(self, row: int) -> str:
        return f"{self.url}: {self.key(row)}"


class StreamFailed(ValueError):
    """A stream that could not be read to its end, which may go better another time."""


def fetch(url: str, *, need_captions: bool, validation: ShardsSource | None = None) -> FetchedShard:
    """Read all of a stream; its samples that are marked for validation or test are not among the usable ones.

    As nothing is used before all is there, a stream that fails is simply read again, a few times.

    Args:
        url: of the stream.
        need_captions: rejects samples without a caption.
        validation: samples with the picture of one of these, byte for byte, are rejected.

    Raises:
        StreamFailed: it cannot be read to its end or is no whole tar.
        ValueError: there is no room for the temporary file.
    """
    for wait in WAITS:
        try:
            return _fetch(url, need_captions, validation)
        except StreamFailed as error:
            log.warning("%s; once more in %.0f s", error, wait)
            time.sleep(wait)
    return _fetch(url, need_captions, validation)


def _fetch(url: str, need_captions: bool, validation: ShardsSource | None) -> FetchedShard:
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the shard)
        _copy(url, file)
        index = index_of(file, url)
    except DamagedShard as error:
        raise StreamFailed(f"{url}: {error}") from error
    except OSError as error:
        raise ValueError(f"{tempfile.gettempdir()}: no temporary file for {url} ({error.strerror})") from error
    return FetchedShard(url, file, index, need_captions, validation)


def _copy(url: str, file: BinaryIO) -> None:
    """All of a stream to a file. Raises StreamFailed where the stream, OSError where the file is at fault."""
    from webdataset.gopen import Pipe, gopen  # imports torch's data loading: only where it is needed

    with _blamed_on(url):
        stream = gopen(url)
    try:
        while content := _read(url, stream):
            file.write(content)
        file.flush()
    except BaseException:  # Ctrl-C too: the command would live on
        if isinstance(stream, Pipe):
            stream.proc.kill()  # closing waits for it, and it may be waiting itself
        with suppress(OSError):  # of a command whose output nobody reads any more
            stream.close()
        raise
    with _blamed_on(url):
        _close(stream)


def _close(stream: BinaryIO) -> None:
    """Waits for the command, where it is the output of one. Raises OSError where that failed."""
    from webdataset.gopen import Pipe

    if not isinstance(stream, Pipe):
        stream.close()
        return
    stream.ignore_errors = True  # the library's message shows how it starts commands
    stream.close()
    if stream.status in stream.ignore_status:
        return
    args = stream.proc.args
    command = args if isinstance(args, str) else shlex.join(args)
    how = f"ended with exit code {stream.status}" if stream.status > 0 else f"was ended by signal {-stream.status}"
    raise OSError(f"the command {command!r} {how}")


def _read(url: str, stream: BinaryIO) -> bytes:
    """Some bytes, b"" at the end."""
    pipe = getattr(stream, "stream", None)  # of the library's Pipe: what a command prints
    with _blamed_on(url):
        if pipe is None:
            return stream.read(1 << 20)
        waiting = select.poll()
        waiting.register(pipe, select.POLLIN)
        if not waiting.poll(1000 * STALLED):
            raise TimeoutError(f"not a byte in {STALLED:g} s")
        return pipe.read1(1 << 20)  # what is there; nothing of it stays behind in a buffer, unseen by poll


@contextmanager
def _blamed_on(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise StreamFailed(f"{url}: cannot be read ({error})") from error


class StreamedShards:
    """Streams to train from and, as `data.source.Source`, the local shards to validate on.

    Args:
        config: sets that stream; `samples` and `val` have to be given.
        need_captions: rejects samples without a caption.
        max_rejected, report: of the shards to validate on, as for ShardsSource.

    Raises ValueError where either is missing, or the shards to validate on cannot be used.
    """

    def __init__(
        self, config: ShardsConfig, *, need_captions: bool, max_rejected: float, report: str | Path | None
    ) -> None:
        if config.samples is None or config.val is None:
            raise ValueError(
                "streamed shards need shards.samples, the number of samples in an epoch, and shards.val, shards on "
                "disk to validate on: neither can be found out without reading everything"
            )
        self.config, self.need_captions = config, need_captions
        self.validation = ShardsSource(
            ShardsConfig(sets=config.val, index=config.index),
            need_captions=need_captions,
            max_rejected=max_rejected,
            report=report,
        )
        self.urls = [expand(each.path) for each in config.all_sets]
        self._rejects: list[FetchedRejects] = []  # not yet told

    def __len__(self) -> int:
        return len(self.validation)

    def key(self, index: int) -> str:
        return self.validation.key(index)

    def image(self, index: int, least: int | None = None) -> Image.Image:
        return self.validation.image(index, least)

    def captions(self, index: int) -> tuple[str, ...]:
        return self.validation.captions(index)

    def split(self, index: int) -> str:
        return "val"

    def identity(self) -> Iterator[str]:
        """The streams' names and weights: what they hold, nobody knows; and what is validated on."""
        yield json.dumps([self.config.samples, self.need_captions, self.urls, self.config.weights])
        yield from self.validation.identity()

    def draws(self, seed: int, epoch: int, reader: int, readers: int) -> Iterator[tuple[FetchedShard, int]]:
        """The endless row of samples, as shard and row in it, of one reader in one epoch.

        Raises ValueError where there are fewer shards than readers, or there are no usable samples.
        """
        weights = self.config.weights
        groups = self.urls if weights else [list(itertools.chain.from_iterable(self.urls))]
        for urls in groups:
            if len(urls) < readers:
                raise ValueError(
                    f"{len(urls)} streamed shards from {urls[0]} on for {readers} readers (workers x devices): lower "
                    "data.loading.workers, or cut the shards smaller"
                )
        rows = [
            self._draws_of(
                urls, random.Random(mix(seed, epoch, number, reader)), (seed, epoch, number), reader, readers
            )
            for number, urls in enumerate(groups)
        ]
        choice = random.Random(mix(seed, epoch, reader))
        while True:
            yield next(choice.choices(rows, weights)[0] if weights else rows[0])

    def take_rejects(self) -> list[FetchedRejects]:
        """Of each shard that this process has fetched since it was last asked."""
        rejects, self._rejects = self._rejects, []
        return rejects

    def _fetch(self, url: str) -> FetchedShard:
        shard = fetch(url, need_captions=self.need_captions, validation=self.validation)
        self._rejects.append(FetchedRejects(url, len(shard.rows) + len(shard.rejects), shard.rejects))
        return shard

    def _draws_of(
        self, urls: Sequence[str], choice: random.Random, seeds: tuple[int, ...], reader: int, readers: int
    ) -> Iterator[tuple[FetchedShard, int]]:
        for number in itertools.count():
            order = torch.randperm(len(urls), generator=generator_of(*seeds, number)).tolist()
            shards = (self._fetch(urls[place]) for place in order[reader::readers])
            empty = True
            for drawn in _mixed(shards, choice):
                empty = False
                yield drawn
            if empty:
                raise ValueError(
                    f"no usable samples in {len(order[reader::readers])} streamed shards, such as {urls[0]}"
                )


def _mixed(shards: Iterator[FetchedShard], choice: random.Random) -> Iterator[tuple[FetchedShard, int]]:
    """Every sample of the shards once, drawn from HELD of them at a time."""
    held: list[tuple[FetchedShard, list[int]]] = []
    while True:
        held = [(shard, rows) for shard, rows in held if rows]
        held += [(shard, shard.rows.tolist()) for shard in itertools.islice(shards, HELD - len(held))]
        if not held:
            return
        if all(held_rows := [rows for _, rows in held]):
            which = choice.randrange(sum(map(len, held_rows)))
            place = 0 if which < len(held_rows[0]) else 1
            shard, rows = held[place]
            which -= place * len(held_rows[0])
            rows[which], rows[-1] = rows[-1], rows[which]
            yield shard, rows.pop()
