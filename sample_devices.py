"""Samples shared out over several devices: a process for each, which Lightning starts by running the script again.

The first process says what is to be drawn; the others need neither captions nor the folder's contents of their own, so
that captions may come from standard input. They talk to each other by gloo, on GPUs too: a list at the start, a word at
the end, and in between nobody waits, however long one takes.

Imported only where several devices are asked for: importing Lightning takes as long as some pictures do.
"""

import logging
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import groupby

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from sample_files import Sample

LONGEST = timedelta(days=365)  # that the first to finish waits for the last
POLL_SECONDS = 0.1
OBSERVER = "lightning_fabric.strategies.launchers.subprocess_script"  # says that a process died, and ends the others

Draw = Callable[[torch.device, Sequence[Sample], Callable[[], None]], None]
"""Draws samples on a device and writes them, and calls the last argument often."""


def is_first_process() -> bool:
    """Whether this is the process that was started by the user."""
    return LightningEnvironment().local_rank() == 0


def share(samples: Sequence[Sample], rank: int, world_size: int) -> list[Sample]:
    """What the process `rank` of `world_size` draws: every world_size-th caption, each with all its samples."""
    captions = [list(group) for _, group in groupby(samples, key=lambda sample: sample.caption)]
    return [sample for group in captions[rank::world_size] for sample in group]


def draw_on_devices(samples: Sequence[Sample] | None, draw: Draw, kind: str, devices: int) -> None:
    """Draws samples on several devices; returns when all are drawn.

    Runs sys.argv again for each device but the first: there too, it is to come to this call.

    Args:
        samples: those of one caption one after the other; None in all processes but the first.
        draw: called once in each process.
        kind: "cpu" or "cuda".
        devices: how many of them, at least 2.
    """
    environment = LightningEnvironment()
    if not samples and is_first_process() and not environment.creates_processes_externally:
        return  # nobody else has been started, or need be
    for name in ("pytorch_lightning", "lightning_fabric"):  # which say what they found, and give advice
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger(OBSERVER).setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of PyTorch
    if samples is None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first process, which ends the others
    strategy = DDPStrategy(process_group_backend="gloo", timeout=LONGEST)
    trainer = pl.Trainer(
        accelerator=kind,
        devices=devices,
        strategy=strategy,
        plugins=[environment],
        use_distributed_sampler=False,  # `share` does it
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.predict(_Drawing(samples, draw), return_predictions=False)


class _Drawing(pl.LightningModule):
    """One batch a device, which is its share: `draw` cuts it as the pipeline would on one device."""

    def __init__(self, samples: Sequence[Sample] | None, draw: Draw) -> None:
        super().__init__()
        self.samples, self.draw, self.parent = samples, draw, os.getppid()

    def predict_dataloader(self) -> Iterator[list[Sample]]:
        samples = self.trainer.strategy.broadcast(self.samples)
        return iter([share(samples, self.global_rank, self.trainer.world_size)])  # a list would be a loader a sample

    def transfer_batch_to_device(self, batch: list[Sample], device: torch.device, dataloader_idx: int) -> list[Sample]:
        return batch  # no tensors

    def on_predict_start(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Lightning's handler waits for the end of training steps

    def predict_step(self, batch: list[Sample], batch_idx: int) -> int:
        self.draw(self.device, batch, self.stop_if_orphaned)
        self.wait_for_the_others()
        return len(batch)

    def stop_if_orphaned(self) -> None:
        """The first process may have been killed, and the same call been made again: nobody else is to write then."""
        if not self.trainer.is_global_zero and os.getppid() != self.parent:
            raise SystemExit(1)

    def wait_for_the_others(self) -> None:
        """Not by a barrier as it is, in which no Ctrl-C would be heard."""
        all_here = torch.distributed.barrier(async_op=True)
        while not all_here.is_completed():
            self.stop_if_orphaned()
            time.sleep(POLL_SECONDS)
        self.stop_if_orphaned()
        all_here.wait()
