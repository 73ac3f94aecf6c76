"""Lightning callbacks of the scripts: pictures while it trains, a stop that loses nothing, a quiet progress."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, TQDMProgressBar
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

LAST_CHECKPOINT = "last.ckpt"


def write_picture(picture: Tensor, path: Path) -> None:
    """A (3, H, W) picture in [0, 1] as a PNG, written beside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    to_pil_image(picture.clamp(0, 1).cpu()).save(beside, format="PNG")
    beside.replace(path)


def reconstruction_grid(images: Tensor, recon: Tensor, columns: int = 8) -> Tensor:
    """Originals (B, 3, H, W) above their reconstructions, in pairs of rows of `columns`: (3, height, width)."""
    rows = []
    for start in range(0, len(images), columns):
        rows += [images[start : start + columns], recon[start : start + columns]]
    return make_grid(torch.cat([row.cpu() for row in rows]), nrow=columns, pad_value=1.0)


class PictureWriter(Callback):
    """At the end of each validation, but `seconds` apart at least: a picture to disk and to TensorBoard.

    Args:
        name: of the picture; the files are folder/NAME-STEP.png.
        folder: where they go.
        draw: makes the picture (3, H, W) from the system being validated.
    """

    def __init__(
        self, name: str, folder: Path, draw: Callable[[pl.LightningModule], Tensor], seconds: float = 60
    ) -> None:
        self.name, self.folder, self.draw, self.seconds = name, folder, draw, seconds
        self._last = -float("inf")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or time.monotonic() - self._last < self.seconds:
            return
        with torch.no_grad():
            picture = self.draw(pl_module)
        write_picture(picture, self.folder / f"{self.name}-{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            if hasattr(logger.experiment, "add_image"):
                logger.experiment.add_image(self.name, picture, trainer.global_step)
        self._last = time.monotonic()


class LastCheckpoint(Callback):
    """Writes folder/last.ckpt after the last step, and after the step during which Ctrl-C was pressed.

    The first Ctrl-C lets the step end and stops the run as if it were over; the second one stops at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.interrupted = False
        self._handler: Any = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._handler = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        print("\nstopping after this step; Ctrl-C again stops at once, without a checkpoint", file=sys.stderr)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.interrupted:
            trainer.should_stop = True
        if trainer.should_stop or trainer.global_step == trainer.max_steps:
            trainer.save_checkpoint(self.folder / LAST_CHECKPOINT)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)


class Progress(TQDMProgressBar):
    """A bar with ETA in a terminal; elsewhere one line every `seconds`."""

    def __init__(self, seconds: float = 20) -> None:
        super().__init__(refresh_rate=5)
        self.seconds = seconds
        self._terminal = sys.stderr.isatty()
        self._started = self._last = 0.0
        self._first_step = 0
        if not self._terminal:
            self.disable()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._started = self._last = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        now = time.monotonic()
        if self._terminal or not trainer.is_global_zero or now - self._last < self.seconds:
            return
        self._last = now
        values = self.get_metrics(trainer, pl_module)
        values.pop("v_num", None)
        shown = "  ".join(f"{name} {float(value):.4g}" for name, value in values.items())
        print(f"step {trainer.global_step}{self._eta(trainer, now)}  {shown}", flush=True)

    def _eta(self, trainer: pl.Trainer, now: float) -> str:
        total = int(trainer.estimated_stepping_batches) if trainer.max_steps > 0 or trainer.max_epochs else 0
        done = trainer.global_step - self._first_step
        if not total or not done:
            return ""
        left = (now - self._started) / done * (total - trainer.global_step)
        return f" of {total}, {int(left // 60)}:{int(left % 60):02d} left"


class AtEnd(Callback):
    """Calls `action` with the trained system, averaged weights in place, when a fit ends."""

    def __init__(self, action: Callable[[pl.LightningModule], None]) -> None:
        self.action = action

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:
            self.action(pl_module)
