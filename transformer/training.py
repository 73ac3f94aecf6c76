"""Training of a prior: captions dropped for guidance, the paper's AdamW or Muon, warm-up and decay, and what is logged.

Numbers of https://arxiv.org/abs/2102.12092, appendix B.2; its machinery for fp16 is what bf16 replaces. Clipping (the
paper's norm is 4) and the number of updates are the Trainer's: gradient_clip_val, max_steps.
"""

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, ReduceLROnPlateau

from guard import Guard
from muon import MuonAdamW
from transformer.config import PriorConfig
from transformer.embeddings import PAD
from transformer.flops import training_flops
from transformer.losses import PriorLoss, weigh
from transformer.model import Prior
from transformer.noise import splitmix64
from transformer.schedules import cosine_factor, warmup_factor
from transformer.spread import is_spread, spread, whole_prior
from transformer.throughput import Throughput, peak_flops

PRODUCTS = {"bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16, "64-true": torch.float64}
"""What matrices are multiplied in, by Lightning's name of the precision; else float32."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule; the defaults are the paper's. Raises ValueError for values outside their ranges."""

    lr: float = 4.5e-4
    muon_lr: float | None = None
    """Step size of Muon on the weight matrices of the blocks, AdamW keeping the rest; None: AdamW for all, as in the
    paper. Some three times `lr` serves."""
    betas: tuple[float, float] = (0.9, 0.96)
    eps: float = 1e-8
    weight_decay: float = 4.5e-2
    """On the weights of linear layers only: the paper does not say, and a table's rows that a batch does not use would
    shrink for no reason."""
    warmup_steps: int = 5000
    decay: Literal["cosine", "plateau", "none"] = "plateau"
    """"plateau" halves the step size where val/loss has not fallen for `patience` validations and the one after."""
    total_steps: int | None = None
    """Where the cosine ends; None: with the Trainer's last update."""
    min_ratio: float = 0.1
    """Of the peak, where the cosine ends."""
    patience: int = 2

    def __post_init__(self) -> None:
        ranges = {
            "lr": self.lr > 0,
            "muon_lr": self.muon_lr is None or self.muon_lr > 0,
            "eps": self.eps > 0,
            "weight_decay": self.weight_decay >= 0,
            "warmup_steps": self.warmup_steps >= 0,
            "patience": self.patience >= 0,
        }
        for name, holds in ranges.items():
            if not holds:
                least = "more than 0" if name in ("lr", "muon_lr", "eps") else "at least 0"
                raise ValueError(f"{name} is {getattr(self, name)}, expected {least}")
        if not 0 <= self.min_ratio <= 1:
            raise ValueError(f"min_ratio is {self.min_ratio}, expected 0 to 1")
        if self.decay not in ("cosine", "plateau", "none"):
            raise ValueError(f"decay is {self.decay!r}, expected cosine, plateau or none")
        if self.total_steps is not None and self.total_steps <= self.warmup_steps:
            raise ValueError(f"total_steps is {self.total_steps}, expected more than warmup_steps, {self.warmup_steps}")


def step_key(seed: int, *counters: int) -> int:
    """A signed 64-bit number out of the seed and where a run stands, so that resuming draws the same."""
    numbers = (seed, *counters)
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def drop_captions(text_tokens: Tensor, probability: float, key: int, first: int = 0, step: int = 1) -> Tensor:
    """Each caption of (B, text_len - 1) replaced by the null caption with this probability.

    Whether number first + i * step is, i being its place here, follows from `key`: devices that share out a batch drop
    what one alone would. Drawn where the captions are, as a GPU would have to be waited for otherwise.
    """
    numbers = first + step * torch.arange(len(text_tokens), device=text_tokens.device)
    bits = splitmix64(torch.full_like(numbers, key), numbers) & (2**53 - 1)
    return text_tokens.masked_fill((bits < round(probability * 2**53))[:, None], PAD)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of linear layers with decay; embeddings, positions, gains and biases without."""
    decayed = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    chosen = {id(weight) for weight in decayed}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def make_optimizer(prior: Prior, config: OptimConfig) -> Optimizer:
    groups = parameter_groups(prior, config.weight_decay)
    options = {"betas": config.betas, "eps": config.eps}
    if config.muon_lr is None:
        return AdamW(groups, lr=config.lr, fused=True, **options)
    matrices = [module.weight for module in prior.blocks.modules() if isinstance(module, nn.Linear)]
    taken = {id(weight) for weight in matrices}
    for group in groups:
        group |= {"params": [weight for weight in group["params"] if id(weight) not in taken], "lr": config.lr}
    muon = {"params": matrices, "lr": config.muon_lr, "weight_decay": config.weight_decay}
    return MuonAdamW(muon, groups, **options)


class PriorSystem(pl.LightningModule):
    """A prior in training, on batches {"text_tokens": int64 (B, text_len - 1), "image_tokens": int64 (B, h, w), ...}.

    Args:
        prior: the model's sizes; those that the tokenizers fix have to be theirs.
        optim: optimiser and schedule.
        caption_dropout: share of training captions replaced by the null caption, in [0, 1]; guidance needs some.
        compile: compile the loss, and so the model in training, by torch.compile.
        seed: of the caption dropout.
    """

    def __init__(
        self,
        prior: PriorConfig,
        optim: OptimConfig,
        caption_dropout: float = 0.1,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout is {caption_dropout}, expected 0 to 1")
        self.prior = Prior(prior)
        self.optim, self.caption_dropout, self.seed = optim, caption_dropout, seed
        self.guard = Guard()
        self.throughput: Throughput | None = None  # once the training has begun
        self._reported = 0  # the update of the last report
        self._plateau: ReduceLROnPlateau | None = None
        self._compiled_loss = torch.compile(Prior.loss) if compile else None

    def configure_model(self) -> None:
        """Spreads the weights over the devices where the strategy asks for it. ValueError where they are compiled."""
        if self.device_mesh is None or is_spread(self.prior):
            return
        if self._compiled_loss is not None:
            raise ValueError("model.compile is true, which weights that are spread over devices (fsdp) do not take")
        mixed = self.trainer.precision == "bf16-mixed"
        spread(self.prior, self.device_mesh["data_parallel"], torch.bfloat16 if mixed else None)

    def unspread(self, weights: Mapping[str, Tensor]) -> None:
        """Takes whole tensors, of the names in the state dict, in the spread ones' place."""
        prefix = "prior."
        own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        self.prior = whole_prior(self.prior.config, own)

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.guard.begin()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        key, devices = step_key(self.seed, self.global_step, batch_idx), self.trainer.world_size
        text_tokens = drop_captions(batch["text_tokens"], self.caption_dropout, key, self.global_rank, devices)
        count = (text_tokens != PAD).sum()
        loss = self._of_all_devices(self._loss(text_tokens, batch["image_tokens"]), count)
        self.throughput.add(len(text_tokens), count)
        if self._is_logged():
            self._log_loss("train", loss, len(text_tokens))
        return self.guard.loss(loss.total, {"loss_text": loss.text, "loss_image": loss.image})

    def _is_logged(self) -> bool:
        """Whether loggers read this step's values, or there are none yet: to log one takes the host up to 0.5 ms."""
        return self.global_step == 0 or self._loggers_read(self.global_step + 1)

    def _loggers_read(self, updates: int) -> bool:
        """Whether what is logged with the last of so many updates; Lightning's 0 stands for never."""
        every = self.trainer.log_every_n_steps
        return every > 0 and updates % every == 0

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        loss = self._loss(batch["text_tokens"], batch["image_tokens"])
        if is_spread(self.prior):
            self.prior.reshard()  # else what is no block's stays gathered until a backward pass
        self._log_loss("val", loss, len(batch["text_tokens"]))

    def _loss(self, text_tokens: Tensor, image_tokens: Tensor) -> PriorLoss:
        if self._compiled_loss is not None:
            return self._compiled_loss(self.prior, text_tokens, image_tokens)
        return self.prior.loss(text_tokens, image_tokens)

    def _of_all_devices(self, loss: PriorLoss, count: Tensor) -> PriorLoss:
        """The text's loss divided by the devices' mean number of text tokens instead of this one's: the mean over the
        devices, which is what their gradients are, then is that over all tokens."""
        if self.trainer.world_size == 1:
            return loss
        total = self.trainer.strategy.reduce(count.clone(), reduce_op="sum")
        share = count.clamp_min(1) * self.trainer.world_size / total.clamp_min(1)
        return weigh(share * loss.text, loss.image)

    def _log_loss(self, stage: str, loss: PriorLoss, batch_size: int) -> None:
        options = {"batch_size": batch_size, "sync_dist": stage == "val"}
        self.log_dict({f"{stage}/loss": loss.total, f"{stage}/loss_text": loss.text}, **options)
        self.log(f"{stage}/loss_image", loss.image, prog_bar=True, **options)

    def on_train_start(self) -> None:
        config, devices = self.prior.config, self.trainer.world_size
        peak = peak_flops(self.device, PRODUCTS.get(self.trainer.precision, torch.float32))
        self.throughput = Throughput(config.seq_len, training_flops(config), peak, devices)
        self._reported = self.global_step
        if self._plateau is not None:
            self._plateau.patience = self.optim.patience  # a checkpoint brings its own

    def on_validation_epoch_end(self) -> None:
        if self._plateau is not None and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._plateau.step(self.trainer.callback_metrics["val/loss"])

    def lr_scheduler_step(self, scheduler: LRScheduler | ReduceLROnPlateau, metric: Any | None) -> None:
        """All but the plateau, which each validation steps: Lightning does so once an epoch, and never in the one in
        which a run is resumed."""
        if scheduler is not self._plateau:
            super().lr_scheduler_step(scheduler, metric)

    def on_validation_end(self) -> None:
        if self.throughput is not None:
            self.throughput.restart()

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        """Plain numbers only where a logger reads all the others too: each is a wait for the device."""
        if self.global_step != self._reported and self._loggers_read(self.global_step):
            self._reported = self.global_step
            speed = self.throughput.report()
            self.log("train/tokens_per_s", speed["tokens_per_s"], prog_bar=True)
            self.log("train/mfu", speed["mfu"])
            self.log("lr", self.optimizers().param_groups[-1]["lr"])  # the last is AdamW's, with Muon or without

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by norm, logs it, and leaves the update out where it is not finite. Lightning's own refuses a fused
        optimiser under any mixed precision, where only the rescaling of fp16 is in its way."""
        if self.trainer.precision == "16-mixed" or gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(
                f"precision is {self.trainer.precision}, gradient_clip_algorithm {gradient_clip_algorithm}; "
                "expected bf16-mixed or 32-true, and norm"
            )
        norm = self.guard.check(optimizer, self.named_parameters(), gradient_clip_val)
        if self._is_logged():
            self.log("train/grad_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def configure_optimizers(self) -> tuple[list[Optimizer], list[dict[str, Any]]]:
        optimizer = make_optimizer(self.prior, self.optim)
        return [optimizer], self._schedulers(optimizer)

    def _schedulers(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        warmup = self.optim.warmup_steps
        if self.optim.decay == "cosine":
            factor = partial(
                cosine_factor, warmup_steps=warmup, total_steps=self._total_steps(), min_ratio=self.optim.min_ratio
            )
            return [{"scheduler": LambdaLR(optimizer, factor), "interval": "step"}]
        if self.optim.decay == "none":
            factor = partial(warmup_factor, warmup_steps=warmup)
            return [{"scheduler": LambdaLR(optimizer, factor), "interval": "step"}]
        return self._warmup_and_plateau(optimizer)

    def _warmup_and_plateau(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        """Both change the step size by factors on what it is, so neither undoes the other; a LambdaLR would."""
        if self.trainer.barebones:
            raise ValueError("decay is plateau, expected cosine or none: a Trainer(barebones=True) keeps no val/loss")
        self._plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=self.optim.patience)
        schedulers = [{"scheduler": self._plateau, "reduce_on_plateau": False}]  # Lightning only saves and loads it
        if self.optim.warmup_steps > 1:
            steps = self.optim.warmup_steps
            warmup = LinearLR(optimizer, start_factor=1 / steps, total_iters=steps - 1)
            schedulers.append({"scheduler": warmup, "interval": "step"})
        return schedulers

    def _total_steps(self) -> int:
        total = self.optim.total_steps or self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise ValueError("decay is cosine but the run has no end: set max_steps, max_epochs or optim.total_steps")
        return int(total)
