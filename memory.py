"""How much memory a process has taken and could take, and what to do where it was not enough."""

import os
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

RUN_OUT = ("allocate memory", "out of memory", "ALLOC_FAILED")  # in messages of PyTorch's, CUDA's and its libraries'
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
STATUS = Path("/proc/self/status")  # Linux'
AT_RISK = 0.9  # of what is there: a run meets larger moments than its first updates, and other programs
SMALLER = (
    "halve data.loading.batch_size and double trainer.accumulate_grad_batches, which trains the same; a prior takes "
    "less with model.prior.checkpoint_activations true"
)


class Memory(NamedTuple):
    """In bytes."""

    peak: int  # of a GPU's, what PyTorch has reserved; else what this process had in memory
    there: int


def memory_of(device: torch.device) -> Memory:
    """Of a GPU, what others have taken of it is not there."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return Memory(torch.cuda.max_memory_reserved(device), free + torch.cuda.memory_reserved(device))
    return Memory(_own_peak(), _of_machine())


def _own_peak() -> int:
    """The most that this process has had in memory. `ru_maxrss`, where the system says no better, is at first what the
    process that started this one had."""
    lines = STATUS.read_text().splitlines() if STATUS.is_file() else []
    for line in lines:
        if line.startswith("VmHWM:"):  # "VmHWM:    12 kB"
            return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def own_memory(processes: Iterable[int]) -> int:
    """Bytes that these processes have in memory and share with no other one; 0 where the system does not say."""
    return sum(_own_memory(Path(f"/proc/{process}/smaps_rollup")) for process in processes)


def _own_memory(rollup: Path) -> int:
    try:
        lines = rollup.read_text().splitlines()
    except OSError:  # not Linux, or the process has ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))  # "Private_Dirty: 12 kB"


def largest(memories: Iterable[Memory]) -> Memory:
    """The one of which the largest part was taken: each device has its own."""
    return max(memories, key=lambda memory: memory.peak / memory.there)


def together(memories: Sequence[Memory], machines: int) -> Memory:
    """Of processes, as many on each machine, which share its memory."""
    return Memory(sum(memory.peak for memory in memories) // machines, min(memory.there for memory in memories))


def judgement(memory: Memory) -> str | None:
    """What to do where a run is at risk of running out of memory; None: it is not.

    Raises ValueError where it has taken more than is there, which only swapping can give.
    """
    peak, there = memory
    if peak > there:
        raise ValueError(f"out of memory: {in_words(peak)} were taken, {in_words(there)} are there: {SMALLER}")
    if peak > AT_RISK * there:
        return f"at risk of running out of memory, with more than {AT_RISK:.0%} of it taken: {SMALLER}"
    return None


def _of_machine() -> int:
    """Of this machine, or of the container that this process is in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CONTAINER_LIMIT.read_text().strip() if CONTAINER_LIMIT.is_file() else ""
    return min(total, int(limit)) if limit.isdecimal() else total


@contextmanager
def out_of_memory_said(batch_size: int) -> Iterator[None]:
    """Turns running out of memory into a ValueError with the batch size and what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one
        if not _ran_out(error):
            raise
        raise ValueError(
            f"out of memory with data.loading.batch_size {batch_size} on each device: {SMALLER} ({_first_line(error)})"
        ) from error


@contextmanager
def model_too_large_said() -> Iterator[None]:
    """Turns running out of memory while a model is built into a ValueError with what makes it smaller."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _ran_out(error):
            raise
        raise ValueError(
            "out of memory before the training began, where the model was built: expected a smaller one; of a prior, "
            "model.prior.n_embd, model.prior.n_layer and data.text.vocab_size say most of its size "
            f"({_first_line(error)})"
        ) from error


def _ran_out(error: MemoryError | RuntimeError) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in RUN_OUT)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def in_words(count: int) -> str:
    """A number of bytes."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
