"""Lightning callbacks of the training script: pictures while it trains, a stop that loses nothing, a quiet progress."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback, Checkpoint, ProgressBar
from pytorch_lightning.cli import SaveConfigCallback
from tqdm import tqdm

from grids import save_png

PICTURE_SHARE = 0.05  # of a run's time that drawing pictures may take
REJECTS = "rejects.json"  # in the run's folder: unusable files of its pictures, where no other report is asked for


def total_steps(trainer: pl.Trainer) -> int | None:
    """Updates of the whole run; None where it has no end."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if math.isfinite(steps) else None


def after_last_step(trainer: pl.Trainer) -> bool:
    return trainer.global_step == total_steps(trainer)


class PictureWriter(Callback):
    """During a validation, if the last time is long enough ago, draws a picture to disk and for the loggers.

    It has to come before a weight averaging callback in the Trainer's list: at the end of the validation's epoch, that
    one puts the weights of the training back in the place of the averaged ones.

    Args:
        name: of the picture; the files are folder/NAME-STEP.png.
        folder: where they go.
        draw: makes the picture from the system being validated, on one device alone.
        seconds: at least so long apart, and longer if drawing takes more than PICTURE_SHARE of the time. After the last
            step there is always one.
    """

    def __init__(
        self, name: str, folder: Path, draw: Callable[[pl.LightningModule], Image.Image], seconds: float = 60
    ) -> None:
        self.name, self.folder, self.draw, self.seconds = name, folder, draw, seconds
        self._next = -math.inf

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        started = time.monotonic()
        due = started >= self._next or after_last_step(trainer)
        idle = trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run
        if idle or not due or not trainer.is_global_zero:
            return
        with torch.no_grad():
            picture = self.draw(pl_module)
        save_png(picture, self.folder / f"{self.name}-{trainer.global_step:07d}.png")
        self._show(picture, trainer)
        took = time.monotonic() - started
        self._next = started + max(self.seconds, took / PICTURE_SHARE)

    def _show(self, picture: Image.Image, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):  # Weights & Biases and others
                logger.log_image(self.name, [picture], trainer.global_step)
            elif hasattr(logger.experiment, "add_image"):  # TensorBoard
                logger.experiment.add_image(self.name, np.asarray(picture), trainer.global_step, dataformats="HWC")


class RunCheckpoint(Checkpoint):
    """Writes `path` every so often and wherever the fit ends: after its last step, when a callback stops it (a limit of
    time, EarlyStopping), and after the step or the validation during which Ctrl-C was pressed.

    The first Ctrl-C lets the step end and ends the fit as if it were over, without a last validation; the second one
    stops at once. Lightning's own ModelCheckpoint saves once more after the fit, with averaged weights in the place of
    the trained ones: a run that goes on from there is not the one that was never interrupted.

    Args:
        path: of the checkpoint.
        minutes: between two of them.

    Attributes:
        interrupted: whether Ctrl-C has ended the fit; one in the validation after the last step has not.
    """

    def __init__(self, path: Path, minutes: float = 10) -> None:
        self.path, self.minutes = path, minutes
        self.interrupted = False
        self._pressed = False
        self._handler: Any = None
        self._process = os.getpid()
        self._saved_at = 0.0
        self._step = 0
        self._step_ended = True  # or are gradients being added up, which no checkpoint would hold
        self._stop = False  # asked for, maybe in the middle of a step
        self._over = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            self._handler = signal.signal(signal.SIGINT, partial(self._interrupt, trainer))

    def _interrupt(self, trainer: pl.Trainer, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked worker: the terminal signals it as well, but the step still needs its batches
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True
        if self._over:
            print("\nthe run is at its end already; Ctrl-C again stops at once", file=sys.stderr)
            return
        part = "validation" if trainer.validating else "step"
        print(f"\nstopping after this {part}; Ctrl-C again stops at once, without a checkpoint", file=sys.stderr)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_at, self._step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._step_ended = trainer.global_step != self._step
        self._step = trainer.global_step
        self._over = self._stops(trainer) or after_last_step(trainer)
        due = self._step_ended and _any_device(trainer, time.monotonic() - self._saved_at >= 60 * self.minutes)
        if self._over or due:
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """By now, the weight averaging has put the trained weights back."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save_if_stopped(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Here EarlyStopping decides where each epoch has one validation."""
        self._save_if_stopped(trainer)

    def _save_if_stopped(self, trainer: pl.Trainer) -> None:
        if not self._over and self._stops(trainer):
            self._over = True
            self._save(trainer)

    def _stops(self, trainer: pl.Trainer) -> bool:
        """Whether the fit ends here. In the middle of a step it does not: the wish waits until the step's end."""
        if self._step_ended and _any_device(trainer, self._pressed):
            self.interrupted = trainer.should_stop = True
            trainer.limit_val_batches = 0
        self._stop = self._stop or trainer.should_stop
        trainer.should_stop = self._stop and self._step_ended
        return trainer.should_stop

    def _save(self, trainer: pl.Trainer) -> None:
        if not trainer.fast_dev_run:
            trainer.save_checkpoint(self.path)
            self._saved_at = time.monotonic()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None


class RunConfig(SaveConfigCallback):
    """Writes RUN/config.yaml, from which the run can be repeated: from its start, also where this part was resumed."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            folder = Path(self.config.run)
            folder.mkdir(parents=True, exist_ok=True)
            config = self.config.clone()
            config.ckpt_path = None
            if config.data.loading.report == str(folder / REJECTS):
                config.data.loading.report = None
            self.parser.save(config, folder / "config.yaml", skip_unset=False, overwrite=True)


class ImageTokenizerRecord(Callback):
    """Has the fingerprint of the image tokenizer in a prior's checkpoints; one that has another is refused.

    Codes mean nothing without it. Raises ValueError when a checkpoint is loaded.
    """

    NAME = "image_tokenizer"  # in the checkpoint

    def __init__(self) -> None:
        self.fingerprint: str | None = None  # to be set before the fit or the validation

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[self.NAME] = self.fingerprint

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        saved = checkpoint.get(self.NAME, self.fingerprint)  # the first checkpoints did not have it
        if saved != self.fingerprint:
            raise ValueError(
                f"the checkpoint was trained on codes of tokenizer {saved}, --tokenizer is {self.fingerprint}"
            )


def _any_device(trainer: pl.Trainer, decision: bool) -> bool:
    """Whether any device decides so: the same answer on all."""
    return trainer.strategy.reduce_boolean_decision(decision, all=False)


class Progress(ProgressBar):
    """One bar over the steps of the whole run, with its ETA; where there is no terminal, a line every `seconds`."""

    def __init__(self, seconds: float = 20) -> None:
        super().__init__()
        self.seconds = seconds
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(disable=True)
        self._started = self._shown_at = 0.0
        self._first_step = 0

    def disable(self) -> None:
        """Lightning calls it on all devices but the first."""
        self._terminal, self.seconds = False, math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = self._shown_at = time.monotonic()
        self._first_step = trainer.global_step
        self._bar = tqdm(
            total=total_steps(trainer),
            initial=trainer.global_step,
            unit="step",
            smoothing=0,
            dynamic_ncols=True,
            disable=not self._terminal,
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._bar.update(trainer.global_step - self._bar.n)
        now = time.monotonic()
        if now - self._shown_at < (1 if self._terminal else self.seconds):
            return
        self._shown_at = now
        if self._terminal:
            self._bar.set_postfix(self._metrics(trainer, pl_module))
        else:
            self._print(trainer, pl_module, self._left(trainer, now))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._bar.close()
        if not self._terminal and math.isfinite(self.seconds):
            self._print(trainer, pl_module, f", {_clock(time.monotonic() - self._started)} in all")

    def _metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, str]:
        values = self.get_metrics(trainer, pl_module)
        values.pop("v_num", None)
        return {name: f"{float(value):.4g}" for name, value in values.items()}

    def _print(self, trainer: pl.Trainer, pl_module: pl.LightningModule, clock: str) -> None:
        total = total_steps(trainer)
        of = f" of {total}" if total else ""
        shown = "".join(f"  {name} {value}" for name, value in self._metrics(trainer, pl_module).items())
        print(f"step {trainer.global_step}{of}{clock}{shown}", flush=True)

    def _left(self, trainer: pl.Trainer, now: float) -> str:
        total, done = total_steps(trainer), trainer.global_step - self._first_step
        if not total or not done:
            return ""
        return f", {_clock((now - self._started) / done * (total - trainer.global_step))} left"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
