"""Pictures -> a folder of codes: encode once, train the prior many times (data/codes.py)."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.codes import CodesSource, CodesWriter
from data.samples import evaluation_picture
from data.source import Source
from pipeline import ImageTokenizer, fingerprint


class _Pictures(Dataset):
    """The evaluation crop of each picture of a source, (3, size, size) in [0, 1]."""

    def __init__(self, source: Source, size: int) -> None:
        self.source, self.size = source, size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        return evaluation_picture(self.source, index, self.size)


def encode_source(
    source: Source,
    image_tokenizer: ImageTokenizer,
    folder: str | Path,
    *,
    image_size: int,
    batch_size: int = 32,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CodesSource:
    """Writes the codes of every picture of `source`, in its order, with their keys, captions and splits.

    The folder appears when all of it is there; an error or Ctrl-C on the way leaves nothing.

    Args:
        source: pictures of any size; their evaluation crop is encoded.
        image_tokenizer: a module, on the device that is to do the work.
        folder: must not exist yet.
        image_size: side in pixels of the pictures that the tokenizer sees; it gives `grid_size` codes for them.
        batch_size: pictures encoded at a time.
        workers: processes that read pictures; 0 reads in this one.
        progress: gets (pictures done, of all).

    Raises ValueError where the folder exists, a picture has gone or the source is empty.
    """
    device = next(image_tokenizer.parameters()).device
    made_by, codebook_size = fingerprint(image_tokenizer), image_tokenizer.codebook_size
    loader = DataLoader(_Pictures(source, image_size), batch_size=batch_size, num_workers=workers)
    with CodesWriter(folder, made_by, codebook_size, image_tokenizer.grid_size) as writer:
        done = 0
        for images in loader:
            rows = range(done, done + len(images))
            keys, captions, splits = ([of(i) for i in rows] for of in (source.key, source.captions, source.split))
            with torch.inference_mode():
                indices = image_tokenizer.encode(images.to(device))  # (B, h, w)
            writer.add(keys, captions, splits, indices)
            done += len(images)
            if progress is not None:
                progress(done, len(source))
    return CodesSource(folder)
