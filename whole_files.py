"""Small files that are there whole or not at all, and JSON files that hold an object."""

import json
import os
import uuid
from pathlib import Path
from typing import Any


def write_file(path: Path, content: bytes) -> None:
    """Whole or not at all, also when the power goes: beside its place, synced, renamed, and the folder synced.

    Raises OSError naming `path`, such as for a full disk; nothing stays beside then.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Has the disk take the names in a folder, where the system can be asked to."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
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
