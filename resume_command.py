"""The command that goes on with a run, from the one that began it."""

import shlex
import sys
from collections.abc import Iterator, Sequence

OPTION = "--ckpt_path"


def resume_command(kind: str, args: Sequence[str]) -> str:
    """For a shell: the interpreter and script as they were typed, the same arguments, and the last checkpoint."""
    typed, own = sys.orig_argv, [kind, *args]
    begin = typed[: -len(own)] if typed[-len(own) :] == own else ["python", "train.py"]
    return shlex.join([*begin, kind, *_without_checkpoint(args), OPTION, "last"])


def _without_checkpoint(args: Sequence[str]) -> Iterator[str]:
    words = iter(args)
    for word in words:
        if word == OPTION:
            next(words, None)
        elif not word.startswith(f"{OPTION}="):
            yield word
