"""Files that are there whole or not at all, and JSON files that hold an object."""

import errno
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Where to write a file that is to appear at `path` when the block ends: synced and renamed, whole or not at all,
    also when the power goes. What was at `path` stays until then, and for good if the block raises.

    Its name is nobody else's, whoever writes the same file at the same time. Raises OSError naming `path`, such as for
    a full disk; nothing stays beside then.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        sync(part)
        part.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(part)):  # an encoder's own, or of another file
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_file(path: Path, content: bytes) -> None:
    """A file of these bytes, as `written_beside`."""
    with written_beside(path) as part:
        part.write_bytes(content)


def write_object(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file of this object for people to read too, as `written_beside`; its folder is made where it is missing.

    A text that is not UTF-8, as a file's name may be, holds lone surrogates; escaped, they stay valid JSON.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_file(path, text.encode("utf-8", "backslashreplace"))


def append_lines(path: Path, lines: bytes) -> None:
    """Adds whole lines to a file that is made where it is missing; what the end of a process has cut off ends first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            lines = lines if file.read(1) == b"\n" else b"\n" + lines
        file.write(lines)


def sync(path: Path) -> None:
    """Has the disk take what was written to a file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Has the disk take the names in a folder, where the system can be asked to."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # as some network file systems answer
            raise
    finally:
        os.close(descriptor)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file that is there. Raises ValueError naming the file where it holds no such thing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also of numbers of thousands of digits, and of lists in lists
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object")
    return content
