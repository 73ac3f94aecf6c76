"""The tokenizer's optimiser: its settings, and what it is made of."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch.nn as nn
from torch.optim import AdamW, Optimizer

from muon import MuonAdamW
from vqvae.model import DiscreteVAE
from vqvae.schedules import cosine


@dataclass(frozen=True, kw_only=True)
class TokenizerOptim:
    """AdamW with a cosine step size from `lr` to `min_lr` over `decay_steps` updates (None: the whole run).

    The paper's values are the defaults; its batch is 512 and its run 3,000,000 updates long.

    Attributes:
        muon_lr: where given, the convolutions between the first and the last of encoder and decoder are trained by Muon
            at this step size, on the same schedule: in three minutes, 0.4 to 0.8 dB more (docs/log.md).
    """

    lr: float = 1e-4
    muon_lr: float | None = None
    min_lr: float = 1.25e-6
    decay_steps: int | None = 1_200_000
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}, expected more than 0")
        if self.muon_lr is not None and not self.muon_lr > 0:
            raise ValueError(f"muon_lr is {self.muon_lr}, expected more than 0")
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"min_lr is {self.min_lr} and lr {self.lr}, expected 0 <= min_lr <= lr")
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"decay_steps is {self.decay_steps}, expected at least 1, or none for the whole run")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, expected at least 0")

    def lr_at(self, step: int, run_steps: int) -> float:
        """Step size of update `step`, counted from 0, in a run of `run_steps` updates; Muon's is in proportion.

        The cosine runs from the first update on; over the first `warmup_steps` it is scaled up linearly.
        """
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * cosine(step, self.lr, self.min_lr, self.decay_steps or run_steps)


def make_optimizer(model: DiscreteVAE, config: TokenizerOptim) -> Optimizer:
    options: dict[str, Any] = {"betas": config.betas, "eps": config.eps}
    if config.muon_lr is None:
        adamw = AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True, **options)
        # Else fp16's GradScaler would leave the division by its scale to the step, before which the norm is judged.
        adamw._step_supports_amp_scaling = False
        return adamw
    # What borders on pixels or codes is an embedding or a head, which is not what Muon is for.
    ends = (model.encoder.output_conv, model.decoder.input_conv, model.decoder.output_conv)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.in_channels != 3]
    kernels = [layer.weight for layer in layers if layer not in ends]
    taken = {id(weight) for weight in kernels}
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    muon = {"params": kernels, "lr": config.muon_lr, "weight_decay": config.weight_decay}
    adamw = {"params": others, "lr": config.lr, "weight_decay": config.weight_decay}
    return MuonAdamW(muon, [adamw], **options)


def as_fused(states: Iterable[dict[str, Any]]) -> None:
    """Has optimisers that read these states step as fused ones: a checkpoint says how it was, maybe not so yet."""
    for group in (group for state in states for group in state["param_groups"]):
        if "fused" in group:  # of Adam and AdamW
            group["fused"] = True
