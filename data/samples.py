"""From an item of the order to one row of a batch.

A sample is put together by readers, each of which adds its part; what is random in them is drawn from one generator
made of (seed, epoch, position).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data.codes import CodesSource
from data.order import Item, generator_of
from data.source import Source
from data.split import Keyed
from data.text import TextTokenizer, pad
from data.transforms import evaluation_crop, least_side

Augmentation = Callable[[Image.Image, int, torch.Generator], Tensor]


class Reader(Protocol):
    """Adds named parts to the sample at `index` of a source."""

    def __call__(self, index: int, generator: torch.Generator) -> dict[str, Any]: ...


class Samples(Dataset):
    """Rows {"keys": str, ...what the readers add}; the default collation makes batches of them."""

    def __init__(self, source: Keyed, seed: int, readers: Sequence[Reader]) -> None:
        self.source = source
        self.seed = seed
        self.readers = tuple(readers)

    def __getitem__(self, item: Item) -> dict[str, Any]:
        assert isinstance(item, Item), f"got {item!r}: something has replaced EpochOrder"
        generator = generator_of(self.seed, item.epoch, item.position)
        sample: dict[str, Any] = {"keys": self.source.key(item.index)}
        for reader in self.readers:
            sample |= reader(item.index, generator)
        return sample


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
    """Adds "image_tokens" (h, w) int64."""

    def __init__(self, source: CodesSource) -> None:
        self.source = source

    def __call__(self, index: int, generator: torch.Generator) -> dict[str, Any]:
        return {"image_tokens": self.source.codes(index)}


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
