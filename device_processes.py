"""Work shared out over several devices: a process for each, which Lightning starts by running the script again.

The first process says what is to be done; the others need no input of their own. They talk to each other by gloo, on
GPUs too: what is to be done at the start, a word at the end, and in between nobody waits, however long one takes.

Imported only where several devices are asked for: importing Lightning takes as long as some work does.
"""

import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Protocol, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from process_watch import processes_watched, watch_first_process

LONGEST = timedelta(days=365)  # that the first to finish waits for the last
POLL_SECONDS = 0.1
PATIENCE = 1.0  # seconds; little, for the same call may be made again at once, and nobody else is to write then


class Work(Protocol):
    """What is to be done; it can be pickled."""

    def __len__(self) -> int:
        """0 where there is nothing to do."""
        ...

    def share(self, rank: int, world_size: int) -> "Work":
        """What the process `rank` of `world_size` does of it."""
        ...


W = TypeVar("W", bound=Work)
Do = Callable[[torch.device, W], None]
"""Does a share of the work on a device."""


def is_first_process() -> bool:
    """Whether this is the process that was started by the user."""
    return LightningEnvironment().local_rank() == 0


def do_on_devices(work: W | None, do: Do[W], kind: str, devices: int, to_go_on: str) -> None:
    """Does work on several devices; returns when all is done.

    Runs sys.argv again for each device but the first: there too, it is to come to this call. Ctrl-C is for the first
    process, which ends the others; so is a SIGTERM that it has a handler for. Where a process ends in any other way,
    they all do.

    Args:
        work: None in all processes but the first.
        do: called once in each process.
        kind: "cpu" or "cuda".
        devices: how many of them, at least 2.
        to_go_on: a sentence on how to, said where a process has ended before its work was done.
    """
    environment = LightningEnvironment()
    if work is not None and not len(work) and not environment.creates_processes_externally:
        return  # nobody else has been started, or need be
    for name in ("pytorch_lightning", "lightning_fabric"):  # which say what they found, and give advice
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of PyTorch
    if work is None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch_first_process(to_go_on, PATIENCE)
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
    try:
        with processes_watched(trainer):
            trainer.predict(_Doing(work, do), return_predictions=False)
    except BaseException:  # Ctrl-C and SystemExit too: no process may outlive this one
        strategy.launcher.kill(signal.SIGKILL)  # those that it has started: why it ends is said once, here
        raise


class _Doing(pl.LightningModule):
    """One batch a device, which is its share of the work."""

    def __init__(self, work: Work | None, do: Do) -> None:
        super().__init__()
        self.work, self.do = work, do
        self.on_termination = signal.getsignal(signal.SIGTERM)

    def predict_dataloader(self) -> Iterator[Work]:
        work = self.trainer.strategy.broadcast(self.work)
        return iter([work.share(self.global_rank, self.trainer.world_size)])  # a list would be a loader an element

    def transfer_batch_to_device(self, batch: Work, device: torch.device, dataloader_idx: int) -> Work:
        return batch  # no tensors

    def on_predict_start(self) -> None:
        signal.signal(signal.SIGTERM, self.on_termination)  # Lightning's handler waits for the end of training steps

    def predict_step(self, batch: Work, batch_idx: int) -> int:
        self.do(self.device, batch)
        self.wait_for_the_others()
        return len(batch)

    def wait_for_the_others(self) -> None:
        """Not by a barrier as it is, in which no Ctrl-C would be heard."""
        all_here = torch.distributed.barrier(async_op=True)
        while not all_here.is_completed():
            time.sleep(POLL_SECONDS)
        all_here.wait()
