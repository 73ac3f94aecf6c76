"""Workers outlive the signals that are meant for their main process, but not that process' own."""

import os
import signal
from collections.abc import Iterator

import pytest
from torch.utils.data import DataLoader, Dataset

from data.worker_signals import killed_workers_said, leave_signals_to_main


class Pids(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return os.getpid()


@pytest.fixture(params=["fork", "forkserver"])
def batches(request) -> Iterator[Iterator[int]]:
    """Of a worker whose main process is its parent, and of one whose parent is another."""
    settings = {"num_workers": 1, "prefetch_factor": 1, "worker_init_fn": leave_signals_to_main}
    loader = DataLoader(Pids(), batch_size=None, multiprocessing_context=request.param, **settings)
    iterator = iter(loader)
    yield iterator
    del iterator


def send(number: int, pid: int) -> None:
    """From another process than the worker's parent."""
    if not (child := os.fork()):
        os.kill(pid, number)
        os._exit(0)
    os.waitpid(child, 0)


def test_signals_of_others_change_nothing(batches):
    worker = next(batches)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        send(number, worker)
    assert list(batches) == [worker] * 3


def test_the_main_process_ends_a_worker(batches):
    worker = next(batches)
    os.kill(worker, signal.SIGTERM)
    (process,) = batches._workers
    process.join(timeout=30)
    assert process.exitcode == 0


def test_a_worker_that_is_killed(batches):
    worker = next(batches)
    os.kill(worker, signal.SIGKILL)
    said = rf"process {worker}\) was ended .*, most likely as memory has run out"
    with pytest.raises(ChildProcessError, match=said), killed_workers_said():
        list(batches)


def test_other_errors_stay():
    with pytest.raises(RuntimeError, match="ours"), killed_workers_said():
        raise RuntimeError("ours")
