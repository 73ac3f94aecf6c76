"""What a run would take, found out by two updates of it."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from callbacks.folder_io import FolderIO
from callbacks.progress import clock
from callbacks.run_state import total_steps
from checkpoint_folder import CheckpointFolder, CheckpointPolicy
from memory import Memory, in_words, memory_of

UPDATES = 2  # the first one warms up


class DryRun(Callback):
    """Ends a fit after UPDATES and a batch of the validation; writes a checkpoint that does not stay.

    Args:
        folder: of the run, on whose disk the checkpoint is written.
        policy: how many checkpoints there would be.
    """

    def __init__(self, folder: Path, policy: CheckpointPolicy) -> None:
        self.folder, self.policy = folder, policy
        self._steps: int | None = None  # of the whole run
        self._step = self._first = 0
        self._began = self._seconds = 0.0
        self._memory = Memory(0, 0)
        self._checkpoint_bytes = 0
        self._writes = False
        self._io: FolderIO | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.limit_val_batches = 1  # jsonargparse would have made it 1.0, which is all of them

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._steps = total_steps(trainer)
        self._step = self._first = trainer.global_step
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now = time.perf_counter()
        self._step, self._began, self._seconds = trainer.global_step, now, now - self._began
        trainer.should_stop = self._step - self._first >= UPDATES

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All devices take part, the first one writes."""
        with tempfile.TemporaryDirectory(dir=self.folder if trainer.is_global_zero else None) as place:
            files = CheckpointFolder(Path(place), self.policy)
            trainer.strategy.checkpoint_io = self._io = FolderIO(files)
            trainer.save_checkpoint(files.last)
            self._writes = trainer.is_global_zero
            if self._writes and self._io.error is None:
                self._checkpoint_bytes = files.last.stat().st_size
        self._memory = memory_of(pl_module.device)

    def report(self) -> None:
        """Prints what was found, on the first device. Raises ValueError where the run is at its end already or the
        checkpoints would not fit on the disk, and OSError where none could be written."""
        if self._step == self._first:
            raise ValueError("nothing is left to do: no update was made before the run's end, see trainer.max_steps")
        if not self._writes:
            return
        if self._io.error is not None:
            raise OSError(f"a checkpoint could not be written: {self._io.error}")
        print("\n".join(self._lines()))
        count, free = self.policy.keep_last + 1, shutil.disk_usage(self.folder).free
        if count * self._checkpoint_bytes > free:
            raise ValueError(
                f"{count} checkpoints of {in_words(self._checkpoint_bytes)} do not fit on the disk of {self.folder}, "
                f"where {in_words(free)} are free"
            )

    def _lines(self) -> list[str]:
        peak, there = self._memory
        all_steps = ""
        if self._steps is not None:
            left = self._steps - self._first
            all_steps = (
                f"; the {left:,} of this run {clock(left * self._seconds)}, validations and checkpoints left out"
            )
        size, free = in_words(self._checkpoint_bytes), in_words(shutil.disk_usage(self.folder).free)
        return [
            f"an update takes {self._seconds:.3g} s{all_steps}",
            f"memory: {in_words(peak)} at most, {in_words(there)} are there",
            f"a checkpoint: {size}; {free} are free, and {self.policy.keep_last + 1} have to fit",
        ]
