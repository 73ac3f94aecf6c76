"""Tar shards, as img2dataset and other tools write them, as a source of training samples.

Shards on disk are indexed (index.py) and then read at random where they lie, so everything that holds for a folder of
pictures holds for them: the order of the samples is one permutation of all of them, the number of workers and devices
changes nothing, and a run goes on exactly where it stopped. What a sample is, grouping.py says. Of
samples with the same key, and of pictures with the same bytes, the first is used.

Each shard is read once when it is first seen: its headers, texts, and the bytes of the pictures, which only tells that
they are pictures and which. A picture that turns out broken when it is decoded is `Rejected` then (data/samples.py says
what comes in its place), unless all were asked to be decoded beforehand. A shard that is damaged as a whole, cut off
for example, is refused by its name before anything is trained: how much it lacks cannot be counted.
"""

import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.near_duplicates import Hashes
from data.rejects import Reason, Reject, Report
from data.shards.config import ShardsConfig, ShardSet, shards_config
from data.shards.grouping import CAPTIONED, Form, captioned, decoded, read_bytes, without_caption
from data.shards.index import ShardIndex, Stamp, open_indexes
from data.shards.paths import local_shards
from data.shards.tar import DamagedShard
from data.split import SPLITS, UNSAID, SplitTable, encoded_key_hash

log = logging.getLogger(__name__)
OPEN_FILES = 64  # shards kept open by each process that reads
_IN_WORDS = {Form.TEXT: ".txt", Form.LISTED: "captions in .json", Form.SINGLE: "caption in .json"}


class ShardsSource:
    """The usable samples of local shards, set after set, in the order of the shards; satisfies `data.source.Source`.

    Args:
        shards: which, or one path.
        need_captions: rejects samples without a caption.
        decode: has every picture decoded once, now or at an earlier start, and rejects the broken ones, so that none is
            found when it is read. Without it a set of millions is ready sooner.
        max_rejected: the largest fraction of rejected samples that is put up with, in [0, 1].
        report: a JSON file that is given the full list of rejects, also where the source then refuses the shards.

    Raises:
        ValueError: shards are missing or damaged, sets have keys in common, or more than `max_rejected` of the samples
            are rejected; the message says which.
    """

    def __init__(
        self,
        shards: ShardsConfig | str,
        *,
        need_captions: bool,
        decode: bool = False,
        max_rejected: float = 0.05,
        report: str | Path | None = None,
    ) -> None:
        self.config = shards_config(shards)
        self.need_captions, self.decode = need_captions, decode
        self._sets = self.config.all_sets
        self._paths: list[Path] = []
        self._indexes: list[ShardIndex] = []
        self._set_of_shard: list[int] = []
        for number, each in enumerate(self._sets):
            paths = local_shards(each.path)
            self._paths += paths
            self._indexes += self._opened(paths, decode)
            self._set_of_shard += [number] * len(paths)
        self._firsts = np.cumsum([0, *(len(index.forms) for index in self._indexes)])  # (shards + 1,) rows before each
        self._hashes = self._key_hashes()
        self._rows, rejects = self._usable()  # (N,) int64, over all shards
        self._files = _OpenShards(self._paths, [index.stamp for index in self._indexes])
        self.report = self._report(rejects)
        if report is not None:
            self.report.save(Path(report))
        self.report.enforce(max_rejected)
        log.log(logging.WARNING if self.report.rejects else logging.INFO, self.report.summary())

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        shard, row = self._place(index)
        return self._key(shard, row)

    def image(self, index: int, least: int | None = None) -> Image.Image:
        """The picture, mode RGB, any size; reduced as `decode_picture` does.

        Raises `Rejected` where it is broken, ValueError where the shard has changed or cannot be read.
        """
        shard, row = self._place(index)
        content = self._files.read(shard, *self._indexes[shard].pictures[row])
        return decoded(content, f"{self._paths[shard].name}: {self._key(shard, row)}", least)

    def captions(self, index: int) -> tuple[str, ...]:
        """Every caption, none twice; () only where captions were not needed. Raises as `image` does."""
        shard, row = self._place(index)
        form = Form(self._indexes[shard].forms[row])
        if form not in CAPTIONED:
            return ()
        content = self._files.read(shard, *self._indexes[shard].captions[row])
        return captioned(content, form, f"{self._paths[shard].name}: {self._key(shard, row)}")

    def split(self, index: int) -> str | None:
        """ "train", "val" or "test" where the sample's .json says so, else None."""
        shard, row = self._place(index)
        place = int(self._indexes[shard].splits[row])
        return None if place == UNSAID else SPLITS[place]

    def split_table(self) -> SplitTable:
        """As `data.split.Tabled` has it."""
        splits = np.concatenate([index.splits for index in self._indexes])
        return SplitTable(self._hashes[self._rows], splits[self._rows])

    def sizes(self) -> np.ndarray:
        """(N, 2) uint32, width and height of each picture as its header has them, not turned as EXIF asks."""
        return np.concatenate([index.sizes for index in self._indexes])[self._rows]

    def hashes(self) -> Hashes:
        """What the pictures look like, and which are broken: all are decoded for it, once, and the indexes keep it.

        Raises ValueError where a shard has changed since this was made.
        """
        indexes = self._indexes if self.decode else self._opened(self._paths, decode=True)
        for path, index, seen in zip(self._paths, self._indexes, indexes, strict=True):
            if index.digest != seen.digest:
                raise ValueError(f"{path} has changed since this run began: start it anew")
        broken = self._broken(indexes)
        places = np.flatnonzero(np.isin(self._rows, list(broken))).tolist()
        rows = self._rows[places].tolist()
        rejects = [Reject(self._where(row), Reason.BROKEN, broken[row]) for row in rows]
        return Hashes(
            np.concatenate([index.looks for index in indexes])[self._rows], dict(zip(places, rejects, strict=True))
        )

    def _opened(self, paths: list[Path], decode: bool) -> list[ShardIndex]:
        return open_indexes(paths, Path(self.config.index) if self.config.index else None, decode=decode)

    def holds(self, index: ShardIndex) -> np.ndarray:
        """(N,) bool: which samples of another shard have the picture of one of these, byte for byte."""
        contents = np.concatenate([each.contents for each in self._indexes])[self._rows]
        return np.isin(index.contents, contents)

    def identity(self) -> Iterator[str]:
        """The sets' names and weights, and of each shard a digest of all its samples; the shards may lie anywhere."""
        yield json.dumps(
            [self.need_captions, self.decode, *([each.name, each.weight] for each in self.config.all_sets)]
        )
        for number, index in zip(self._set_of_shard, self._indexes, strict=True):
            yield f"{number} {index.digest}"
        copies = sum(reject.reason == Reason.DUPLICATE for reject in self.report.rejects)
        if copies:  # the first runs trained on them, so they had other samples
            yield f"without {copies} copies"

    def by_set(self, indices: Tensor) -> list[Tensor]:
        """Indices, int64, of samples of each set, in the order in which they are given."""
        sets = torch.tensor(self._set_of_shard)[torch.from_numpy(self._shards_of(self._rows[indices.numpy()]))]
        return [indices[sets == number] for number in range(len(self.config.all_sets))]

    def _place(self, index: int) -> tuple[int, int]:
        """Shard and row in it."""
        row = int(self._rows[index])
        shard = int(self._shards_of(row))
        return shard, row - int(self._firsts[shard])

    def _shards_of(self, rows: np.ndarray | int) -> np.ndarray:
        return np.searchsorted(self._firsts, rows, side="right") - 1

    def _set(self, shard: int) -> ShardSet:
        return self._sets[self._set_of_shard[shard]]

    def _key(self, shard: int, row: int) -> str:
        name, key = self._set(shard).name, self._indexes[shard].key(row)
        return f"{name}/{key}" if name else key

    def _usable(self) -> tuple[np.ndarray, list[Reject]]:
        """The rows that are used, over all shards, and every reject."""
        rejects = [reject for index in self._indexes for reject in index.rejects]
        rows = np.arange(self._firsts[-1])
        if self.need_captions:
            forms = np.concatenate([index.forms for index in self._indexes])
            captioned = np.isin(forms, CAPTIONED)
            rejects += [without_caption(self._where(row), forms[row]) for row in np.flatnonzero(~captioned).tolist()]
            rows = rows[captioned]
        if self.decode:
            broken = self._broken(self._indexes)
            rejects += [Reject(self._where(row), Reason.BROKEN, said) for row, said in broken.items()]
            rows = rows[~np.isin(rows, list(broken))]
        rows, doubled = self._without_repeats(rows, self._hashes, self._doubled)
        contents = np.concatenate([index.contents for index in self._indexes])
        rows, copies = self._without_repeats(rows, contents, self._copy)
        return rows, rejects + doubled + copies

    @staticmethod
    def _without_repeats(
        rows: np.ndarray, values: np.ndarray, reject: Callable[[int, int], Reject]
    ) -> tuple[np.ndarray, list[Reject]]:
        """The rows without those whose value (of `values`, by row) an earlier one has, and the rejects of these."""
        distinct, first = np.unique(values[rows], return_index=True)
        again = np.setdiff1d(np.arange(len(rows)), first)
        before = first[np.searchsorted(distinct, values[rows[again]])]
        return rows[np.sort(first)], list(map(reject, rows[again].tolist(), rows[before].tolist()))

    def _broken(self, indexes: list[ShardIndex]) -> dict[int, str]:
        """What is wrong with the pictures that cannot be decoded, by row over all shards."""
        firsts = self._firsts[:-1].tolist()
        return {first + row: said for first, index in zip(firsts, indexes, strict=True) for row, said in index.broken}

    def _key_hashes(self) -> np.ndarray:
        """(rows,) uint64, of all shards; those of sets with a name are not in the indexes: some 2 s a million."""
        hashes = []
        for shard, index in enumerate(self._indexes):
            if name := self._set(shard).name:
                start, strings = f"{name}/".encode(), index.strings.tobytes()
                keys = (start + strings[first:end] for first, end in pairwise(index.bounds.tolist()))
                hashes.append(np.fromiter(map(encoded_key_hash, keys), np.uint64, len(index.forms)))
            else:
                hashes.append(index.hashes)
        return np.concatenate(hashes)

    def _doubled(self, row: int, before: int) -> Reject:
        """The reject of a sample whose key another has. ValueError where that is of another set: both are meant."""
        shard, other = (int(self._shards_of(each)) for each in (row, before))
        if self._set_of_shard[shard] != self._set_of_shard[other]:
            raise ValueError(
                f"{self._set(other).path} and {self._set(shard).path} have the key "
                f"{self._key(shard, row - int(self._firsts[shard]))!r} in common: give the sets names"
            )
        where = f"also in {self._where(before)}"
        if shard == other:  # samples of one name would be one sample
            where = 'another sample of this shard has it too, by "key" in the .json'
        return Reject(self._where(row), Reason.DOUBLED_KEY, where)

    def _copy(self, row: int, before: int) -> Reject:
        """Also across sets: the keys of two copies may fall on different sides of the split."""
        return Reject(self._where(row), Reason.DUPLICATE, f"same bytes as {self._where(before)}")

    def _where(self, row: int) -> str:
        shard = int(self._shards_of(row))
        return f"{self._paths[shard].name}: {self._key(shard, row - int(self._firsts[shard]))}"

    def _report(self, rejects: list[Reject]) -> Report:
        def counted(name: str) -> list[int]:
            """Samples by each value of 8 bits."""
            values = np.concatenate([getattr(index, name) for index in self._indexes])[self._rows]
            return np.bincount(values, minlength=256).tolist()

        forms, splits = counted("forms"), counted("splits")
        return Report(
            folder=Path(", ".join(each.path for each in self.config.all_sets)),
            captions_from=" and ".join(words for form, words in _IN_WORDS.items() if forms[form]),
            kept=len(self._rows),
            splits={split: splits[place] for place, split in enumerate(SPLITS) if splits[place]},
            rejects=tuple(rejects),
            doubled_captions=0,
            notes=(f"{len(self._paths):,} shards",),
        )


class _OpenShard:
    """A shard that is closed when its last reader lets go of it, which another thread may be."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor


class _OpenShards:
    """Bytes of shards, of which the last few used stay open; at each reading it is seen to be the one indexed.

    Several threads may read.
    """

    def __init__(self, paths: list[Path], stamps: list[Stamp]) -> None:
        self._paths, self._stamps = paths, stamps
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return _OpenShards, (self._paths, self._stamps)  # another process opens its own

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Raises ValueError naming the shard where it has changed, gone or cannot be read."""
        try:
            file = self._opened(shard)
            content = read_bytes(file, int(offset), int(size))
            self._check(
                shard, file
            )  # afterwards: it may have been written over in place at any time since it was opened
            return content
        except DamagedShard as error:
            raise ValueError(f"{self._paths[shard]}: {error}") from error
        except OSError as error:
            raise ValueError(f"{self._paths[shard]} cannot be read: {error.strerror}") from error

    def _opened(self, shard: int) -> _OpenShard:
        with self._lock:
            if shard not in self._open:
                file = _OpenShard(self._paths[shard])
                self._check(shard, file)
                self._open[shard] = file
            self._open.move_to_end(shard)
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
            return self._open[shard]

    def _check(self, shard: int, file: _OpenShard) -> None:
        if Stamp.of(os.fstat(file.fileno())) != self._stamps[shard]:
            raise DamagedShard("has changed since this run began: start it anew")
