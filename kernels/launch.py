"""Launch parameters of the Triton kernels: defaults by table, or what `python -m kernels.tune` measured on a device.

Each kernel's file holds its table of defaults. Tuned parameters are kept in a JSON file of the user's cache folder,
keyed by device, kernel, dtype, head_dim and kind of pattern, and win over the table. Nothing is tuned behind the
user's back: a first call compiles one kernel of each kind and no more.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock

CACHE_VARIABLE = "IMAGEWORDS_CACHE"  # names the folder, in the place of ~/.cache/imagewords


class Launch(NamedTuple):
    """One way of launching a kernel: rows and columns of its tiles, warps, and stages of the software pipeline.

    `max_registers` a thread: where the compiler takes so many that one block fills a multiprocessor; 0: its choice.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    max_registers: int = 0


def tuned_path() -> Path:
    """Where tuned parameters are kept."""
    folder = os.environ.get(CACHE_VARIABLE) or "~/.cache/imagewords"
    return Path(folder).expanduser() / "launch-parameters.json"


def tuning_key(device_name: str, kernel: str, dtype: torch.dtype, head_dim: int, kind: str) -> str:
    return f"{device_name} / {kernel} / {str(dtype).removeprefix('torch.')} / {head_dim} / {kind}"


def tuned_launch(device: torch.device, kernel: str, dtype: torch.dtype, head_dim: int, kind: str) -> Launch | None:
    """The parameters that were measured to be best on this device, None where nothing was measured.

    Raises:
        ValueError: the file of tuned parameters is damaged; it says which file.
    """
    if kernel in _on_trial:
        return _on_trial[kernel]
    if device.type != "cuda":
        return None
    return _tuned(device, kernel, dtype, head_dim, kind)


@cache
def _tuned(device: torch.device, kernel: str, dtype: torch.dtype, head_dim: int, kind: str) -> Launch | None:
    return _read(tuned_path()).get(tuning_key(torch.cuda.get_device_name(device), kernel, dtype, head_dim, kind))


@contextmanager
def trying(kernel: str, launch: Launch) -> Iterator[None]:
    """Inside, `kernel` is launched so, whatever was tuned."""
    _on_trial[kernel] = launch
    try:
        yield
    finally:
        del _on_trial[kernel]


_on_trial: dict[str, Launch] = {}


def store_tuned(launches: dict[str, Launch]) -> Path:
    """Adds tuned parameters, by `tuning_key`, to the file and returns its path; whole or not at all.

    A lock beside the file keeps what another process stores at the same time.
    """
    path = tuned_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        merged = {key: launch._asdict() for key, launch in sorted((_read(path) | launches).items())}
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(merged, indent=1) + "\n")
        beside.replace(path)
    _tuned.cache_clear()
    return path


def _read(path: Path) -> dict[str, Launch]:
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text())
        return {key: _checked(Launch(**fields)) for key, fields in stored.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no launch parameters ({error}); delete it, and tune again if you like"
        ) from error


def _checked(launch: Launch) -> Launch:
    """Raises ValueError for parameters that no kernel can be launched with, or that would launch nothing."""
    block_m, block_n, num_warps, num_stages, max_registers = launch
    if not all(type(value) is int for value in launch):
        raise ValueError(f"{launch} is not all whole numbers")
    if not all(value >= 1 and value & (value - 1) == 0 for value in (block_m, block_n, num_warps)):
        raise ValueError(f"{launch}: blocks and warps are powers of 2")
    if num_stages < 1 or max_registers < 0:
        raise ValueError(f"{launch}: at least one stage, and registers of at least 0")
    return launch
