"""Training of a prior: captions dropped for guidance, the paper's AdamW or Muon, warm-up and decay, and what is logged.

Numbers of https://arxiv.org/abs/2102.12092, appendix B.2; its machinery for fp16 is what bf16 replaces. Clipping (the
paper's norm is 4) and the number of updates are the Trainer's: gradient_clip_val, max_steps.
"""

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, ReduceLROnPlateau

from muon import MuonAdamW
from transformer.config import PriorConfig
from transformer.embeddings import null_captions
from transformer.losses import PriorLoss
from transformer.model import Prior
from transformer.noise import splitmix64
from transformer.schedules import cosine_factor, warmup_factor


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


def drop_captions(text_tokens: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Each caption of (B, text_len - 1) replaced by the null caption with this probability."""
    dropped = torch.rand(len(text_tokens), generator=generator) < probability
    null = null_captions(len(text_tokens), text_tokens.shape[1] + 1, text_tokens.device)
    return torch.where(dropped.to(text_tokens.device)[:, None], null, text_tokens)


def step_generator(seed: int, *counters: int) -> torch.Generator:
    """A CPU generator that is a function of the seed and of where a run stands, so resuming draws the same numbers."""
    state = torch.tensor(seed)
    for counter in counters:
        state = splitmix64(state, torch.tensor(counter))
    return torch.Generator().manual_seed(int(state))


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


class Throughput:
    """Tokens a second of wall clock between two reports, pauses excluded."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.tokens, self.since = 0, time.perf_counter()

    def report(self) -> float:
        now = time.perf_counter()
        rate = self.tokens / (now - self.since)
        self.tokens, self.since = 0, now
        return rate


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
        self.throughput = Throughput()
        self._plateau: ReduceLROnPlateau | None = None
        self._prior_loss = torch.compile(Prior.loss) if compile else Prior.loss

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        generator = step_generator(self.seed, self.global_step, batch_idx, self.global_rank)
        text_tokens = drop_captions(batch["text_tokens"], self.caption_dropout, generator)
        loss = self._loss(text_tokens, batch["image_tokens"])
        self._log_loss("train", loss, len(text_tokens))
        return loss.total

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        loss = self._loss(batch["text_tokens"], batch["image_tokens"])
        self._log_loss("val", loss, len(batch["text_tokens"]))

    def _loss(self, text_tokens: Tensor, image_tokens: Tensor) -> PriorLoss:
        return self._prior_loss(self.prior, text_tokens, image_tokens)

    def _log_loss(self, stage: str, loss: PriorLoss, batch_size: int) -> None:
        options = {"batch_size": batch_size, "sync_dist": stage == "val"}
        self.log_dict({f"{stage}/loss": loss.total, f"{stage}/loss_text": loss.text}, **options)
        self.log(f"{stage}/loss_image", loss.image, prog_bar=True, **options)

    def on_train_start(self) -> None:
        self.throughput.restart()

    def on_validation_epoch_end(self) -> None:
        if self._plateau is not None and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._plateau.step(self.trainer.callback_metrics["val/loss"])

    def lr_scheduler_step(self, scheduler: LRScheduler | ReduceLROnPlateau, metric: Any | None) -> None:
        """All but the plateau, which each validation steps: Lightning does so once an epoch, and never in the one in
        which a run is resumed."""
        if scheduler is not self._plateau:
            super().lr_scheduler_step(scheduler, metric)

    def on_validation_end(self) -> None:
        self.throughput.restart()

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        self.throughput.tokens += len(batch["text_tokens"]) * self.prior.config.seq_len * self.trainer.world_size
        if self.global_step % self.trainer.log_every_n_steps == 0:
            self.log("train/tokens_per_s", self.throughput.report(), prog_bar=True)
        self.log("lr", self.optimizers().param_groups[-1]["lr"])  # the last is AdamW's, with Muon or without

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by norm and logs it. Lightning's own refuses a fused optimiser under any mixed precision, where only
        the rescaling of fp16 is in its way."""
        if self.trainer.precision == "16-mixed" or gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(
                f"precision is {self.trainer.precision}, gradient_clip_algorithm {gradient_clip_algorithm}; "
                "expected bf16-mixed or 32-true, and norm"
            )
        norm = nn.utils.clip_grad_norm_(self.prior.parameters(), gradient_clip_val or math.inf)
        self.log("train/grad_norm", norm)

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
