"""Palette: Image GPT's tokenizer, one token a pixel, out of a few hundred colours.

"Generative Pretraining from Pixels", https://proceedings.mlr.press/v119/chen20s.html, section 3.2: pictures are made
small, and 512 colours found by k-means among their pixels stand for all.

Legend: B batch, K colours, H W pixels.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from kernels.nearest import nearest_code
from model_files import CONFIG, load_config, load_model, save_folder
from vqvae.config import LARGEST_SIDE, check_whole
from vqvae.indices import check_indices
from vqvae.kmeans import kmeans
from vqvae.pixels import check_range

KIND = "palette"


@dataclass(frozen=True, kw_only=True)
class PaletteConfig:
    """`image_size` is the side of the pictures in pixels and of the grid in tokens; `codebook_size` the colours, K."""

    image_size: int = 32
    codebook_size: int = 512

    def __post_init__(self) -> None:
        check_whole("image_size", self.image_size, 1, LARGEST_SIDE)
        check_whole("codebook_size", self.codebook_size, 2)

    @property
    def grid_size(self) -> tuple[int, int]:
        return self.image_size, self.image_size


class Palette(nn.Module):
    """Pictures to the nearest of K colours and back."""

    def __init__(self, config: PaletteConfig) -> None:
        super().__init__()
        self.config = config
        # A parameter, so that it tells the module's device; (K, 3) in [0, 1].
        self.colours = nn.Parameter(torch.rand(config.codebook_size, 3), requires_grad=False)

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """(h, w) for pictures of the configured size; other sizes work too."""
        return self.config.grid_size

    @classmethod
    def fit(cls, config: PaletteConfig, pixels: Tensor, *, steps: int = 50, seed: int = 0) -> "Palette":
        """The palette of pixels (N, 3) in [0, 1], by k-means.

        Raises ValueError where they are no such pixels, or have fewer different colours than the palette is to have.
        """
        if pixels.ndim != 2 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise ValueError(f"pixels are {pixels.dtype} of shape {tuple(pixels.shape)}, expected floats (N, 3)")
        different = len(torch.unique(pixels, dim=0))
        if different < config.codebook_size:
            raise ValueError(f"the pictures have {different} colours, fewer than the {config.codebook_size} asked for")
        palette = cls(config)
        palette.colours.copy_(kmeans(pixels.float(), config.codebook_size, steps, seed))
        return palette.eval()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> indices (B, H, W) int64."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images are {images.dtype} of shape {tuple(images.shape)}, expected floats (B, 3, H, W)")
        check_range(images)
        return nearest_code(images.float().movedim(1, -1), self.colours)

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """indices (B, H, W) int64 in [0, codebook_size) -> images (B, 3, H, W) in [0, 1]."""
        check_indices(indices, self.codebook_size)
        return F.embedding(indices, self.colours).movedim(-1, 1).contiguous()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `model.safetensors` and `config.json` into `folder`, which is made where it is missing."""
        save_folder(folder, self, {"kind": KIND} | asdict(self.config))

    @staticmethod
    def load_config(folder: str | Path) -> PaletteConfig:
        """The configuration in a model folder. Raises ValueError naming the file that is missing or of another kind."""
        settings = load_config(folder)
        try:
            if settings.pop("kind", None) != KIND:
                raise ValueError("it names another kind")
            return PaletteConfig(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{Path(folder) / CONFIG} is no palette's: {error}") from error

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Palette":
        """The palette that `save_pretrained` wrote, on the CPU. Raises ValueError as `DiscreteVAE.from_pretrained`."""
        return load_model(folder, partial(cls, cls.load_config(folder)))


def sample_pixels(pictures: Iterable[Tensor], a_picture: int, seed: int = 0) -> Tensor:
    """Up to `a_picture` pixels of each picture (3, H, W), without repetition -> (N, 3)."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for picture in pictures:
        pixels = picture.flatten(1).t()
        samples.append(pixels[torch.randperm(len(pixels), generator=generator)[:a_picture]])
    return torch.cat(samples) if samples else torch.empty(0, 3)
