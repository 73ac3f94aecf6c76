"""The command that goes on with what was interrupted, from the one that began it."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence

OPTION = "--ckpt_path"
CHECK = "--check"  # after which there is nothing to go on with
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # torchrun, srun, mpirun


def resume_command(kind: str, args: Sequence[str]) -> str:
    """For a shell: the interpreter and script as they were typed, the same arguments, and the last checkpoint.

    In words where torchrun, srun or mpirun has started this process: it does not know what was typed.
    """
    if any(name in os.environ for name in LAUNCHERS):
        return f"the same launcher and command with {OPTION} last"
    return shlex.join([*_begin("train.py", [kind, *args]), kind, *_kept(args), OPTION, "last"])


def same_command(script: str, args: Sequence[str]) -> str:
    """For a shell: the interpreter and script as they were typed, and the same arguments."""
    return shlex.join([*_begin(script, args), *args])


def _begin(script: str, args: Sequence[str]) -> list[str]:
    """What was typed before these arguments; where another script has given them, the `script` that takes them."""
    typed, count = sys.orig_argv, len(args)
    return typed[:-count] if count and typed[-count:] == [*args] else ["python", script]


def _kept(args: Sequence[str]) -> Iterator[str]:
    words = iter(args)
    for word in words:
        if word == OPTION:
            next(words, None)
        elif word != CHECK and not word.startswith(f"{OPTION}="):
            yield word
