"""Pictures as the indices an image tokenizer gave them, on disk: encode once, train the prior many times.

A folder holds shards (data/code_shards.py) and `manifest.json` (data/code_manifest.py), which is written last: without
it, the folder is half-made and is not read. What is checked when:

    at each opening    the manifest; that every shard is there and of the size that the manifest names
    by `split_table`   every shard's header and shapes, that it is the one the manifest names, and by a checksum its
                       splits and the hashes of its keys: so before anything is trained
    when it is read    the same of the picture's shard; a picture's codes, key and captions, by their checksums; that a
                       code is one of the tokenizer's
    by `verify`        every byte, by the checksums (`python encode.py --verify FOLDER`); also when encoding ends

A shard is mapped when it is first read from, for a process may have 65,530 maps on Linux, and each takes a millisecond.
A shard must not be cut short while it is read: the system ends a process that reaches behind the end of a mapped file.
"""

import logging
from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.code_manifest import MANIFEST, RECIPE, Manifest, ShardEntry, read_manifest
from data.code_shards import VERSION, CodeShard, sound_tables
from data.split import SplitTable
from data.threads import in_threads
from data.waiting import with_progress

log = logging.getLogger(__name__)
OPEN_SHARDS = 32_768  # maps kept by each process that reads, those last used; larger sets want larger shards


class CodesSource:
    """Reads a folder of codes; keys, captions and splits as `data.source.Source` has them, codes instead of pictures.

    Raises ValueError naming the file that is missing, damaged or not the one that the manifest names.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = _manifest_of(self.folder)
        recipe = self.manifest.recipe
        self.fingerprint, self.codebook_size = recipe.fingerprint, recipe.codebook_size
        self.grid_size, self.crops = recipe.grid_size, recipe.crops
        for entry in self.manifest.shards:
            _check_size(self.folder, entry)
        self._starts = [0, *accumulate(entry.pictures for entry in self.manifest.shards)][:-1]
        self._shard = lru_cache(OPEN_SHARDS)(partial(_numbered, self.folder, self.manifest))

    def __reduce__(self) -> tuple:
        # A worker that is not forked maps the files instead of being sent their content.
        return CodesSource, (self.folder,)

    def __len__(self) -> int:
        return self.manifest.recipe.count

    def key(self, index: int) -> str:
        shard, row = self._at(index)
        return shard.key(row)

    def captions(self, index: int) -> tuple[str, ...]:
        shard, row = self._at(index)
        return shard.captions(row)

    def split(self, index: int) -> str | None:
        shard, row = self._at(index)
        return shard.split(row)

    def split_table(self) -> SplitTable:
        """As `data.split.Tabled` has it. Raises ValueError naming the shard whose header or tables are damaged."""
        shards = self.manifest.shards
        read = in_threads(partial(_tables, self.folder, self.manifest), shards)
        tables = list(with_progress(read, len(shards), self.folder, done="opened", things="shards"))
        old = sum(version < VERSION for _, _, version in tables)
        if old:
            log.warning(
                "%s: %s of %s shards were written before each picture had a checksum: what damages them is found by "
                "encode.py --verify alone",
                self.folder,
                f"{old:,}",
                f"{len(shards):,}",
            )
        hashes, splits, _ = zip(*tables, strict=True)
        return SplitTable(np.concatenate(hashes), np.concatenate(splits))

    def identity(self) -> Iterable[str]:
        """The image tokenizer and the digest of each shard, as the manifest has them: nothing is read for it."""
        yield f"{self.fingerprint} {self.grid_size} {self.crops}"
        yield from (entry.digest for entry in self.manifest.shards)

    def codes(self, index: int, crop: int = 0) -> Tensor:
        """Codes of one crop of one picture, (h, w) int64.

        Raises ValueError naming shard and picture where they are damaged, and for a code that the tokenizer has not.
        """
        shard, row = self._at(index)
        codes = shard.crop(row, crop).astype(np.int64)
        if codes.max() >= self.codebook_size:
            raise ValueError(
                f"{shard.path}: the code {codes.max()} of {shard.key(row)!r}, expected 0 to {self.codebook_size - 1}"
            )
        return torch.from_numpy(codes)

    def _at(self, index: int) -> tuple[CodeShard, int]:
        number = bisect_right(self._starts, index) - 1
        return self._shard(number), index - self._starts[number]


def _numbered(folder: Path, manifest: Manifest, number: int) -> CodeShard:
    return open_shard(folder, manifest, manifest.shards[number])


def _tables(folder: Path, manifest: Manifest, entry: ShardEntry) -> tuple[np.ndarray, np.ndarray, int]:
    """Hashes and splits of a shard, and its version. Raises as `open_shard`."""
    tables = sound_tables(folder / entry.name, manifest.shape(entry), entry.digest)
    if tables is not None:
        return *tables, VERSION
    shard = open_shard(folder, manifest, entry)  # which says what is wrong, or it is of version 1
    return shard.hashes.copy(), shard.splits.copy(), shard.header.version


def _check_size(folder: Path, entry: ShardEntry) -> None:
    path = folder / entry.name
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    if (size := path.stat().st_size) != entry.bytes:
        raise ValueError(f"{path} is damaged: it has {size:,} bytes, {MANIFEST} says {entry.bytes:,}")


def open_shard(folder: Path, manifest: Manifest, entry: ShardEntry) -> CodeShard:
    """A shard that the manifest names. Raises ValueError where it is missing, or another one."""
    _check_size(folder, entry)
    path, shape = folder / entry.name, manifest.shape(entry)
    shard = CodeShard(path)
    if shard.codes.shape != shape:
        raise ValueError(f"{path} holds codes {shard.codes.shape}, {MANIFEST} says {shape}")
    if shard.header.digest != entry.digest:
        raise ValueError(f"{path} has the checksum {shard.header.digest}, {MANIFEST} says {entry.digest}")
    return shard


def verify(folder: str | Path) -> Manifest:
    """Reads every byte of a folder of codes. Raises ValueError that names all shards that are missing or damaged."""
    folder = Path(folder)
    manifest = _manifest_of(folder)
    problems = []
    for entry in manifest.shards:
        try:
            shard = open_shard(folder, manifest, entry)
            shard.verify()
            check_codes(shard, manifest.recipe.codebook_size)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(manifest.shards)} shards: {'; '.join(problems)}. Remove them and encode again "
            "with the same settings: these alone are made anew"
        )
    return manifest


def check_codes(shard: CodeShard, codebook_size: int) -> None:
    """ValueError naming the first picture with a code that the image tokenizer has not."""
    if shard.codes.size and shard.codes.max() >= codebook_size:
        row = int((shard.codes >= codebook_size).any(axis=(1, 2, 3)).argmax())
        raise ValueError(
            f"{shard.path}: the code {shard.codes[row].max()} of {shard.key(row)!r}, expected 0 to {codebook_size - 1}"
        )


def _manifest_of(folder: Path) -> Manifest:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: expected one of codes, as encode.py writes it")
    if not (folder / MANIFEST).is_file() and (folder / RECIPE).is_file():
        raise ValueError(f"{folder} is half-made: the encode.py command that began it goes on with it")
    return read_manifest(folder)
