"""Signals in the processes that read samples: a stop is the main process' to decide, and its last step needs them."""

import os
import signal
import threading
from multiprocessing import parent_process

FOR_THE_MAIN_PROCESS = [signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]


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
