"""What benchmarks/tokenizers.py compares: image tokenizers of ours and of others, behind one small face.

All of ours and all of vector-quantize-pytorch's quantizers stand in the same autoencoder, the paper's network with
residual paths at full strength. Ours are trained by Muon and AdamW, the library's by AdamW; one of ours by AdamW and
two of the library's by Muon tell what is the quantizer's and what the optimiser's. DALLE-pytorch's DiscreteVAE has a
network of its own, made larger rather than smaller. Packages of others are no dependencies: they take part where they
are installed.

Legend: B batch, K codebook, h w token grid.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import import_peer
from vqvae.config import DiscreteVAEConfig
from vqvae.losses import RECONSTRUCTION_LOSSES
from vqvae.model import DiscreteVAE
from vqvae.optim import TokenizerOptim, make_optimizer

DOWNSAMPLE_LAYERS = 3  # a code stands for 8x8 pixels


NOT_OF_THE_VAE = (  # that DALLE-pytorch imports
    *("axial_positional_embedding", "omegaconf", "taming", "taming.models", "taming.models.vqgan"),
    *("rotary_embedding_torch", "pkg_resources", "requests", "g_mlp_pytorch", "regex", "ftfy", "youtokentome"),
    *("transformers", "webdataset"),
)


# One step size for all that AdamW trains in our autoencoder: 3e-3 gave half a dB more there than 1e-3 in three minutes.
ADAMW = TokenizerOptim(lr=3e-3, betas=(0.9, 0.99))
MUON = TokenizerOptim(lr=3e-3, muon_lr=6e-3, betas=(0.9, 0.99))


class Contestant(Protocol):
    """An nn.Module that can be trained, and encodes and decodes pictures of any size in multiples of 8."""

    def optimizer(self) -> torch.optim.Optimizer: ...
    def loss(self, images: Tensor, progress: float) -> Tensor: ...
    def encode(self, images: Tensor) -> Tensor: ...
    def decode(self, indices: Tensor) -> Tensor: ...


def autoencoder_config(n_hid: int, codebook_size: int, **settings: Any) -> DiscreteVAEConfig:
    sizes = {"image_size": 64, "n_hid": n_hid, "n_init": 128, "n_groups": DOWNSAMPLE_LAYERS + 1, "n_blk_per_group": 1}
    return DiscreteVAEConfig(**sizes, codebook_size=codebook_size, post_gain=1.0, **settings)


class Ours(nn.Module):
    """A DiscreteVAE; schedules run over the training's length, whatever that is."""

    schedule_steps = 10_000

    def __init__(self, config: DiscreteVAEConfig, optim: TokenizerOptim) -> None:
        super().__init__()
        self.model, self.optim = DiscreteVAE(config).to(memory_format=torch.channels_last), optim
        self.reconstruction = RECONSTRUCTION_LOSSES["squared_error"].function

    def optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.optim)

    def loss(self, images: Tensor, progress: float) -> Tensor:
        self.model.quantizer.anneal(int(progress * self.schedule_steps))
        maps, quantized = self.model(images)
        return self.reconstruction(images, maps).mean() + quantized.loss

    def encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images)

    def decode(self, indices: Tensor) -> Tensor:
        return self.model.decode(indices)


class LibraryQuantized(nn.Module):
    """Our encoder and decoder around a quantizer of vector-quantize-pytorch."""

    def __init__(self, config: DiscreteVAEConfig, optim: TokenizerOptim, quantizer: nn.Module, dim: int) -> None:
        super().__init__()
        self.dim = dim
        model = DiscreteVAE(config)
        model.encoder = type(model.encoder)(config, dim)
        model.decoder = type(model.decoder)(config, dim, model.pixels.n_maps)
        model.quantizer = quantizer
        self.model, self.optim = model.to(memory_format=torch.channels_last), optim
        self.reconstruction = RECONSTRUCTION_LOSSES["squared_error"].function

    def optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.optim)

    def _quantize(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_e = self.model.encode_vectors(images).float()
        with torch.autocast(images.device.type, enabled=False):
            found = self.model.quantizer(z_e)
        z_q, indices = found[:2]
        loss = found[2].sum() if len(found) > 2 else z_q.new_zeros(())
        return z_q, indices, loss

    def loss(self, images: Tensor, progress: float) -> Tensor:
        z_q, _, loss = self._quantize(images)
        return self.reconstruction(images, self.model.decoder(z_q)).mean() + loss

    def encode(self, images: Tensor) -> Tensor:
        return self._quantize(images)[1].long()

    def decode(self, indices: Tensor) -> Tensor:
        quantizer = self.model.quantizer
        look_up = getattr(quantizer, "get_codes_from_indices", None) or quantizer.indices_to_codes
        z_q = look_up(indices)
        if z_q.shape[1] != self.dim:  # some keep the channels last
            z_q = z_q.movedim(-1, 1)
        return self.model.reconstruction(self.model.decoder(z_q.contiguous()))


class DallePytorch(nn.Module):
    """DALLE-pytorch's DiscreteVAE as its training script has it: temperature from 1 to 0.5, no KL; lr is 1e-3 there."""

    def __init__(self, codebook_size: int, hidden_dim: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.model = import_peer("dalle_pytorch", NOT_OF_THE_VAE).DiscreteVAE(
            image_size=64,
            num_layers=DOWNSAMPLE_LAYERS,
            num_tokens=codebook_size,
            codebook_dim=512,
            hidden_dim=hidden_dim,
            num_resnet_blocks=1,
            temperature=1.0,
        )

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, betas=ADAMW.betas, weight_decay=ADAMW.weight_decay)

    def loss(self, images: Tensor, progress: float) -> Tensor:
        return self.model(images, return_loss=True, temp=max(0.5 ** (2 * progress), 0.5))

    def encode(self, images: Tensor) -> Tensor:
        self.model.image_size = images.shape[-1]  # it takes pictures of one size, which its network does not need
        return self.model(images, return_logits=True).argmax(dim=1)

    def decode(self, indices: Tensor) -> Tensor:
        # Theirs takes square grids alone and leaves the normalisation on.
        codes = self.model.codebook(indices).movedim(-1, 1)
        return (self.model.decoder(codes) * 0.5 + 0.5).clamp(0, 1)


def contestants(n_hid: int, hidden_dim: int, codebook_size: int) -> Mapping[str, Callable[[], Contestant]]:
    """By name, in the order of the table; "ours" and the libraries' first word in the name says whose they are."""
    bits = int(math.log2(codebook_size))
    fsq_levels = {256: [8, 8, 4], 1024: [8, 8, 4, 4], 4096: [8, 8, 8, 8]}.get(codebook_size)

    def ours(quantizer: str, optim: TokenizerOptim = MUON, **options: Any) -> Callable[[], Contestant]:
        settings = {"quantizer": quantizer, "quantizer_options": options}
        return lambda: Ours(autoencoder_config(n_hid, codebook_size, **settings), optim)

    def library(name: str, channels: int, optim: TokenizerOptim = ADAMW, **options: Any) -> Callable[[], Contestant]:
        def make() -> Contestant:
            quantizer = getattr(import_peer("vector_quantize_pytorch"), name)(**options)
            config = autoencoder_config(n_hid, codebook_size, quantizer="vq")
            return LibraryQuantized(config, optim, quantizer, channels)

        return make

    plain = {"restart_below": 0.2, "normalise": False, "standardise": False, "kmeans_steps": 10}
    of_library = {"dim": 16, "codebook_size": codebook_size, "accept_image_fmap": True, "decay": 0.95}
    kept_in_use = {"kmeans_init": True, "threshold_ema_dead_code": 2}
    entries = {
        "ours: gumbel": ours("gumbel", tau_steps=Ours.schedule_steps, tau_end=0.25, beta=6.6, beta_steps=1000),
        "ours: vq": ours("vq", codebook_dim=16, decay=0.95, restart_below=0.2),
        "ours: vq, plain codes": ours("vq", codebook_dim=4, decay=0.95, **plain),
        "ours: vq, plain codes by gradient": ours("vq", codebook_dim=4, ema=False, **plain),
        "ours: fsq": ours("fsq", levels=fsq_levels),
        "ours: lfq": ours("lfq"),
        "ours: bsq": ours("bsq"),
        "ours: ibq": ours("ibq", codebook_dim=16),
        "ours: fsq, AdamW alone": ours("fsq", ADAMW, levels=fsq_levels),
        "dalle-pytorch: DiscreteVAE, lr 1e-3": lambda: DallePytorch(codebook_size, hidden_dim, 1e-3),
        "dalle-pytorch: DiscreteVAE, lr 3e-3": lambda: DallePytorch(codebook_size, hidden_dim, 3e-3),
        "vqp: VectorQuantize": library("VectorQuantize", 16, **of_library),
        "vqp: VectorQuantize, k-means, dead codes": library("VectorQuantize", 16, **of_library, **kept_in_use),
        "vqp: VectorQuantize, the same of 4 values": library(
            "VectorQuantize", 4, **of_library | {"dim": 4}, **kept_in_use
        ),
        "vqp: VectorQuantize, cosine": library("VectorQuantize", 16, **of_library, **kept_in_use, use_cosine_sim=True),
        "vqp: FSQ": library("FSQ", len(fsq_levels or []), levels=fsq_levels),
        "vqp: LFQ": library("LFQ", bits, dim=bits, codebook_size=codebook_size, entropy_loss_weight=0.1),
        "vqp by Muon: VectorQuantize of 4 values": library(
            "VectorQuantize", 4, MUON, **of_library | {"dim": 4}, **kept_in_use
        ),
        "vqp by Muon: FSQ": library("FSQ", len(fsq_levels or []), MUON, levels=fsq_levels),
    }
    if fsq_levels is None:
        entries = {name: entry for name, entry in entries.items() if "fsq" not in name.lower()}
    return entries


def bf16_loss(contestant: Contestant, images: Tensor, progress: float) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16):
        return contestant.loss(images, progress).float()


def mean_colour(images: Tensor) -> Tensor:
    """What a tokenizer of no bits would say of pictures (B, 3, H, W)."""
    return F.adaptive_avg_pool2d(images, 1).expand_as(images)
