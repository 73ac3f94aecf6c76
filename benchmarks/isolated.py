"""A measurement in a process of its own: nothing that others compiled, loaded or keep in memory is in its way."""

import ctypes
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from cli import keep_freed_memory

STATUS, CLEAR_REFS = (Path("/proc/self") / name for name in ("status", "clear_refs"))


def isolated(measure: Callable[..., Any], *args: Any) -> Any:
    """What `measure(*args)` returns in a fresh process with as many threads as here, which keeps the memory that it
    frees, as our scripts do. Both have to be picklable, and what is raised there is raised here."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_prepare, initargs=(torch.get_num_threads(),)) as pool:
        return pool.submit(measure, *args).result()


def _prepare(threads: int) -> None:
    torch.set_num_threads(threads)
    keep_freed_memory()


def give_back_freed() -> None:
    """Hands what is freed and kept back to the system after all, once, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class PeakMemory:
    """The most memory since `restart` beyond what was held when this was made.

    On a CPU it is the process' resident memory, which Linux alone tells; on a CUDA device what PyTorch's allocator
    holds. Runs of thousands of steps cannot be read off the allocator's events, as memory.py does, so freed memory that
    malloc keeps is among it.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.before = torch.cuda.memory_allocated(device) if device.startswith("cuda") else resident("VmRSS")

    def restart(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self.device)
        elif CLEAR_REFS.exists():
            CLEAR_REFS.write_text("5")  # proc(5): the peak falls to what is resident now

    def read(self) -> int | None:
        """Bytes; None where the system does not tell."""
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.startswith("cuda") else resident("VmHWM")
        return None if peak is None or self.before is None else peak - self.before


def resident(name: str) -> int | None:
    """A line of the process' status in bytes."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
