"""Pictures in the making: what is known of their tokens, decoded; grey where nothing is known yet.

    show = Previews(lambda batch, pictures: pictures[0].save("so-far.png"), every=4)
    pictures = pipeline("a tabby cat", previews=show)

At each showing the decoder is asked for the rows down to the last known token. A picture of h rows, shown after every
k-th, thus costs the time of about h / 2k more decodings.

Shapes: B batch, h w token grid, H W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.transforms import to_pil_images
from transformer.decoding import UNKNOWN

GREY = 0.5


@dataclass(frozen=True)
class Previews:
    """Who is to see pictures while they are drawn. Raises ValueError for `every` below 1."""

    show: Callable[[slice, list[Image.Image]], None]
    """Called with which of all pictures asked for are drawn side by side, and these so far; at last, finished."""
    every: int = 1
    """Rows of tokens between two calls."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"previews every {self.every} rows of tokens were asked for, expected at least 1")

    def after_row(
        self, batch: slice, decode: Callable[[Tensor], Tensor], kept: Tensor | None, filler: Tensor
    ) -> Callable[[Tensor], None]:
        """What is to be called after each row of a batch of pictures, with the tokens drawn so far.

        Args:
            batch: for `show`.
            decode: see `decode_known`, as for `filler`.
            kept: int64 (B, h, w), tokens to be shown before they are come to, and UNKNOWN.
        """

        def after_row(tokens: Tensor) -> None:
            done = int((tokens[0] != UNKNOWN).all(dim=1).sum())
            if done % self.every == 0 and done < tokens.shape[1]:  # finished ones are shown when they are decoded
                known = tokens if kept is None else tokens.where(tokens != UNKNOWN, kept)
                self.show(batch, to_pil_images(decode_known(decode, known, filler)))

        return after_row


def decode_known(decode: Callable[[Tensor], Tensor], tokens: Tensor, filler: Tensor) -> Tensor:
    """Pictures of which tokens are missing: (B, 3, H, W) in [0, 1], GREY where they are.

    Args:
        decode: of an image tokenizer, whose grid may have any number of rows.
        tokens: int64 (B, h, w), UNKNOWN where none is known; at least one is known.
        filler: int64 (h, w), what the decoder sees in the place of what is missing above what is known.
    """
    known = tokens != UNKNOWN
    height, width = tokens.shape[1:]
    rows = int(known.any(dim=2).any(dim=0).nonzero().max()) + 1
    seen = torch.where(known, tokens, filler)[:, :rows]
    images = torch.cat([decode(picture[None]) for picture in seen])  # one at a time, for the memory
    factor = images.shape[-1] // width
    shown = known[:, None, :rows].repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return F.pad(images.where(shown, GREY), (0, 0, 0, (height - rows) * factor), value=GREY)
