"""A process of one's own, and its memory."""

import mmap
import os
import sys

import pytest
import torch

from benchmarks import isolated as module
from benchmarks.isolated import PeakMemory, isolated

MEGABYTE = 2**20


def process_and_threads() -> tuple[int, int]:
    return os.getpid(), torch.get_num_threads()


def test_it_is_another_process_with_as_many_threads():
    process, threads = isolated(process_and_threads)
    assert process != os.getpid()
    assert threads == torch.get_num_threads()


def touched(megabytes: int) -> mmap.mmap:
    """Memory past malloc, which may keep what is freed."""
    pages = mmap.mmap(-1, megabytes * MEGABYTE)
    for page in range(0, len(pages), mmap.PAGESIZE):
        pages[page] = 1
    return pages


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_peak_is_that_since_the_restart():
    memory = PeakMemory("cpu")
    touched(64).close()
    assert memory.read() >= 63 * MEGABYTE
    memory.restart()
    assert memory.read() < 8 * MEGABYTE
    pages = touched(16)
    assert 15 * MEGABYTE <= memory.read() < 32 * MEGABYTE
    pages.close()


def test_a_system_that_tells_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "STATUS", tmp_path / "status")
    monkeypatch.setattr(module, "CLEAR_REFS", tmp_path / "clear_refs")
    memory = PeakMemory("cpu")
    memory.restart()
    assert memory.read() is None
