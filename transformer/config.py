"""The size of a prior, and the mask of each of its layers.

The paper's prior (https://arxiv.org/abs/2102.12092, section 2.2 and appendix B.1) has 64 layers of 62 heads of 64; the
preset `dalle-12b` is that one: with 255 caption tokens out of 16,384 and 32x32 codes out of 8192, it has 12,292,808,448
parameters (counted on the meta device, in tests/transformer/test_config.py). The others are the same model made
smaller, with the modern block of blocks.py.
"""

from dataclasses import dataclass
from typing import Literal

from kernels.patterns import ConvWrap, Kind, Pattern

PRESETS: dict[str, dict[str, int | str]] = {
    "dalle-12b": {"n_layer": 64, "n_head": 62, "n_embd": 3968, "block": "paper"},
    "large": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "block": "modern"},
    "base": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block": "modern"},
    "small": {"n_layer": 8, "n_head": 6, "n_embd": 384, "block": "modern"},
    "tiny": {"n_layer": 4, "n_head": 4, "n_embd": 256, "block": "modern"},
}
BLOCKS = ("paper", "modern")
MASKS = ("sparse", "causal")
MOST = {"n_layer": 4096, "mlp_ratio": 1024, "conv_kernel": 1023}  # beyond these, a file is damaged or an attack
NORM_EPS = 1e-6
"""Of every RMSNorm and of QK-norm; for RMSNorm, PyTorch's default follows the dtype and would be 0.008 in bf16."""


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Everything that fixes the shape of a prior's weights and what each position may attend to.

    The first four sizes follow from the tokenizers. `n_layer`, `n_head`, `n_embd` and `block` are taken from the preset
    where they are None, so after construction none of them is.

    Raises ValueError where a preset is unknown or a size is impossible.
    """

    text_vocab_size: int = 16_384
    """BPE entries; BOS and the pads are not among them."""
    text_len: int = 256
    """Text positions, BOS included: captions have at most text_len - 1 tokens."""
    codebook_size: int = 8192
    grid_size: tuple[int, int] = (32, 32)
    """Rows and columns of the token grid."""

    preset: str = "small"
    n_layer: int | None = None
    n_head: int | None = None
    n_embd: int | None = None
    block: Literal["paper", "modern"] | None = None
    """"paper" (LayerNorm, GELU) or "modern" (RMSNorm, QK-norm, 2-D rotary, SwiGLU)."""

    masks: Literal["sparse", "causal"] = "sparse"
    """Of the layers: the paper's schedule of row, column and conv, or all that came before in each, text and image."""
    mlp_ratio: int = 4
    conv_kernel: int = 11
    conv_wrap: ConvWrap = "linear"
    attend_pads: bool = True
    """Whether image positions see the pads of the text, as in the paper. Without, nothing about a picture depends on
    them: its first token is then predicted at the caption's last token instead of at the last text position."""
    checkpoint_activations: bool = False
    """Recompute every block in the backward pass, which trades a third more arithmetic for memory."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}, expected one of {', '.join(PRESETS)}")
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        object.__setattr__(self, "grid_size", tuple(self.grid_size))
        self._check_sizes()

    def _check_sizes(self) -> None:
        if self.block not in BLOCKS:
            raise ValueError(f"block is {self.block!r}, expected one of {', '.join(BLOCKS)}")
        if self.masks not in MASKS:
            raise ValueError(f"masks is {self.masks!r}, expected one of {', '.join(MASKS)}")
        if len(self.grid_size) != 2:
            raise ValueError(f"grid_size has {len(self.grid_size)} numbers, expected 2: rows and columns")
        least_one = ("text_vocab_size", "codebook_size", "n_layer", "n_head", "n_embd", "mlp_ratio")
        sizes = {name: getattr(self, name) for name in least_one}
        sizes |= {"grid_size[0]": self.grid_size[0], "grid_size[1]": self.grid_size[1], "conv_kernel": self.conv_kernel}
        for name, value in sizes.items():
            _check_whole(name, value, 1, MOST.get(name, 2**31))
        _check_whole("text_len", self.text_len, 2, 2**31)  # BOS and one caption token
        for name in ("attend_pads", "checkpoint_activations"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected true or false")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.block == "modern" and self.head_dim % 4:
            raise ValueError(
                f"n_embd {self.n_embd} / n_head {self.n_head} = {self.head_dim}, expected a multiple of 4: "
                "2-D rotary positions turn pairs of numbers, half of them by row and half by column"
            )
        self.pattern("conv")  # checks conv_kernel and conv_wrap

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def image_len(self) -> int:
        return self.grid_size[0] * self.grid_size[1]

    @property
    def seq_len(self) -> int:
        return self.text_len + self.image_len

    @property
    def layer_kinds(self) -> list[Kind]:
        """The mask of each layer, as `pattern` takes it."""
        return ["causal"] * self.n_layer if self.masks == "causal" else sparse_schedule(self.n_layer)

    def pattern(self, kind: Kind) -> Pattern:
        """The mask called `kind` ("causal", "row", "column", "conv") at this prior's sizes."""
        height, width = self.grid_size
        return Pattern(
            kind=kind,
            text_len=self.text_len,
            height=height,
            width=width,
            conv_kernel=self.conv_kernel,
            conv_wrap=self.conv_wrap,
        )


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least {least} and at most {most:,}")


def sparse_schedule(n_layer: int) -> list[Kind]:
    """Mask of each layer, from the paper's appendix B.1: row, column, row, row, row, column, ... and conv at the end.

    Counted from 1, layer i is "column" where (i - 2) mod 4 = 0 and "row" otherwise; the last is "conv", also where it
    is the only one.
    """
    kinds = ["column" if (i - 2) % 4 == 0 else "row" for i in range(1, n_layer)]
    return [*kinds, "conv"]
