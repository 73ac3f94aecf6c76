"""The joint sequence: BOS, caption, pads, then the picture's tokens in raster order.

Only this file knows that position 0 is BOS and that every unused text position holds a learned pad of its own (section
2.2 of https://arxiv.org/abs/2102.12092). BOS and the pads are parameters beside the table of BPE entries and no rows of
it, so no caption can produce them.

Shapes: B batch, T sequence, C n_embd, h w token grid.
"""

import torch
from torch import Tensor, nn

from transformer.config import PriorConfig

PAD = -1
"""Marks an unused text position in `text_tokens`; BPE ids are never negative."""


def null_captions(batch_size: int, text_len: int, device: torch.device | str = "cpu") -> Tensor:
    """Captions of pads only, int64 (B, text_len - 1): what guidance and caption dropout put in a caption's place."""
    return torch.full((batch_size, text_len - 1), PAD, dtype=torch.long, device=device)


def text_lengths(text_tokens: Tensor) -> Tensor:
    """Text positions in use, BOS included: int32 (B,) in 1 .. text_len, from text_tokens (B, text_len - 1)."""
    return 1 + (text_tokens != PAD).sum(dim=1, dtype=torch.int32)


class JointEmbedding(nn.Module):
    """Token plus position, for text (one position table) and picture (a row and a column table)."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        height, width = config.grid_size
        self.bos = nn.Parameter(torch.empty(config.n_embd))
        self.pads = nn.Parameter(torch.empty(config.text_len - 1, config.n_embd))  # position 0 is always BOS
        self.text_token = nn.Embedding(config.text_vocab_size, config.n_embd)
        self.text_position = nn.Parameter(torch.empty(config.text_len, config.n_embd))
        self.image_token = nn.Embedding(config.codebook_size, config.n_embd)
        self.image_row = nn.Parameter(torch.empty(height, config.n_embd))
        self.image_column = nn.Parameter(torch.empty(width, config.n_embd))

    def text(self, text_tokens: Tensor) -> Tensor:
        """(B, text_len - 1) ids, PAD where unused -> (B, text_len, C)."""
        is_pad = (text_tokens == PAD)[..., None]
        caption = torch.where(is_pad, self.pads, self.text_token(text_tokens.masked_fill(text_tokens == PAD, 0)))
        bos = self.bos.expand(len(text_tokens), 1, -1)
        return torch.cat([bos, caption], dim=1) + self.text_position

    def image(self, image_tokens: Tensor, start: int | Tensor = 0) -> Tensor:
        """(B, n) codes at raster positions start .. start + n - 1 -> (B, n, C); `start` may be a 0-d tensor."""
        index = torch.arange(image_tokens.shape[1], device=image_tokens.device) + start
        width = self.config.grid_size[1]
        position = self.image_row[index // width] + self.image_column[index % width]
        return self.image_token(image_tokens) + position

    def forward(self, text_tokens: Tensor, image_tokens: Tensor) -> Tensor:
        """(B, text_len - 1) ids and (B, n) codes of the first n raster positions -> (B, text_len + n, C)."""
        return torch.cat([self.text(text_tokens), self.image(image_tokens)], dim=1)
