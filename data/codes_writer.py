"""Writes a folder of codes shard by shard, so that it can be stopped anywhere and gone on with.

What a shard holds is decided by the recipe alone. A shard appears whole or not at all, so what is there need not be
made again, and whoever makes a shard a second time writes the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from data.code_manifest import (
    MANIFEST,
    RECIPE,
    Manifest,
    Recipe,
    ShardEntry,
    read_manifest,
    read_recipe,
    shard_name,
    write_manifest,
    write_recipe,
)
from data.code_shards import CODE, CodeShard, Row, pack
from data.codes import CodesSource, check_codes
from whole_files import write_file


@dataclass(frozen=True)
class CodesWriter:
    """Writes codes into a folder; several processes may, each shards of its own, between one's `begin` and `finish`.

    Args:
        folder: where to write.
        recipe: what they are made by.
        source: the pictures, in words, for the manifest.
    """

    folder: Path
    recipe: Recipe
    source: str = ""

    def begin(self) -> "CodesWriter":
        """Makes the folder, or takes up one that the same recipe has begun or finished; the writer to go on with, whose
        recipe is the folder's: that of a former version may say less.

        Raises ValueError where there is anything else, naming what is different.
        """
        recipe = self.recipe
        if (self.folder / MANIFEST).is_file():
            recipe = read_manifest(self.folder).recipe
            self.recipe.check_same(recipe, self.folder)
            (self.folder / RECIPE).unlink(missing_ok=True)  # of a process that was killed after it wrote the manifest
        elif (self.folder / RECIPE).is_file():
            recipe = read_recipe(self.folder)[0]
            self.recipe.check_same(recipe, self.folder)
        else:
            if self.folder.exists() and not self.folder.is_dir():
                raise ValueError(f"{self.folder} is a file, expected a folder for the codes")
            if shards := [number for number in range(self.recipe.shards) if self._path(number).is_file()]:
                raise ValueError(
                    f"{self.folder} holds shards of codes ({shard_name(shards[0])}) but no {MANIFEST}, so that nobody "
                    f"knows what they were made by: put {MANIFEST} back, or remove the folder, or write elsewhere"
                )
            if self.folder.exists() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
                raise ValueError(f"{self.folder} exists already and holds no codes: write them elsewhere")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_recipe(self.folder, self.recipe, self.source)
        for beside in self.folder.glob(".*.part"):  # of a process that was killed
            beside.unlink()
        return replace(self, recipe=recipe)

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there yet."""
        return [number for number in range(self.recipe.shards) if not self._path(number).is_file()]

    def write(self, number: int, rows: Sequence[Row], codes: Tensor) -> None:
        """Write a shard.

        Args:
            number: which one.
            rows: those of the pictures `recipe.rows(number)`.
            codes: (N, K, h, w), integers in [0, codebook_size).

        Raises ValueError where rows or codes are others than the recipe says, OSError where they cannot be written.
        """
        recipe, shape = self.recipe, tuple(codes.shape)
        expected = (len(recipe.rows(number)), recipe.crops, *recipe.grid_size)
        if shape != expected or len(rows) != expected[0]:
            raise ValueError(f"got codes {shape} for {len(rows)} rows, expected {expected} for {expected[0]}")
        if codes.min() < 0 or codes.max() >= recipe.codebook_size:
            raise ValueError(f"codes run from {codes.min()} to {codes.max()}, expected 0 to {recipe.codebook_size - 1}")
        write_file(self._path(number), pack(recipe.digest, number, rows, codes.cpu().numpy().astype(CODE)))

    def finish(self) -> CodesSource:
        """Reads all shards, checks them and writes the manifest.

        Raises ValueError naming a shard that is missing, damaged or of another recipe, and keys that come twice.
        """
        entries, bare, hashes, captions = [], [], [], 0
        for number in range(self.recipe.shards):  # one at a time: a process may not have a map for each
            shard = self._checked(number)
            size = shard.path.stat().st_size
            entries.append(ShardEntry(shard.path.name, len(shard), size, shard.header.digest))
            bare += [shard.header.bare] if shard.header.bare[0] else []
            hashes.append(shard.hashes.copy())
            captions += shard.captions_in_all
        self._refuse_doubled_keys(hashes)
        manifest = Manifest(
            recipe=self.recipe,
            source=self._source_at_first(),
            captions=captions,
            bare=(sum(count for count, _ in bare), bare[0][1] if bare else None),
            shards=tuple(entries),
        )
        write_manifest(self.folder, manifest)
        (self.folder / RECIPE).unlink(missing_ok=True)
        return CodesSource(self.folder)

    def _checked(self, number: int) -> CodeShard:
        shard = CodeShard(self._path(number))
        if (shard.header.recipe, shard.header.number) != (self.recipe.digest, number):
            raise ValueError(f"{shard.path} is of another set of codes: remove it and go on")
        try:
            shard.verify()
            check_codes(shard, self.recipe.codebook_size)
        except ValueError as error:
            raise ValueError(f"{error}. Remove it and go on") from error
        return shard

    def _refuse_doubled_keys(self, hashes: Sequence[np.ndarray]) -> None:
        """`hashes` are those of each shard's keys."""
        values, counts = np.unique(np.concatenate(hashes), return_counts=True)
        doubled = values[counts > 1]  # of different keys, too, in one of many millions of sets
        seen: dict[str, Path] = {}
        for number, each in enumerate(hashes):
            rows = np.flatnonzero(np.isin(each, doubled)) if len(doubled) else ()
            shard = CodeShard(self._path(number)) if len(rows) else None
            for row in rows:
                key = shard.key(row)
                if key in seen:
                    raise ValueError(f"key {key!r} comes twice, in {seen[key]} and {shard.path}: expected it once")
                seen[key] = shard.path

    def _source_at_first(self) -> str:
        """The pictures in words when the folder was begun: it may have been renamed since."""
        if (self.folder / MANIFEST).is_file():
            return read_manifest(self.folder).source
        return read_recipe(self.folder)[1]

    def _path(self, number: int) -> Path:
        return self.folder / shard_name(number)


def write_codes(
    folder: str | Path, recipe: Recipe, rows: Sequence[Row], codes: Tensor, source: str = ""
) -> CodesSource:
    """Codes that are in memory, (N, K, h, w), as a folder. Raises ValueError as `CodesWriter` does."""
    writer = CodesWriter(Path(folder), recipe, source).begin()
    for number in writer.missing():
        of = recipe.rows(number)
        writer.write(number, rows[of.start : of.stop], codes[of.start : of.stop])
    return writer.finish()
