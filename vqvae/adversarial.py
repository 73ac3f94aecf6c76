"""What a tokenizer may be trained with beside the pixels: LPIPS and a patch discriminator, as VQGANs are.

https://arxiv.org/abs/2012.09841. The discriminator learns for a while before the generator feels it, and then its
weight rises slowly: a discriminator that has learnt nothing yet ruins what the reconstruction has reached.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from vqvae.discriminator import PatchDiscriminator, generator_loss, hinge_loss, lecam_penalty
from vqvae.lpips import LPIPS
from vqvae.ranks import sum_over_ranks, world_size


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """LPIPS as a loss: `weight` times it, by the network `net` in the folder `weights` (lpips.py)."""

    weights: str
    weight: float = 1.0
    net: str = "vgg"

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"the perceptual weight is {self.weight}, expected more than 0")


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """A patch discriminator as a loss. Steps are updates of the generator, counted from 0.

    Attributes:
        start_step: the first update for which the generator is judged.
        warmup_steps: updates over which the judgement's weight rises from 0.
        head_start: updates by which the discriminator's training begins before `start_step`.
        weight: of the judgement, times the adaptive weight.
        max_adaptive_weight: largest factor by which the judgement is made as strong as the reconstruction.
        lecam_weight: of the LeCam penalty, 0 for none.
        lecam_decay: of its moving averages.
        width, n_layers: of the discriminator.
        lr, betas: of its Adam.
        gradient_clip_val: largest norm of the generator's gradient, and of the discriminator's; None: no limit. The
            Trainer's own is not to be had with two optimisers.
    """

    start_step: int = 10_000
    warmup_steps: int = 5_000
    head_start: int = 2_000
    weight: float = 0.5
    max_adaptive_weight: float = 1e4
    lecam_weight: float = 0.001
    lecam_decay: float = 0.99
    width: int = 64
    n_layers: int = 3
    lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)
    gradient_clip_val: float | None = 1.0

    def __post_init__(self) -> None:
        for name in ("start_step", "warmup_steps", "head_start", "lecam_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"adversarial {name} is {getattr(self, name)}, expected at least 0")
        for name in ("weight", "max_adaptive_weight", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"adversarial {name} is {getattr(self, name)}, expected more than 0")
        if not 0 < self.lecam_decay < 1:
            raise ValueError(f"adversarial lecam_decay is {self.lecam_decay}, expected a number between 0 and 1")
        if self.gradient_clip_val is not None and not self.gradient_clip_val > 0:
            raise ValueError(f"adversarial gradient_clip_val is {self.gradient_clip_val}, expected more than 0 or none")

    def weight_at(self, step: int) -> float:
        """Of the judgement for the generator's update `step`."""
        if step < self.start_step:
            return 0.0
        return self.weight * min(1.0, (step - self.start_step + 1) / max(self.warmup_steps, 1))

    def trains_at(self, step: int) -> bool:
        """Whether the discriminator learns in update `step`."""
        return step >= self.start_step - self.head_start


class Adversary(nn.Module):
    """The discriminator with what its losses remember."""

    average_real: Tensor
    average_fake: Tensor
    updates: Tensor

    def __init__(self, config: AdversarialConfig) -> None:
        super().__init__()
        self.config = config
        self.discriminator = PatchDiscriminator(config.width, config.n_layers)
        for name in ("average_real", "average_fake", "updates"):
            self.register_buffer(name, torch.zeros(()))

    def judge(self, recon: Tensor) -> Tensor:
        """The generator's loss for recon (B, 3, H, W); the discriminator's parameters get no gradient."""
        self.discriminator.requires_grad_(False)
        try:
            return generator_loss(self.discriminator(recon))
        finally:
            self.discriminator.requires_grad_(True)

    def loss(self, images: Tensor, recon: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss for (B, 3, H, W) twice, and parts to log; the generator gets no gradient."""
        real, fake = self.discriminator(images), self.discriminator(recon.detach())
        loss = hinge_loss(real, fake)
        parts = {
            "discriminator": loss.detach(),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
        }
        if self.config.lecam_weight:
            self._remember(parts["logits_real"], parts["logits_fake"])
            loss = loss + self.config.lecam_weight * lecam_penalty(real, fake, self.average_real, self.average_fake)
        return loss, parts

    @torch.no_grad()
    def _remember(self, real: Tensor, fake: Tensor) -> None:
        self.updates += 1
        # Means of few values at first, so that the averages do not start from 0.
        share = torch.clamp(1 / self.updates, min=1 - self.config.lecam_decay)
        for average, now in ((self.average_real, real), (self.average_fake, fake)):
            average += share * (sum_over_ranks(now.float()) / world_size() - average)


class Perceptual:
    """LPIPS with its weight. No module, so that it is in no state dict, no weight average and no optimiser."""

    def __init__(self, config: PerceptualConfig) -> None:
        self.weight, self._lpips = config.weight, LPIPS.from_pretrained(config.weights, config.net)

    def __call__(self, images: Tensor, recon: Tensor) -> Tensor:
        """(B, 3, H, W) twice -> the mean distance, not weighted."""
        with torch.inference_mode(False):  # moved in a validation, its weights would be none for a training step
            self._lpips.to(images.device)
        return self._lpips(images, recon).mean()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Perceptual":
        return self  # frozen: the weight average's copy of a system needs no copy of it
