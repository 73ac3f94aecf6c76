"""Has a run that goes on from a checkpoint use the optimiser's settings that it was given."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

PEAK = "initial_lr"  # PyTorch's name of the step size that a schedule multiplies
NAMES = (PEAK, "weight_decay", "betas", "eps")


class OptimizerSettings(Callback):
    """Puts step sizes, weight decay, betas and eps that have changed in the place of the checkpoint's.

    PyTorch's optimisers and schedules take all of these from a checkpoint. A step size changes in proportion, so that
    what warm-up and plateau have multiplied it by stays. What is equal is not touched.
    """

    def __init__(self) -> None:
        self._given: list[list[dict[str, Any]]] = []  # of each optimiser's groups

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the checkpoint is read."""
        for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
            group.setdefault(PEAK, group["lr"])  # as every schedule but the plateau does
        self._given = [
            [{name: group[name] for name in NAMES if name in group} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for optimizer, given in zip(trainer.optimizers, self._given, strict=True):
            for group, settings in zip(optimizer.param_groups, given, strict=True):
                _change(group, settings)
        for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
            if hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [group[PEAK] for group in scheduler.optimizer.param_groups]


def _change(group: dict[str, Any], settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        before = group.get(name, value)  # the first checkpoints had no peak where there is no schedule
        if before != value and name == PEAK:
            group["lr"] *= value / before
        if before != value or name not in group:
            group[name] = value
