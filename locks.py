"""One process at a time writes a folder. The lock is the kernel's (flock): however its process ends, it ends too."""

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # no POSIX
    fcntl = None

log = logging.getLogger(__name__)

LOCK = ".lock"  # in the folder, while it is being written
TRIES = 100  # to lock a folder that others remove
TAKEN = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}
UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_held: set[int] = set()  # file descriptors


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Inside, nobody else gets in here with this folder, which is made where it is missing; unused, it goes again.

    On several devices, the first process alone takes the lock. Where the file system knows no locks, a warning says so.

    Raises ValueError naming the process that writes the folder already, OSError where nothing can be written there.
    """
    folder = Path(folder)
    descriptor, made = _make_and_lock(folder)
    try:
        yield
    finally:
        if _is(folder / LOCK, descriptor):  # or the folder was removed, and may be another process' by now
            (folder / LOCK).unlink()
        _held.discard(descriptor)
        os.close(descriptor)
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def _make_and_lock(folder: Path) -> tuple[int, list[Path]]:
    """The lock, and which folders were made for it, the innermost first."""
    made: set[Path] = set()
    tries = 0
    while True:
        made.update(path for path in (folder, *folder.parents) if not path.exists())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return _lock(folder / LOCK), sorted(made, key=lambda path: len(path.parts), reverse=True)
        except FileNotFoundError:  # whoever had it made has just taken it away again, unused
            tries += 1
            if tries == TRIES:
                raise


def _lock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _flock(descriptor, path)
            if _is(path, descriptor):
                _sign(descriptor)
                _held.add(descriptor)
                return descriptor
        except BaseException:  # Ctrl-C too: the lock would last as long as the process
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has just removed it: what lies there now is another one


def _flock(descriptor: int, path: Path) -> None:
    unsupported = "this system has none"
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno in TAKEN:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
                raise ValueError(f"{path.parent} is being written by {holder}: wait for its end") from error
            if error.errno not in UNSUPPORTED:
                raise OSError(error.errno, error.strerror, str(path)) from error
            unsupported = str(error)
    log.warning("%s cannot be locked (%s): nothing keeps a second process from writing there", path.parent, unsupported)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Says who holds the lock, for others to read."""
    with suppress(OSError):  # a full disk: the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _leave_to_parent() -> None:
    """In a forked process (a DataLoader's worker), which would hold the lock for as long as it outlives its parent."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
