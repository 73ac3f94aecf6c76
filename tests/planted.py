"""Callbacks that plant what goes wrong in runs on several devices, in processes that a test cannot look into."""

import math
import multiprocessing
import os
import signal
import time
from typing import Any

import pytorch_lightning as pl
import torch


class Killed(pl.Callback):
    """Kills its own process between the forward and the backward pass of an update, counted from 1.

    Args:
        unseen: other processes wait, and notice nothing of it by themselves.
    """

    def __init__(self, device: int, step: int, unseen: bool) -> None:
        self.device, self.step, self.unseen = device, step, unseen

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        if trainer.global_step != self.step - 1:
            return
        if trainer.global_rank == self.device:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.unseen:
            time.sleep(600)


class WorkerKilled(pl.Callback):
    """Kills a process that reads samples, as where memory runs out, after an update counted from 1."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            worker = multiprocessing.active_children()[0]
            os.kill(worker.pid, signal.SIGKILL)
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # PyTorch is to find out itself


class Spoilt(pl.Callback):
    """Multiplies the loss of each batch of some updates, on the last device alone.

    Args:
        steps: updates, counted from 1.
        factor: none: NaN.
        parameter: part of a name: the gradients of these in the place of the loss.
    """

    def __init__(self, steps: list[int], factor: float | None = None, parameter: str | None = None) -> None:
        self.steps, self.parameter = steps, parameter
        self.planted = math.nan if factor is None else factor
        self.factor = 1.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.parameter is None:
            loss = pl_module.guard.loss
            pl_module.guard.loss = lambda value, terms: loss(value * self.factor, terms)
            return
        for name, parameter in pl_module.named_parameters():
            if self.parameter in name:
                parameter.register_hook(lambda gradient: gradient * self.factor)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        last = trainer.global_rank == trainer.world_size - 1
        self.factor = self.planted if last and trainer.global_step + 1 in self.steps else 1.0
