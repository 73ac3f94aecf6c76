"""Ends a command on several devices when one of its processes has ended, instead of waiting for it.

Lightning starts a process for each further device of a machine. Where one is killed, the others wait in a collective
operation, for as long as its time limit is, or end in an error about a connection; and Lightning's own watch kills the
first process without a word. Here the first process watches the others, and these watch it; whichever is left says what
happened and ends with exit code 1. Processes that torchrun or a cluster started are watched by what started them; other
machines' are missed when a collective times out.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytorch_lightning as pl

from start_signals import INTERRUPTED

STARTED_BY = "IMAGEWORDS_STARTED_BY"  # in the environment of further processes: the first one's number
EVERY = 0.2  # seconds between two looks
IN_ORDER = (0, INTERRUPTED)  # exit codes of a process whose work is over, maybe before that of the first one is
PATIENCE = 5.0  # seconds that a process has to end by itself once another one has, with its own error

_over = threading.Event()
_met = threading.Event()  # before that, the others wait for whoever ends, however well
_ending = threading.Lock()  # taken for good: two threads may see the same end
_started: list[subprocess.Popen] = []  # by this process
_first: int | None = None  # the process that this one watches, if it was started by one
_patience = PATIENCE
_to_go_on = ""


def watch_first_process(to_go_on: str, patience: float = PATIENCE) -> None:
    """To be called before processes are started and where a further one begins: has a further process end when the
    first one has; in the first one, tells the further ones which it is.

    Args:
        to_go_on: a sentence on how to go on, for the end of what is said.
        patience: seconds that a process has to end by itself once another one has.
    """
    global _first, _patience, _to_go_on
    _patience, _to_go_on = patience, to_go_on
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # also of all that srun or mpirun have started
        os.environ[STARTED_BY] = str(os.getpid())
    elif STARTED_BY in os.environ:
        _first = int(os.environ[STARTED_BY])
        threading.Thread(target=_watch_first, daemon=True).start()


@contextmanager
def processes_watched(trainer: pl.Trainer) -> Iterator[None]:
    """Around the Trainer's work: has the first process end when one of those that it has started did, with an exit code
    that is not IN_ORDER; and where a signal ends the first one, ends the others before it. For a script that has called
    `watch_first_process`.
    """
    strategy = trainer.strategy
    meet = strategy.setup_environment  # what the Trainer does once the processes are started: it waits for all of them

    def watch_and_meet() -> None:
        _watch_started_by(strategy.launcher)
        meet()
        _met.set()

    _over.clear()
    _met.clear()
    strategy.setup_environment = watch_and_meet
    try:
        yield
    except RuntimeError:  # a connection that broke is found before the end of the process that broke it
        if trainer.world_size > 1 and STARTED_BY in os.environ:
            _blame_a_process()
        raise
    except (SystemExit, KeyboardInterrupt):  # which the others would take for its death, and say so
        for process in getattr(strategy.launcher, "procs", ()):
            process.kill()
        raise
    finally:
        _over.set()
        strategy.setup_environment = meet


def _watch_first() -> None:
    while os.getppid() == _first:
        if _over.wait(EVERY):
            return
    if not _over.wait(_patience):
        _end_without_first()


def _end_without_first() -> NoReturn:
    """Of several that are left, one says so."""
    said = os.environ["LOCAL_RANK"] == "1"
    _end(f"the process of device 0 ({_first}) has ended" if said else None)


def _watch_started_by(launcher: object) -> None:
    global _started
    if STARTED_BY not in os.environ or not (watched := getattr(launcher, "procs", None)):
        return
    _started = launcher.procs = list(watched)
    watched.clear()  # Lightning's own watch of this list, which looks after 5 s at first, would kill this process, too
    threading.Thread(target=_watch_started, daemon=True).start()


def _watch_started() -> None:
    while (ended := _ended(IN_ORDER if _met.is_set() else ())) is None:
        if _over.wait(EVERY):
            return
    if not _over.wait(_patience):
        _end_without(ended)


def _ended(well: tuple[int, ...]) -> int | None:
    """The place of a process that has ended, and with none of these exit codes."""
    codes = (process.poll() for process in _started)
    return next((number for number, code in enumerate(codes) if code is not None and code not in well), None)


def _end_without(number: int) -> NoReturn:
    process = _started[number]
    for other in _started:
        other.kill()
    how = f"ended with exit code {process.returncode}"
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        how = f"was ended by {name}" + (", as where memory runs out" if name == "SIGKILL" else "")
    _end(f"the process of device {number + 1} ({process.pid}) {how}")


def _blame_a_process() -> None:
    """Does not return where another process has ended."""
    until = time.monotonic() + 5 * EVERY
    while time.monotonic() < until:
        if (ended := _ended((0,))) is not None:  # nor can the others go on where Ctrl-C has ended one of them alone
            _end_without(ended)
        if _first is not None and os.getppid() != _first:
            _end_without_first()
        time.sleep(EVERY / 10)


def _end(message: str | None) -> NoReturn:
    _ending.acquire()
    try:
        if message is not None:
            print(f"error: {message}: the others cannot go on without it. {_to_go_on}", file=sys.stderr, flush=True)
        sys.stdout.flush()
    finally:  # also where nobody reads it any more
        os._exit(1)  # the main thread may be waiting for ever, where no exception reaches it
