"""Pictures -> a folder of codes: encode once, train the prior many times (data/codes.py).

A shard's pictures are encoded in batches that begin with the shard and do not reach into the next one. So what a
picture is encoded beside depends on the batch size alone, and not on the number of devices or workers, nor on where an
encoding was stopped and gone on with.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.code_manifest import MANIFEST, Recipe
from data.code_shards import Row
from data.codes import CodesSource
from data.codes_writer import CodesWriter
from data.order import generator_of
from data.samples import evaluation_picture
from data.source import Source
from data.split import fingerprint as fingerprint_of_data
from data.split import key_hash
from data.transforms import least_side, prior_augmentation
from data.worker_signals import killed_workers_said, leave_signals_to_main
from pipeline import ImageTokenizer, fingerprint


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How pictures are encoded.

    Attributes:
        crops: of each picture: the evaluation crop, then others by the paper's augmentation for the prior.
        seed: of the other crops.
        rows_per_shard: pictures in a file. What an interruption costs is the shard that a device is at.
        batch_size: pictures encoded at a time.
        workers: processes that read pictures; 0 reads in this one.
    """

    crops: int = 1
    seed: int = 0
    rows_per_shard: int = 4096
    batch_size: int = 32
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("crops", "rows_per_shard", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}, expected at least 1")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers}, expected 0 or more")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}, expected -2**63 to 2**63 - 1: it is mixed as 64 bits")


@dataclass(frozen=True)
class Encoding:
    """Shards that are to be made. Can be sent to another process, which then makes its share of them."""

    source: Source
    writer: CodesWriter
    config: EncodeConfig
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def pictures(self) -> int:
        return sum(len(self.writer.recipe.rows(number)) for number in self.numbers)

    def finish(self) -> CodesSource:
        """The whole folder, once all shards are there; every byte of it is read and checked, if something was made."""
        whole = not self.numbers and (self.writer.folder / MANIFEST).is_file()
        return CodesSource(self.writer.folder) if whole else self.writer.finish()

    def share(self, rank: int, world_size: int) -> "Encoding":
        """Every world_size-th shard."""
        return replace(self, numbers=self.numbers[rank::world_size])


def begin(
    source: Source, image_tokenizer: ImageTokenizer, folder: str | Path, config: EncodeConfig, described: str = ""
) -> Encoding:
    """Makes the folder, or takes up what the same pictures, tokenizer and settings have begun; what is left to do.

    Args:
        source: pictures of any size.
        image_tokenizer: a module, on any device.
        folder: where the codes are to be.
        config: how.
        described: the pictures in words, for the manifest.

    Raises ValueError where the source is empty or the folder holds something else, naming what is different.
    """
    if len(source) == 0:
        raise ValueError(f"no pictures to encode for {folder}: expected at least one")
    recipe = Recipe(
        fingerprint=fingerprint(image_tokenizer),
        codebook_size=image_tokenizer.codebook_size,
        grid_size=tuple(image_tokenizer.grid_size),
        image_size=image_tokenizer.config.image_size,
        crops=config.crops,
        seed=config.seed,
        data=fingerprint_of_data(source),
        count=len(source),
        batch_size=config.batch_size,
        device=next(image_tokenizer.parameters()).device.type,
        rows_per_shard=config.rows_per_shard,
    )
    writer = CodesWriter(Path(folder), recipe, described).begin()
    return Encoding(source, writer, config, writer.missing())


def encode_shards(encoding: Encoding, image_tokenizer: ImageTokenizer, progress: Callable[[int], object]) -> None:
    """Makes the shards on the device that the image tokenizer is on.

    Args:
        encoding: which shards, and of what.
        image_tokenizer: a module.
        progress: gets the number of pictures done since it was called last, batch by batch.

    Raises ValueError for a picture that has gone, OSError where a shard cannot be written or a worker was killed.
    Shards that are finished then stay.
    """
    with killed_workers_said():
        _encode_shards(encoding, image_tokenizer, progress)


def _encode_shards(encoding: Encoding, image_tokenizer: ImageTokenizer, progress: Callable[[int], object]) -> None:
    source, writer = encoding.source, encoding.writer
    loader = iter(_loader(encoding))
    for number in encoding.numbers:
        rows, codes = writer.recipe.rows(number), []
        for _ in _batches(rows, encoding.config.batch_size):
            codes.append(_encode(image_tokenizer, next(loader)))
            progress(len(codes[-1]))
        brought = [Row(source.key(row), tuple(source.captions(row)), source.split(row)) for row in rows]
        writer.write(number, brought, torch.cat(codes))


def encode_source(
    source: Source,
    image_tokenizer: ImageTokenizer,
    folder: str | Path,
    config: EncodeConfig = EncodeConfig(),
    *,
    described: str = "",
    progress: Callable[[int], object] = lambda done: None,
) -> CodesSource:
    """Writes the codes of every picture of `source`, in its order, with their keys, captions and splits.

    What is in the folder already is not made again; an interruption leaves finished shards. Arguments and errors are
    those of `begin` and `encode_shards`; `progress` counts what is there already, too.
    """
    encoding = begin(source, image_tokenizer, folder, config, described)
    progress(len(source) - encoding.pictures)
    encode_shards(encoding, image_tokenizer, progress)
    return encoding.finish()


class _Crops(Dataset):
    """The crops of each picture of a source, (K, 3, size, size) in [0, 1]."""

    def __init__(self, source: Source, recipe: Recipe) -> None:
        self.source, self.recipe = source, recipe

    def __getitem__(self, index: int) -> Tensor:
        recipe, size = self.recipe, self.recipe.image_size
        crops = [evaluation_picture(self.source, index, size)]
        if recipe.crops > 1:
            image = self.source.image(index, least_side(size, prior_augmentation))
            key = key_hash(self.source.key(index)) - 2**63  # signed
            generators = (generator_of(recipe.seed, key, crop) for crop in range(1, recipe.crops))
            crops += [prior_augmentation(image, size, generator) for generator in generators]
        return torch.stack(crops)


def _batches(rows: range, batch_size: int) -> Iterator[range]:
    return (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))


def _loader(encoding: Encoding) -> DataLoader:
    """Batches (B, K, 3, size, size) of the pictures of the shards, in their order."""
    recipe, config = encoding.writer.recipe, encoding.config
    batches = [rows for number in encoding.numbers for rows in _batches(recipe.rows(number), config.batch_size)]
    return DataLoader(
        _Crops(encoding.source, recipe),
        batch_sampler=batches,
        num_workers=config.workers,
        worker_init_fn=leave_signals_to_main,
    )


@torch.inference_mode()
def _encode(image_tokenizer: ImageTokenizer, images: Tensor) -> Tensor:
    """images (B, K, 3, H, W) -> codes (B, K, h, w) on the CPU; a crop at a time, so that K changes no batch."""
    device = next(image_tokenizer.parameters()).device
    return torch.stack([image_tokenizer.encode(crop.to(device)).cpu() for crop in images.unbind(1)], dim=1)
