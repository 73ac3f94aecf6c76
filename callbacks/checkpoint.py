"""When a run saves its state, and how it ends."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from callbacks.folder_io import FolderIO
from callbacks.run_state import after_last_step, any_device
from callbacks.stop_signals import StopSignals
from checkpoint_folder import CheckpointFolder

log = logging.getLogger(__name__)

RETRY_MINUTES = 1.0  # at most so long after a checkpoint that could not be written


class RunCheckpoint(Checkpoint):
    """Writes the last checkpoint of `files` every so often and wherever the fit ends: after its last step, when a
    callback stops it (a limit of time, EarlyStopping), and after the step or the validation in which a signal came.

    Where a validation is due after the step, the checkpoint waits for its end: a resumed run does not make up for one
    that it missed, and step sizes may follow validations. So the first signal ends the fit as if it were over, after
    that validation or, where none is due, after the step. What is killed in a validation goes on from a step before it.

    Lightning's own ModelCheckpoint saves once more after the fit, with averaged weights in the place of the trained
    ones: a run that goes on from there is not the one that was never interrupted.

    What cannot be written (a full disk, weights that are not finite) is said, tried again and leaves the checkpoints
    before it in place. All devices take part in a save, the first one alone writes and may fail.

    Attributes:
        stopped: whether a signal has ended the fit; one in the validation after the last step has not.
        interrupted: whether one of its signals was Ctrl-C.
        failed: whether the last attempt to save did.
    """

    def __init__(self, files: CheckpointFolder) -> None:
        self.files, self.policy = files, files.policy
        self.stopped = self.interrupted = self.failed = False
        self._io = FolderIO(files)
        self._signals = StopSignals(self._what_ends)
        self._trainer: pl.Trainer | None = None
        self._next = 0.0  # when to save, on the clock
        self._step = 0
        self._step_ended = True  # or are gradients being added up, which no checkpoint would hold
        self._waits = False  # a checkpoint, for the end of the validation that is due
        self._stop = False  # asked for, maybe in the middle of a step
        self._over = False
        self._kept = False  # are the signals, after the fit

    @property
    def error(self) -> Exception | None:
        """What kept the last checkpoint from being written; on the first device."""
        return self._io.error

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._trainer = trainer
        if stage == "fit":
            trainer.strategy.checkpoint_io = self._io
            self._signals.remember()

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._signals.install()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._signals.install()
        self._next = time.monotonic() + 60 * self.policy.every_minutes
        self._step = trainer.global_step
        _begin_epoch_if_last_ended(trainer)

    def _what_ends(self) -> str | None:
        if self._over:
            return None
        return "validation" if self._trainer.validating else "step (and its validation, where one is due)"

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._step_ended = trainer.global_step != self._step
        self._step = trainer.global_step
        validates = _validation_follows(trainer)  # asked before a stop, for which Lightning validates in any case
        due = self._step_ended and self._ask(trainer)
        self._over = self._stops(trainer) or after_last_step(trainer)
        if self.stopped and not validates:
            trainer.limit_val_batches = 0
        every = self.policy.every_steps
        after_so_many = self._step_ended and every is not None and trainer.global_step % every == 0
        self._waits = self._over or due or after_so_many
        if not validates:
            self._save_what_waits(trainer)

    def _ask(self, trainer: pl.Trainer) -> bool:
        """Asks all devices whether a signal has come, which ends the fit; and, the answer, whether a checkpoint is due.

        At once, for each question is an exchange that waits for the slowest device.
        """
        asked = self._signals.asked  # may be set meanwhile
        decisions = asked is not None, asked is signal.SIGINT, time.monotonic() >= self._next
        stopped, interrupted, due = any_device(trainer, *decisions)
        if stopped:
            self.stopped, self.interrupted = True, interrupted
            trainer.should_stop = True
        return due

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """By now, the weight averaging has put the trained weights back."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save_at_end(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Here EarlyStopping decides where each epoch has one validation."""
        self._save_at_end(trainer)

    def _save_at_end(self, trainer: pl.Trainer) -> None:
        """Of a validation or an epoch."""
        if not self._over and self._step_ended:
            self._ask(trainer)
        if not self._over and self._stops(trainer):
            self._over = self._waits = True
        self._save_what_waits(trainer)

    def _save_what_waits(self, trainer: pl.Trainer) -> None:
        if self._waits:
            self._waits = False
            self._save(trainer)

    def _stops(self, trainer: pl.Trainer) -> bool:
        """Whether the fit ends here. In the middle of a step it does not: the wish waits until the step's end."""
        self._stop = self._stop or trainer.should_stop
        trainer.should_stop = self._stop and self._step_ended
        return trainer.should_stop

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.fast_dev_run:
            return
        trainer.save_checkpoint(self.files.last)
        (self.failed,) = any_device(trainer, self.error is not None)
        minutes = self.policy.every_minutes
        if self.failed:
            minutes = min(minutes, RETRY_MINUTES)
            if trainer.is_global_zero:
                log.warning(
                    "step %s could not be saved (%s); the checkpoints before it stay", trainer.global_step, self.error
                )
        self._next = time.monotonic() + 60 * minutes

    @contextmanager
    def signals_kept(self) -> Iterator[None]:
        """Around a fit and what follows it, the export: no further signal ends that half-way, but a second Ctrl-C."""
        self._kept = True
        try:
            yield
        finally:
            self._kept = False
            self._signals.restore()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has just put back the handlers from before the fit."""
        self._over = True
        if self._kept:
            self._signals.install()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not self._kept:
            self._signals.restore()


def _validation_follows(trainer: pl.Trainer) -> bool:
    """Whether one is due after this batch, as Lightning's loop will decide, were the run not to end here."""
    stop, trainer.should_stop = trainer.should_stop, False
    follows = trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
    trainer.should_stop = stop
    return follows


def _begin_epoch_if_last_ended(trainer: pl.Trainer) -> None:
    """To be called before the first batch. Where a fit goes on from an epoch's last batch, Lightning counts the next
    epoch as neither ready nor started, and takes a checkpoint in the middle of it for one of its end: what goes on from
    that one repeats a step's number and validates at other steps."""
    loop = trainer.fit_loop
    if loop.restarted_mid_epoch and loop.epoch_progress.current.processed == loop.epoch_progress.current.ready:
        loop.epoch_progress.increment_ready()
        loop.epoch_progress.increment_started()
