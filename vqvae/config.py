"""Sizes of a discrete VAE. The named ones are the files in configs/tokenizer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vqvae.pixels import PIXEL_SPACES

NETWORK_NAMES = ("dalle", "conv")  # networks.py has what they are


LARGEST_SIDE = 2**16  # of a picture, in pixels
MOST_GROUPS, MOST_BLOCKS, WIDEST = 12, 1024, 4096  # beyond these, a file is damaged or an attack


def check_whole(name: str, value: Any, least: int, most: int = 2**31) -> None:
    """ValueError unless `value` is a whole number, from least to most."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least {least} and at most {most:,}")


@dataclass(frozen=True, kw_only=True)
class DiscreteVAEConfig:
    """What a discrete VAE is built from; the defaults are the paper's.

    Attributes:
        image_size: side of the pictures in pixels, a multiple of the downsample factor.
        n_hid: width of the group at full resolution; it doubles from group to group. A multiple of 4.
        n_init: width of the decoder's code embedding; in network "conv" also of what the encoder ends in.
        n_groups: resolutions; the downsample factor is 2^(n_groups - 1).
        n_blk_per_group: residual blocks in each group.
        codebook_size: number of codes, K.
        network: "dalle" (the paper's) or "conv" (VQGAN's); see networks.py.
        pixels: the space in which the network sees pictures, "logit_laplace" (the paper's) or "signed" (pixels.py).
        quantizer: "gumbel" (the paper's), "vq", "fsq", "lfq", "bsq" or "ibq"; see quantizers.py.
        quantizer_options: further arguments of the chosen quantizer's class (gumbel.py, vector_quantizer.py, fsq.py,
            lfq.py, ibq.py).
        post_gain: weight of each residual path; None is the paper's 1 / n_layers^2, where n_layers = n_groups *
            n_blk_per_group. Small networks that train for minutes want more (docs/log.md). For network "dalle" only.
        width_multipliers: width of each group in n_hid; None doubles from group to group. For network "conv" only.
    """

    image_size: int = 256
    n_hid: int = 256
    n_init: int = 128
    n_groups: int = 4
    n_blk_per_group: int = 2
    codebook_size: int = 8192
    network: str = "dalle"
    pixels: str = "logit_laplace"
    quantizer: str = "gumbel"
    quantizer_options: Mapping[str, Any] = field(default_factory=dict)
    post_gain: float | None = None
    width_multipliers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        most = {"image_size": LARGEST_SIDE, "n_groups": MOST_GROUPS, "n_blk_per_group": MOST_BLOCKS}
        for name in ("image_size", "n_hid", "n_init", "n_groups", "n_blk_per_group"):
            check_whole(name, getattr(self, name), 1, most.get(name, LARGEST_SIDE))
        check_whole("codebook_size", self.codebook_size, 2)
        if not isinstance(self.quantizer_options, Mapping):
            raise ValueError(f"quantizer_options is {self.quantizer_options!r}, expected names and values")
        gain = self.post_gain
        if gain is not None and not (isinstance(gain, int | float) and abs(gain) < math.inf):  # which NaN is not
            raise ValueError(f"post_gain is {gain!r}, expected a number or none")
        for name, known in {"network": NETWORK_NAMES, "pixels": tuple(PIXEL_SPACES)}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
        if self.n_hid % 4:
            raise ValueError(f"n_hid is {self.n_hid}, expected a multiple of 4 (blocks divide their width by it)")
        self._check_options_of_the_network()
        if self.image_size % self.downsample_factor:
            raise ValueError(
                f"image_size is {self.image_size}, expected a multiple of the downsample factor "
                f"{self.downsample_factor} (n_groups = {self.n_groups})"
            )

    def _check_options_of_the_network(self) -> None:
        for name, network in {"post_gain": "dalle", "width_multipliers": "conv"}.items():
            if getattr(self, name) is not None and self.network != network:
                raise ValueError(f"{name} is {getattr(self, name)}, but network {self.network!r} has none")
        if self.width_multipliers is None:
            return
        multipliers = tuple(self.width_multipliers)
        object.__setattr__(self, "width_multipliers", multipliers)  # JSON has lists
        if len(multipliers) != self.n_groups:
            raise ValueError(
                f"width_multipliers are {len(multipliers)}, {list(multipliers)}, expected one for each of the "
                f"{self.n_groups} groups"
            )
        if not all(type(multiplier) is int and 1 <= multiplier <= WIDEST for multiplier in multipliers):
            raise ValueError(
                f"width_multipliers are {list(multipliers)}, expected whole numbers of at least 1 and at most {WIDEST}"
            )

    @property
    def downsample_factor(self) -> int:
        return 2 ** (self.n_groups - 1)

    @property
    def grid_size(self) -> tuple[int, int]:
        side = self.image_size // self.downsample_factor
        return side, side

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the groups, from the highest resolution to the lowest."""
        return tuple(self.n_hid * m for m in self.width_multipliers or [2**g for g in range(self.n_groups)])

    @property
    def residual_gain(self) -> float:
        return self.post_gain if self.post_gain is not None else (self.n_groups * self.n_blk_per_group) ** -2
