"""Two processes never write one folder, and a dead one keeps nobody out."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import locks
from locks import LOCK, only_writer

ROOT = Path(__file__).parent.parent

HOLD = "import sys, locks\nwith locks.only_writer(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()"
FORK = """
import os, sys, locks
with locks.only_writer(sys.argv[1]):
    if os.fork():
        os.wait()
    os.kill(os.getppid(), 9)
    print(os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
"""


def start(source: str, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", source, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


@pytest.fixture
def holder(tmp_path) -> Iterator[subprocess.Popen]:
    with start(HOLD, tmp_path / "run") as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_told_who_writes(holder, tmp_path):
    with (
        pytest.raises(ValueError, match=r"run is being written by process \d+ on ") as refused,
        only_writer(tmp_path / "run"),
    ):
        pass
    assert f"process {holder.pid} on {socket.gethostname()}" in str(refused.value)
    with only_writer(tmp_path / "another"):
        pass


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_the_lock_ends_with_its_process(holder, tmp_path, end):
    holder.send_signal(end) if end else holder.communicate("")
    holder.wait()
    with only_writer(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(ValueError, match=f"process {os.getpid()} on"), only_writer(tmp_path / "run"):
            pass


def test_a_forked_process_that_outlives_its_parent_does_not_hold_it(tmp_path):
    with start(FORK, tmp_path / "run") as process:
        child = int(process.stdout.readline())
        process.wait()
        os.kill(child, 0)  # it lives
        with only_writer(tmp_path / "run"):
            pass
        process.stdin.close()


def test_nothing_is_left_behind(tmp_path):
    with only_writer(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), only_writer(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
        raise KeyError
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]
    with only_writer(tmp_path / "a"):
        pass
    assert (tmp_path / "a" / "b" / "file").exists()


def test_a_lock_that_its_holder_removes_meanwhile_is_none(tmp_path, monkeypatch):
    """Between opening the file and locking it: what is locked then is a file that nobody else will look at."""
    flock, removed = locks._flock, []

    def meanwhile(descriptor: int, path: Path) -> None:
        if not removed:
            removed.append(path.unlink())
        flock(descriptor, path)

    monkeypatch.setattr(locks, "_flock", meanwhile)
    with only_writer(tmp_path), pytest.raises(ValueError, match="is being written"), only_writer(tmp_path):
        pass


def test_a_folder_that_its_last_holder_takes_away_meanwhile_is_made_again(tmp_path, monkeypatch):
    """Between making the folder, or finding it, and opening the lock in it; and it goes again, unused."""
    lock, removed = locks._lock, []

    def meanwhile(path: Path) -> int:
        if len(removed) < 2:
            path.parent.rmdir()
            removed.append(path.parent.parent.rmdir())
        return lock(path)

    monkeypatch.setattr(locks, "_lock", meanwhile)
    (tmp_path / "a" / "b").mkdir(parents=True)
    with only_writer(tmp_path / "a" / "b"):
        assert len(removed) == 2
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_leads_nowhere_is_not_tried_for_ever(tmp_path):
    (tmp_path / LOCK).symlink_to(tmp_path / "missing" / "file")
    with pytest.raises(FileNotFoundError, match=r"\.lock"), only_writer(tmp_path):
        pass


def test_the_lock_of_whoever_took_a_removed_folder_stays(tmp_path):
    run = tmp_path / "run"
    with start(HOLD, run) as another:
        with only_writer(tmp_path / "own"):
            another.stdout.readline()
            shutil.rmtree(tmp_path / "own")
            run.rename(tmp_path / "own")  # as if it had been made there
        assert (tmp_path / "own" / LOCK).exists()
        with pytest.raises(ValueError, match=f"by process {another.pid} "), only_writer(tmp_path / "own"):
            pass
        another.kill()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog, code):
    def flock(*_) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with only_writer(tmp_path):
        (tmp_path / "file").touch()
    assert "cannot be locked" in caplog.text and os.strerror(code) in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_other_errors_are_not_taken_for_a_lock(tmp_path, monkeypatch):
    def flock(*_) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with pytest.raises(OSError, match=rf"{os.strerror(errno.EIO)}: .*\{LOCK}"), only_writer(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), only_writer(tmp_path / "file" / "run"):
        pass
