"""Signals that ask a run to end: Ctrl-C by hand, SIGTERM and SIGUSR1 where a machine is taken away."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import start_signals
from callbacks.output import say

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]


class StopSignals:
    """Remembers the first signal; a Ctrl-C after it raises KeyboardInterrupt, further SIGTERMs change nothing.

    Args:
        what_ends: says on which part of the run a stop has to wait ("step"), None: the run is over anyway.

    Attributes:
        asked: the first signal, None before.
    """

    def __init__(self, what_ends: Callable[[], str | None]) -> None:
        self.asked: signal.Signals | None = None
        self._what_ends = what_ends
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def remember(self) -> None:
        """What `restore` is to bring back, before others take the signals."""
        self._before = {number: signal.getsignal(number) for number in SIGNALS}

    def install(self) -> None:
        """After others have taken the signals: Lightning does so for SIGTERM and, under SLURM, for SIGUSR1, which it
        answers with a checkpoint in the middle of a step.

        From here on, no signal comes before the training: not even when an error has ended it, and Lightning and
        `restore` have put back the handlers that say so.
        """
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for number in SIGNALS:
                signal.signal(number, self._receive)
            start_signals.leave()

    def restore(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._before = {}

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked process: its group is signalled as well, but the step still needs its batches
        if self.asked is not None:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.asked = signal.Signals(signum)
        part = self._what_ends()
        if part is None:
            said = "the run is at its end already; Ctrl-C again stops at once"
        else:
            said = f"stopping after this {part}; Ctrl-C again stops at once, without a checkpoint"
        say(f"\n{said}", sys.stderr)
