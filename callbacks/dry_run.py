"""What a run would take, found out by two updates of it."""

import logging
import shutil
import tempfile
import time
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from callbacks.folder_io import FolderIO
from callbacks.progress import clock
from callbacks.run_state import total_steps
from checkpoint_folder import CheckpointFolder, CheckpointPolicy
from memory import Memory, in_words, judgement, largest, memory_of, own_memory, together

log = logging.getLogger(__name__)

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
        self._readers = 0  # the most that the processes which read samples had in memory
        self._checkpoint_bytes = 0
        self._writes = False
        self._io: FolderIO | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.limit_val_batches = 1  # jsonargparse would have made it 1.0, which is all of them

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._steps = total_steps(trainer)
        self._step = self._first = trainer.global_step
        self._began = time.perf_counter()
        batches = f" of {trainer.accumulate_grad_batches} batches each" if trainer.accumulate_grad_batches > 1 else ""
        log.info("check: %s updates%s, then a batch of the validation and a checkpoint", UPDATES, batches)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._look_at_readers()
        if trainer.global_step == self._step:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now = time.perf_counter()
        self._step, self._began, self._seconds = trainer.global_step, now, now - self._began
        trainer.should_stop = self._step - self._first >= UPDATES
        log.info("check: update %s took %.3g s", self._step - self._first, self._seconds)

    def _look_at_readers(self) -> None:
        self._readers = max(self._readers, own_memory(process.pid for process in active_children()))

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self._look_at_readers()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All devices take part, the first one writes."""
        log.info("check: writing a checkpoint")
        with tempfile.TemporaryDirectory(dir=self.folder if trainer.is_global_zero else None) as place:
            files = CheckpointFolder(Path(place), self.policy)
            trainer.strategy.checkpoint_io = self._io = FolderIO(files)
            trainer.save_checkpoint(files.last)
            self._writes = trainer.is_global_zero
            if self._writes and self._io.error is None:
                self._checkpoint_bytes = files.last.stat().st_size
        self._memory = self._of_all(trainer, pl_module.device)

    def _of_all(self, trainer: pl.Trainer, device: torch.device) -> Memory:
        """Of all devices, with the processes that read samples."""
        peak, there = memory_of(device)
        if device.type != "cuda":
            peak += self._readers
        own = torch.tensor([peak, there], dtype=torch.int64, device=device)
        memories = [Memory(*values) for values in trainer.strategy.all_gather(own).view(-1, 2).tolist()]
        return largest(memories) if device.type == "cuda" else together(memories, trainer.num_nodes)

    def report(self) -> None:
        """Prints what was found, on the first device. Raises ValueError where the run is at its end already, or the
        memory or the disk is too small, and OSError where no checkpoint could be written."""
        if self._step == self._first:
            raise ValueError("nothing is left to do: no update was made before the run's end, see trainer.max_steps")
        if not self._writes:
            return
        if self._io.error is not None:
            raise OSError(f"a checkpoint could not be written: {self._io.error}")
        print("\n".join(self._lines()))
        if (risk := judgement(self._memory)) is not None:
            print(risk)
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
