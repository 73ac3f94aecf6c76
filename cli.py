"""What the scripts share at the surface: one-line errors, how a path becomes a model folder, and the precision."""

import argparse
import ctypes
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

import start_signals

USER_ERRORS = (ValueError, OSError, FloatingPointError)
MAX_LENGTH = 500  # of a message: jsonargparse lists all that a value is not
_OF_TYPES = ("Parser key ", "Does not validate ", "Subtypes: ", "Errors:", "Expected a ", "Problem with ", "Given ")
MODEL_FOLDER = "model"  # where a run exports to
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ValueErrors, so that `run` reports them like every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def run(main: Callable[[], None]) -> None:
    """Runs a script's main: a mistake of the user becomes one line on standard error and exit code 2, Ctrl-C code 130.

    With `python -X dev` the traceback of a mistake comes first. What the script frees, its process keeps.
    """
    keep_freed_memory()
    try:
        start_signals.imports_over()
        main()
    except USER_ERRORS as error:
        if sys.flags.dev_mode:
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        _exit_interrupted()
    except SystemExit as exit_:
        if isinstance(exit_.__context__, KeyboardInterrupt):  # Lightning's Trainer turns one into the other
            _exit_interrupted()
        raise


def _exit_interrupted() -> NoReturn:
    print("interrupted", file=sys.stderr)
    sys.exit(start_signals.INTERRUPTED)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; of one that a DataLoader's worker sent over, what was raised there."""
    text = str(error)
    if "Original Traceback" in text:
        _, last_frame = text.rsplit("\n  File ", 1)
        text = re.split(r"\n(?! )", last_frame, maxsplit=1)[1].partition(": ")[2]  # where indented code ends
    text = " ".join(_of_types(text).split()) or type(error).__name__
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}…"


def _of_types(message: str) -> str:
    """Of jsonargparse's list of why a value is of none of some types, what says more than which they are."""
    said = [line.strip().removeprefix("- ") for line in message.splitlines()]
    said = [line for line in said if line and not line.startswith(_OF_TYPES)]
    if "Does not validate against any of the Union subtypes" not in message or not said:
        return message
    key = re.match(r'Parser key "([^"]+)"', message)
    return (f"{key[1]}: " if key else "") + "; ".join(said)


def of_command_line(error: Exception) -> str:
    """What is wrong with the command line; where a value could not be computed from another, what our function said;
    where one was given in the place of many, what was expected."""
    cause: BaseException = error
    while "compute_fn" in str(cause) and cause.__cause__ is not None:
        cause = cause.__cause__
    if found := re.match(r'Parser key "([^"]+)":\s+Unable to load config (.*?)\s+- ', str(cause)):
        return (
            f"{found[1]} is {found[2]}, expected a file of its settings, or each by its name: --{found[1]}.NAME VALUE"
        )
    return str(cause)


def keep_freed_memory() -> None:
    """Has glibc keep what is freed instead of handing it back: on a CPU each step would get it anew, to be cleared.

    A step of a prior of 280 positions took 13% less (one thread, batch 16, width 192), a picture through the paper's
    tokenizer a fifth. Other C libraries have no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that glibc takes before 2.35
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def check_devices(device: torch.device, count: int) -> None:
    """ValueError unless `count` devices like this one can be used; several are told apart by their number alone."""
    if count < 1:
        raise ValueError(f"devices is {count}, expected at least 1")
    if count > 1 and (device.index is not None or device.type not in ("cpu", "cuda")):
        raise ValueError(f"device is {device}, expected cpu or cuda where {count} devices are asked for")
    if count > 1 and device.type == "cuda" and count > torch.cuda.device_count():
        raise ValueError(f"devices is {count}, expected at most {torch.cuda.device_count()}: so many GPUs are here")


def model_folder(path: str | Path) -> Path:
    """The model folder meant by `path`: itself, or the one that the run in it exported.

    Raises ValueError where there is neither.
    """
    path = Path(path)
    for folder in (path, path / MODEL_FOLDER):
        if (folder / "config.json").is_file():
            return folder
    if not path.exists():
        raise ValueError(f"no such folder: {path}; expected a run of train.py or an exported model folder")
    raise ValueError(f"{path} holds no model: looked for config.json there and in {path / MODEL_FOLDER}")
