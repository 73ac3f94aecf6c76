"""DiscreteVAE: encoder + quantizer + decoder. images (B, 3, H, W) in [0, 1] <-> indices (B, h, w).

The model of https://arxiv.org/abs/2102.12092, section 2.1 and appendix A, at any size, with the network, the quantizer
and the pixel space that the configuration names.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from model_files import CONFIG, load_config, load_model, save_folder
from vqvae.config import DiscreteVAEConfig
from vqvae.cpu_layers import in_rows
from vqvae.indices import check_indices
from vqvae.networks import NETWORKS
from vqvae.pixels import PIXEL_SPACES, check_range
from vqvae.quantizer import Quantized
from vqvae.quantizers import build_quantizer


class DiscreteVAEOutput(NamedTuple):
    """maps (B, n_maps, H, W): what the decoder says of the pixels (pixels.py); quantized: see quantizer.py."""

    maps: Tensor
    quantized: Quantized


class DiscreteVAE(nn.Module):
    """Pictures to codes and back. What a picture's tokens mean is fixed by its weights alone."""

    def __init__(self, config: DiscreteVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer = build_quantizer(
            config.quantizer, config.codebook_size, 3 * config.downsample_factor**2, config.quantizer_options
        )
        self.pixels = PIXEL_SPACES[config.pixels]
        network = NETWORKS[config.network]
        self.encoder = network.encoder(config, self.quantizer.in_channels)
        self.decoder = network.decoder(config, self.quantizer.out_channels, self.pixels.n_maps)

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """(h, w) for pictures of the configured size; other multiples of the downsample factor work too."""
        return self.config.grid_size

    def forward(self, images: Tensor) -> DiscreteVAEOutput:
        """images (B, 3, H, W) in [0, 1]. Relaxed codes in training mode, hard ones in eval mode."""
        quantized = self.quantizer(self.encode_vectors(images))
        z_q = quantized.z_q.to(self.decoder.input_conv.weight.dtype)
        return DiscreteVAEOutput(self.decoder(z_q), quantized)

    def encode_vectors(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) -> z_e (B, quantizer.in_channels, h, w)."""
        return self.encoder(self._checked_pixels(images))

    def _checked_pixels(self, images: Tensor) -> Tensor:
        factor, dtype = self.config.downsample_factor, self.encoder.output_conv.weight.dtype
        if not images.is_floating_point():
            raise ValueError(f"images have dtype {images.dtype}, expected floats in [0, 1]")
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % factor or images.shape[3] % factor:
            raise ValueError(
                f"images have shape {tuple(images.shape)}, expected (B, 3, H, W) with H and W multiples of {factor}"
            )
        return self.pixels.from_images(images).to(dtype)

    def reconstruction(self, maps: Tensor) -> Tensor:
        """The picture that maps (B, n_maps, H, W) stand for: (B, 3, H, W) in [0, 1]."""
        return self.pixels.to_images(maps).clamp(0, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> indices (B, h, w) int64.

        Raises ValueError for other shapes and dtypes, and for values far outside, as of pictures in 0..255 or -1..1.
        """
        pixels = self._checked_pixels(images)
        check_range(images)
        features = self.encoder.features(pixels)
        return self.quantizer.indices_after(features, self.encoder.output_conv)

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """indices (B, h, w) int64 in [0, codebook_size) -> images (B, 3, H, W) in [0, 1]."""
        check_indices(indices, self.codebook_size)
        embedded = self.quantizer.indices_into(indices, self.decoder.input_conv)
        return self.reconstruction(self.decoder.after_input(in_rows(embedded)))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `model.safetensors` and `config.json` into `folder`, which is made where it is missing."""
        save_folder(folder, self, asdict(self.config))

    @staticmethod
    def load_config(folder: str | Path) -> DiscreteVAEConfig:
        """The configuration in a model folder. Raises ValueError naming the file that is missing or of another kind."""
        settings = load_config(folder)
        if (kind := settings.get("kind")) is not None:
            raise ValueError(
                f"{Path(folder) / CONFIG} is of kind {kind!r}, no discrete VAE's: vqvae.folders.load_image_tokenizer "
                "loads any kind"
            )
        try:
            return DiscreteVAEConfig(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{Path(folder) / CONFIG} is no discrete VAE's: {error}") from error

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "DiscreteVAE":
        """The model that `save_pretrained` wrote, on the CPU and in evaluation mode.

        Raises ValueError naming a file that is missing or damaged, or settings and weights that do not fit.
        """
        return load_model(folder, partial(cls, cls.load_config(folder)))
