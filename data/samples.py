"""From an item of the order to one row of a batch.

A sample is put together by readers, each of which adds its part; what is random in them is drawn from one generator
made of (seed, epoch, position).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from data.codes import CodesSource
from data.order import REJECTS, Item, generator_of
from data.rejects import Rejected
from data.source import Source
from data.split import Keyed
from data.text import TextTokenizer, pad
from data.transforms import evaluation_crop, least_side

MOST_REJECTED = 20  # in one place
Augmentation = Callable[[Image.Image, int, torch.Generator], Tensor]


class Reader(Protocol):
    """Adds named parts to the sample at `index` of a source."""

    def __call__(self, index: int, generator: torch.Generator) -> dict[str, Any]: ...


class Samples(Dataset):
    """Rows {"keys": str, ...what the readers add, "rejects": list[Reject]}; `collate` makes batches of them.

    Where a sample turns out unusable when it is read (`Rejected`), its place is filled by another one of the pool,
    drawn from a generator of (seed, epoch, position, attempt): so the row is still a function of these and the batch is
    whole, on any number of workers and after any resume. That is never done in silence: the row names what was
    rejected, EpochLoader hands it on, and data/rejects.py logs, lists and counts it.

    Args:
        source: of all samples.
        pool: (N,) int64, the samples that may fill a place.
        seed: of what is random.
        readers: what makes up a row.
    """

    def __init__(self, source: Keyed, pool: Tensor, seed: int, readers: Sequence[Reader]) -> None:
        self.source = source
        self.pool = pool
        self.seed = seed
        self.readers = tuple(readers)

    def __getitem__(self, item: Item) -> dict[str, Any]:
        """Raises ValueError where one sample after the other is unusable: then it is not the samples' fault."""
        assert isinstance(item, Item), f"got {item!r}: something has replaced EpochOrder"
        rejects, index = [], item.index
        for attempt in range(MOST_REJECTED):
            try:
                return self._read(index, generator_of(self.seed, item.epoch, item.position)) | {REJECTS: rejects}
            except Rejected as error:
                rejects.append(error.reject)
                draws = generator_of(self.seed, item.epoch, item.position, attempt)
                index = int(self.pool[torch.randint(len(self.pool), (), generator=draws)])
        raise ValueError(
            f"{len(rejects)} samples in a row are unusable, the last ones {', '.join(map(str, rejects[-3:]))}"
        )

    def _read(self, index: int, generator: torch.Generator) -> dict[str, Any]:
        sample: dict[str, Any] = {"keys": self.source.key(index)}
        for reader in self.readers:
            sample |= reader(index, generator)
        return sample


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch as torch's default makes it of the rows, and all their rejects."""
    plain = [{name: part for name, part in row.items() if name != REJECTS} for row in rows]
    return default_collate(plain) | {REJECTS: [reject for row in rows for reject in row[REJECTS]]}


class PictureReader:
    """Adds "images" (3, size, size) float in [0, 1]; the evaluation crop where `augmentation` is None."""

    def __init__(self, source: Source, size: int, augmentation: Augmentation | None) -> None:
        self.source = source
        self.size = size
        self.augmentation = augmentation

    def __call__(self, index: int, generator: torch.Generator) -> dict[str, Any]:
        if self.augmentation is None:
            return {"images": evaluation_picture(self.source, index, self.size)}
        image = self.source.image(index, least_side(self.size, self.augmentation))
        return {"images": self.augmentation(image, self.size, generator)}


def evaluation_picture(source: Source, index: int, size: int) -> Tensor:
    """The evaluation crop of the picture at `index`, (3, size, size) in [0, 1]."""
    return evaluation_crop(source.image(index, least_side(size, evaluation_crop)), size)


class CodesReader:
    """Adds "image_tokens" (h, w) int64.

    Args:
        any_crop: draws one of a picture's crops; else the first, which is the evaluation crop.
    """

    def __init__(self, source: CodesSource, *, any_crop: bool) -> None:
        self.source = source
        self.any_crop = any_crop and source.crops > 1

    def __call__(self, index: int, generator: torch.Generator) -> dict[str, Any]:
        crop = int(torch.randint(self.source.crops, (), generator=generator)) if self.any_crop else 0
        return {"image_tokens": self.source.codes(index, crop)}


class CaptionReader:
    """Adds "captions" str and "text_tokens" (text_len - 1,) int64.

    Args:
        any_caption: draws one of a picture's captions; else the first.
        dropout: of BPE merges, in [0, 1].
    """

    def __init__(
        self, source: Keyed, tokenizer: TextTokenizer, text_len: int, *, any_caption: bool, dropout: float
    ) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.text_len = text_len
        self.any_caption = any_caption
        self.dropout = dropout

    def __call__(self, index: int, generator: torch.Generator) -> dict[str, Any]:
        captions = self.source.captions(index)
        which = int(torch.randint(len(captions), (), generator=generator)) if self.any_caption else 0
        ids = self.tokenizer.encode(captions[which], dropout=self.dropout, generator=generator)
        return {"captions": captions[which], "text_tokens": pad([ids], self.text_len).text_tokens[0]}
