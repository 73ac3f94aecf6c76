"""One training checkpoint on the disk: whole or not there, with a digest that is checked on reading.

The file is what `torch.save` writes, a zip archive, so that everything which reads such files reads these; the digest
is the archive's comment, at the end. In a sidecar it could be that of another checkpoint after a power cut.
"""

import errno
import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from model_files import mismatches

OF_ALL_CHECKPOINTS = ("pytorch-lightning_version", "global_step")  # without these, none is read
TRAINING_STATE = ("optimizer_states", "loops")  # without these, no fit goes on
READINGS = 20  # of a file that is replaced while it is read
FOREIGN = re.compile(r"GLOBAL (\S+)")  # in torch.load's message: what a file wants to be called
COMMENT = re.compile(rb"sha256:([0-9a-f]{64})")
COMMENT_BYTES = 71
TORCH_CANNOT_READ = re.compile(r"unable to (?:open|mmap|stat|fstat) .*\((\d+)\)$")  # its own text for an OSError
ARCHIVE_END = b"PK\x05\x06"
ARCHIVE_END_BYTES = 22  # where there is no comment
CONTENT_BYTES = 1 << 16  # of a file's end, where its digest lies or, of earlier versions, the sums of its parts
LENGTH_BYTES = 2  # of the comment's length, the last thing before it


class DamagedCheckpoint(ValueError):
    """The file is not as it was written, or was never a checkpoint."""


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes the file and has the disk take it. Raises OSError, as from a full disk; no part of the file then stays."""
    try:
        with path.open("wb") as file:
            with _HashedFile(file) as hashed:
                _save(checkpoint, hashed)
            hashed.sign()
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # Ctrl-C too
        path.unlink(missing_ok=True)
        raise


class _HashedFile:
    """Takes an archive in the order of its bytes, as torch writes it, so that it need not be read again for its digest.

    While a block is written, a second thread hashes it: both release the interpreter's lock, and all devices wait.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sha256 = file, hashlib.sha256()
        self._end = b""  # not hashed yet: the archive's last bytes are the length of its comment
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> "_HashedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def write(self, block: memoryview | bytes) -> int:
        before, self._end = self._end, (self._end + bytes(block[-LENGTH_BYTES:]))[-LENGTH_BYTES:]
        hashing = self._thread.submit(self._hash, before, memoryview(block))
        try:
            return self._file.write(block)
        finally:  # the block is torch's again once this returns
            hashing.result()

    def flush(self) -> None:
        self._file.flush()

    def sign(self) -> None:
        """Gives the archive, which is whole, its comment."""
        length = COMMENT_BYTES.to_bytes(LENGTH_BYTES, "little")
        self._file.seek(-LENGTH_BYTES, os.SEEK_END)
        self._sha256.update(length)
        self._file.write(length + f"sha256:{self._sha256.hexdigest()}".encode())

    def _hash(self, before: bytes, block: memoryview) -> None:
        """What can no longer be the end."""
        kept = max(0, len(before) + len(block) - LENGTH_BYTES)
        self._sha256.update(before[:kept])
        self._sha256.update(block[: max(0, kept - len(before))])


def _save(checkpoint: dict[str, Any], file: _HashedFile) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:  # "unexpected pos": torch closes the archive after a write that failed
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def check_undamaged(path: Path) -> None:
    """Raises DamagedCheckpoint where the file is not as it was written, OSError naming it where it cannot be read: that
    may pass, and says nothing of what is in it.

    Files without a digest, of earlier versions and of others, are held to the archive's own sums of their parts.
    """
    try:
        problem = _problem_of_digest(path) if _has_comment(path) else _problem_of_parts(path)
    # NotImplementedError and RuntimeError are zipfile's for a compression or an encryption that flipped bits ask for.
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # a wrong offset in the archive
            raise _damaged(path, error) from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    if problem is not None:
        raise _damaged(path, problem)


def _has_comment(path: Path) -> bool:
    end = _end(path, ARCHIVE_END_BYTES)
    return not (end.startswith(ARCHIVE_END) and end.endswith(bytes(LENGTH_BYTES)))


def _end(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - count))
        return file.read()


def _problem_of_parts(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        part = archive.testzip()
    return None if part is None else f"{part} does not have its checksum"


def _problem_of_digest(path: Path) -> str | None:
    signed = COMMENT.fullmatch(_end(path, COMMENT_BYTES))
    if signed is None:
        return "it has no end"
    return None if signed[1].decode() == _digest(path) else "its digest is not that of its content"


def _digest(path: Path) -> str:
    """Of all but the comment."""
    sha256, left = hashlib.sha256(), path.stat().st_size - COMMENT_BYTES
    with path.open("rb") as file:
        while block := file.read(min(left, 1 << 20)):
            sha256.update(block)
            left -= len(block)
    return sha256.hexdigest()


def _damaged(path: Path, reason: object) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"{path} is damaged or no training checkpoint: {str(reason).partition(chr(10))[0]}")


def load_checkpoint(path: str | Path, model: nn.Module, keys: Sequence[str] = ()) -> dict[str, Any]:
    """A training checkpoint whose "state_dict" fits `model`, which is not touched; tensors stay on the disk until used.

    A run that still trains may put another in its place: then that one is read.

    Raises ValueError naming the file where it is missing, damaged (DamagedCheckpoint), of another model, or holds
    weights without `keys` and OF_ALL_CHECKPOINTS; OSError naming it where it cannot be read.
    """
    path = Path(path)
    for _ in range(READINGS):
        before = _identity(path)
        try:
            checkpoint = _load(path, model, keys)
        except (ValueError, OSError):
            if _identity(path) == before:
                raise
            continue
        if _identity(path) == before:
            return checkpoint
    raise OSError(errno.EBUSY, "replaced again and again while it is read", str(path))


def _identity(path: Path) -> tuple[int, ...] | None:
    """Another one for another file of the same name; None where there is none."""
    with suppress(FileNotFoundError):
        found = path.stat()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    return None


def _load(path: Path, model: nn.Module, keys: Sequence[str]) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no checkpoint {path}")
    check_undamaged(path)
    checkpoint = _read(path)
    problems = mismatches(checkpoint["state_dict"], model.state_dict())
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise ValueError(f"{path} is of another model than this run's: {shown}")
    missing = [key for key in (*OF_ALL_CHECKPOINTS, *keys) if key not in checkpoint]
    if missing:
        raise ValueError(
            f"{path} holds weights but no {', '.join(missing)}: expected a checkpoint as training writes it"
        )
    return checkpoint


def step_of(path: Path) -> int:
    """Updates that a checkpoint has behind it. Raises DamagedCheckpoint where it does not say."""
    try:
        return int(_read(path)["global_step"])
    except KeyError as error:
        raise _damaged(path, error) from error


def content_of(path: Path) -> str:
    """What tells an undamaged checkpoint from others, without reading all of it: 64 hexadecimal digits."""
    return hashlib.sha256(_end(path, CONTENT_BYTES)).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        checkpoint["state_dict"].items()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    except pickle.UnpicklingError as error:  # torch's words are advice to run whatever the file says
        asked = FOREIGN.search(str(error))
        what = f"it asks for {asked[1]}" if asked else "it cannot be unpickled"
        raise _damaged(path, f"{what}, expected tensors and plain values") from error
    except Exception as error:  # a damaged pickle runs into anything
        if failed := TORCH_CANNOT_READ.match(str(error)):
            number = int(failed[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise _damaged(path, str(error) or type(error).__name__) from error
    return checkpoint
