"""Signals in the processes that read samples: a stop is the main process' to decide, and its last step needs them."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process

FOR_THE_MAIN_PROCESS = [signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]

ENDED = re.compile(r"DataLoader worker \(pid\S* ([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited unexpectedly)")


def leave_signals_to_main(worker: int) -> None:
    """A DataLoader's `worker_init_fn`: whoever signals a whole process group (a terminal, a batch system) does not end
    the worker; the main process can, by SIGTERM.

    PyTorch's own handler, which this takes the place of, dies of a SIGTERM that anybody else sends, and the main
    process of that.
    """
    for number in FOR_THE_MAIN_PROCESS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which alone says who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_obey, args=[parent_process().pid], daemon=True).start()


def _obey(main: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != main:
        pass
    os._exit(0)


@contextmanager
def killed_workers_said() -> Iterator[None]:
    """Turns the end of a worker that was killed into a ChildProcessError, an OSError, with what to do.

    PyTorch tells of it by a RuntimeError wherever the main process happens to be.
    """
    try:
        yield
    except RuntimeError as error:
        ended = ENDED.search(str(error.__cause__)) or ENDED.search(str(error))  # the cause says more, if it is one
        if ended is None:
            raise
        how = f"by a signal ({ended[2].strip()})" if ended[2] else "unexpectedly"
        short = "shared memory (/dev/shm)" if "Bus error" in how else "memory"
        raise ChildProcessError(
            f"a worker that reads samples (process {ended[1]}) was ended {how}, most likely as {short} has run out: "
            "use fewer workers or smaller batches"
        ) from error
