"""How much memory a process has taken and could take, and what to do where it was not enough."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

RUN_OUT = ("allocate memory", "out of memory", "ALLOC_FAILED")  # in messages of PyTorch's, CUDA's and its libraries'
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Memory(NamedTuple):
    """In bytes."""

    peak: int  # of a GPU's, what PyTorch has reserved; else what this process had in memory, its workers left out
    there: int


def memory_of(device: torch.device) -> Memory:
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return Memory(torch.cuda.max_memory_reserved(device), total)
    unit = 1 if sys.platform == "darwin" else 1024
    return Memory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, _of_machine())


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
            f"out of memory with data.loading.batch_size {batch_size} on each device: halve it and double "
            "trainer.accumulate_grad_batches, which trains the same; a prior takes less with "
            f"model.prior.checkpoint_activations true ({_first_line(error)})"
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
