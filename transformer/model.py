"""The prior: one decoder-only transformer over a caption and a picture's tokens, with a head for each.

Zero-Shot Text-to-Image Generation, https://arxiv.org/abs/2102.12092, section 2.2 and appendix B. The output at sequence
position p predicts the token at p + 1: before the last text position in the text vocabulary, from there on in the
codebook; the last output has no target. Every layer has one mask, of the schedule in config.py.

Shapes: B batch, T sequence, C n_embd, D head dim, V text vocabulary, K codebook, h w token grid.
"""

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model_files import load_config, load_model, save_folder
from transformer.attention import Attend, attend_sequence
from transformer.blocks import ModernBlock, PaperBlock
from transformer.config import PriorConfig
from transformer.embeddings import JointEmbedding, text_lengths
from transformer.losses import PriorLoss, head_loss, weigh
from transformer.rms_norm import RMSNorm
from transformer.rotary import rotary_angles

INIT_STD = 0.02
"""Of all weights, and the layers that write into the residual stream divided by sqrt(2 n_layer), as in GPT-2 (section
2.3 of its paper); DALL-E's paper gives no starting values."""


class PriorHidden(NamedTuple):
    """What the heads read, before the last norm."""

    text: Tensor  # (B, text_len - 1, C), entry i predicts text_tokens[:, i]
    image: Tensor  # (B, h * w, C), entry i predicts raster position i


class PriorOutput(NamedTuple):
    text_logits: Tensor  # (B, text_len - 1, V), entry i predicts text_tokens[:, i]
    image_logits: Tensor  # (B, h * w, K), entry i predicts raster position i


class Prior(nn.Module):
    """Logits of every token of a caption and of a picture, given all before it."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        modern = config.block == "modern"
        self.config = config
        self.patterns = [config.pattern(kind) for kind in config.layer_kinds]
        self.embedding = JointEmbedding(config)
        self.blocks = nn.ModuleList((ModernBlock if modern else PaperBlock)(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.n_embd) if modern else nn.LayerNorm(config.n_embd)
        self.text_head = nn.Linear(config.n_embd, config.text_vocab_size, bias=False)
        self.image_head = nn.Linear(config.n_embd, config.codebook_size, bias=False)
        # Learned positions stay in the modern block as well: rotary ones know distances, not where the top is.
        angles = rotary_angles(config) if modern else torch.empty(config.seq_len, 0)
        self.register_buffer("cos", angles.cos(), persistent=False)  # (T, D / 2)
        self.register_buffer("sin", angles.sin(), persistent=False)  # (T, D / 2)
        self._initialise()

    def _initialise(self) -> None:
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                nn.init.normal_(parameter, std=residual_std if name.endswith("proj.weight") else INIT_STD)

    def forward(self, text_tokens: Tensor, image_tokens: Tensor) -> PriorOutput:
        """Every logit at once, each token seeing only those before it (teacher forcing).

        Args:
            text_tokens: int64 (B, text_len - 1), ids in 0 .. text_vocab_size - 1, PAD (-1) where unused.
            image_tokens: int64 (B, h, w) in 0 .. codebook_size - 1.

        Raises:
            ValueError: shapes that are not the config's.
        """
        text, image = self.hidden(text_tokens, image_tokens)
        return PriorOutput(self.text_logits(text), self.image_logits(image))

    def hidden(self, text_tokens: Tensor, image_tokens: Tensor) -> PriorHidden:
        """`forward` without its heads, for who wants the logits of one kind only, or not all at a time."""
        self.check_text(text_tokens)
        if image_tokens.shape[1:] != self.config.grid_size:
            height, width = self.config.grid_size
            raise ValueError(f"image_tokens are {tuple(image_tokens.shape)}, expected (B, {height}, {width})")
        prefix_lengths = self.prefix_lengths(text_tokens)
        x = self.embedding(text_tokens, image_tokens.flatten(1))  # (B, T, C)
        x = self.run_blocks(x, 0, attend_sequence(self.patterns, prefix_lengths))
        last_text = self.last_text(x, prefix_lengths)[:, None]  # (B, 1, C)
        text_len = self.config.text_len
        return PriorHidden(x[:, : text_len - 1], torch.cat([last_text, x[:, text_len:-1]], dim=1))

    def loss(self, text_tokens: Tensor, image_tokens: Tensor) -> PriorLoss:
        """`prior_loss` of the logits that `forward` returns, in less memory; takes what `forward` takes."""
        hidden = self.hidden(text_tokens, image_tokens)
        text = head_loss(self.norm(hidden.text), self.text_head.weight, text_tokens)
        return weigh(text, head_loss(self.norm(hidden.image), self.image_head.weight, image_tokens))

    def run_blocks(self, x: Tensor, position: int | Tensor, attend: Attend) -> Tensor:
        """Embeddings (B, N, C) of positions position .. position + N - 1 -> (B, N, C) before the last norm.

        A `position` may be a 0-d tensor on x's device.
        """
        positions = torch.arange(x.shape[1], device=x.device) + position
        rotary = self.cos.index_select(0, positions), self.sin.index_select(0, positions)
        recompute = self.config.checkpoint_activations and self.training and torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            layer_attend = partial(attend, layer)
            if recompute:
                x = checkpoint(block, x, rotary, layer_attend, use_reentrant=False)
            else:
                x = block(x, rotary, layer_attend)
        return x

    def text_logits(self, x: Tensor) -> Tensor:
        """(..., C) as `run_blocks` returns it -> (..., V)."""
        return self.text_head(self.norm(x))

    def image_logits(self, x: Tensor) -> Tensor:
        """(..., C) as `run_blocks` returns it -> (..., K)."""
        return self.image_head(self.norm(x))

    def prefix_lengths(self, text_tokens: Tensor) -> Tensor | None:
        """How many text positions image tokens see, int32 (B,); None: all, pads included."""
        return None if self.config.attend_pads else text_lengths(text_tokens)

    def last_text(self, x: Tensor, prefix_lengths: Tensor | None) -> Tensor:
        """The text output that predicts the first image token: (B, >= text_len, C) -> (B, C).

        The last position's; where pads are not attended to, the last used position's, so that no pad has a part in it.
        """
        if prefix_lengths is None:
            return x[:, self.config.text_len - 1]
        return x[torch.arange(len(x), device=x.device), prefix_lengths.long() - 1]

    def check_text(self, text_tokens: Tensor) -> None:
        expected = self.config.text_len - 1
        if text_tokens.ndim != 2 or text_tokens.shape[1] != expected:
            raise ValueError(
                f"text_tokens are {tuple(text_tokens.shape)}, expected (B, {expected}): text_len - 1 of them"
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `model.safetensors` and `config.json` into `folder`, which is made where it is missing.

        Raises ValueError for a prior whose weights were rounded for decoding (serving.py).
        """
        weight = self.image_head.weight
        if not isinstance(self.image_head, nn.Linear) and weight.dtype != torch.float32:
            raise ValueError(f"a prior whose weights were rounded to {weight.dtype} is not saved, here in {folder}")
        save_folder(folder, self, asdict(self.config))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Prior":
        """The prior that `save_pretrained` wrote, on the CPU and in evaluation mode.

        Raises:
            ValueError: a file that is missing or damaged, or settings and weights that do not fit; names the file.
        """
        settings = load_config(folder)
        try:
            config = PriorConfig(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{Path(folder) / 'config.json'} is no prior's: {error}") from error
        return load_model(folder, partial(cls, config))
