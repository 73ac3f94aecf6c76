"""Ends a run on several devices when one of its processes has ended, instead of waiting for it.

Lightning starts a process for each further device of a machine. Where one is killed, the others wait in a collective
operation: for half an hour on a GPU, and those of a CPU end in an error about a connection. Here the first process
watches the others, and these watch it; whichever is left says what happened and ends with exit code 1. Processes that
torchrun or a cluster started are watched by what started them; other machines' are missed when a collective times out.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import NoReturn

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from resume_command import resume_command

STARTED_BY = "IMAGEWORDS_STARTED_BY"  # in the environment of further processes: the first one's number
EVERY = 0.2  # seconds between two looks
PATIENCE = 5.0  # seconds that a process has to end by itself, with its own error

_over = threading.Event()
_first: int | None = None  # the process that this one watches, if it was started by one


def watch_first_process() -> None:
    """To be called where a script begins: in a further process, has it end when the first one has; in the first one,
    tells the further ones which it is."""
    global _first
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # also of all that srun or mpirun have started
        os.environ[STARTED_BY] = str(os.getpid())
    elif STARTED_BY in os.environ:
        _first = int(os.environ[STARTED_BY])
        threading.Thread(target=_watch_first, args=(_first,), daemon=True).start()


def _watch_first(first: int) -> None:
    while os.getppid() == first:
        if _over.wait(EVERY):
            return
    if not _over.wait(PATIENCE):
        _end_without_first()


def _end_without_first() -> NoReturn:
    _end(f"the process of device 0 ({_first}) has ended")


class ProcessWatch(Callback):
    """Has the first process end when one of those that it has started did, with another exit code than 0.

    For a script that begins with `watch_first_process`.
    """

    def __init__(self) -> None:
        self._started: list[subprocess.Popen] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        launcher = trainer.strategy.launcher
        watched = getattr(launcher, "procs", None)
        if not watched or STARTED_BY not in os.environ:
            return
        self._started = launcher.procs = list(watched)
        watched.clear()  # Lightning's own watch of this list would kill this process, too, without a word
        threading.Thread(target=self._watch_started, daemon=True).start()

    def _watch_started(self) -> None:
        while (ended := self._ended()) is None:
            if _over.wait(EVERY):
                return
        if not _over.wait(PATIENCE):
            self._end_without(ended)

    def _ended(self) -> int | None:
        """The place of a process that has ended, and not well."""
        return next((number for number, process in enumerate(self._started) if process.poll()), None)

    def _end_without(self, number: int) -> NoReturn:
        process = self._started[number]
        for other in self._started:
            other.kill()
        how = f"ended with exit code {process.returncode}"
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            how = f"was ended by {name}" + (", as where memory runs out" if name == "SIGKILL" else "")
        _end(f"the process of device {number + 1} ({process.pid}) {how}")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """A connection that broke is found before the end of the process that broke it."""
        if trainer.world_size == 1 or STARTED_BY not in os.environ or not isinstance(exception, RuntimeError):
            return
        until = time.monotonic() + 5 * EVERY
        while time.monotonic() < until:
            if (ended := self._ended()) is not None:
                self._end_without(ended)
            if _first is not None and os.getppid() != _first:
                _end_without_first()
            time.sleep(EVERY / 10)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        _over.set()


def _end(message: str) -> NoReturn:
    command = resume_command(sys.argv[1], sys.argv[2:])
    said = f"error: {message}: the run cannot go on without it. To go on from the last checkpoint: {command}"
    print(said, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)  # the main thread may be waiting for ever, where no exception reaches it
