"""Signals while a script imports what it needs, which takes seconds, and while a run is set up.

By themselves, Ctrl-C would end in the traceback of whatever is being imported, and SIGTERM without a word. To be
imported and called first: this module needs nothing but the standard library.
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130  # the exit code of what Ctrl-C has ended
TAKEN_AWAY = [signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]

_process: int | None = None  # that these handlers are of, if any; a forked one inherits them
_importing = False


def install(trains: bool = False) -> None:
    """Until `imports_over`, has Ctrl-C end the process at once, with one line and exit code 130.

    With `trains`, SIGTERM and SIGUSR1 end it with exit code 0 and a line that says what goes on: whoever takes the
    machine away is to see no error. That lasts until a run takes them (callbacks/stop_signals.py) or `leave`.
    Signals that are ignored (nohup, a shell's &) stay so.
    """
    global _process, _importing
    _process, _importing = os.getpid(), True
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    for number in TAKEN_AWAY if trains else []:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def imports_over() -> None:
    """From here on, signals raise: Ctrl-C a KeyboardInterrupt, the others SystemExit(0), so that locks are given up."""
    global _importing
    _importing = False
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave() -> None:
    """Has SIGTERM and SIGUSR1 do what they do by themselves; also where others have replaced the handlers of this
    module and put them back later."""
    global _process
    _process = None
    for number in TAKEN_AWAY:
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_DFL)


def trains(args: list[str]) -> bool:
    """Whether train.py with these arguments is the first process of a run: no validation, no --check, and none of a
    further device, which the first one would miss if it ended without an error."""
    return args[1:2] == ["fit"] and "--check" not in args and _is_first_device()


def _is_first_device() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    """Without unwinding: an import in the middle of which an exception is raised may catch it, or say more."""
    if _is_first_device():
        os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _end(signum: int, frame: FrameType | None) -> None:
    if os.getpid() != _process:  # a forked one, which its parent ends by this, or the training has begun
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
        return
    name = signal.Signals(signum).name
    os.write(2, f"ended by {name} before the training began; the same command starts it again\n".encode())
    if _importing:
        os._exit(0)
    sys.exit(0)
