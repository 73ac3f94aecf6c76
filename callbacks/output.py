"""What a run says of itself, to whoever still reads it."""

import os
from typing import TextIO


def say(text: str, stream: TextIO) -> None:
    """Prints, and lets nothing that keeps it from that end a run: a signal to the whole group ends the `tee` that reads
    it as well, and a log may lie on a full disk.

    A pipe without a reader is replaced by nothing: what is left in its buffer would turn the exit code into 120.
    """
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
    except (RuntimeError, OSError):  # a RuntimeError: a signal came while this very stream was being written to
        pass
