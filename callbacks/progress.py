"""How far a run is: one bar, or a line now and then."""

import math
import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

from callbacks.output import say
from callbacks.run_state import total_steps


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
            self._print(trainer, pl_module, f", {clock(time.monotonic() - self._started)} in all")

    def _metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, str]:
        values = self.get_metrics(trainer, pl_module)
        values.pop("v_num", None)
        return {name: f"{float(value):.4g}" for name, value in values.items()}

    def _print(self, trainer: pl.Trainer, pl_module: pl.LightningModule, clock: str) -> None:
        total = total_steps(trainer)
        of = f" of {total}" if total else ""
        shown = "".join(f"  {name} {value}" for name, value in self._metrics(trainer, pl_module).items())
        say(f"step {trainer.global_step}{of}{clock}{shown}", sys.stdout)

    def _left(self, trainer: pl.Trainer, now: float) -> str:
        total, done = total_steps(trainer), trainer.global_step - self._first_step
        if not total or not done:
            return ""
        return f", {clock((now - self._started) / done * (total - trainer.global_step))} left"


def clock(seconds: float) -> str:
    """3661 -> 1:01:01, 61 -> 1:01"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
