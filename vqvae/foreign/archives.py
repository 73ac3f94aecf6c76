"""Files of `torch.save`, today's (a zip archive) and those from before torch 1.6, read by pickles.py.

Both hold a pickle, and beside it the storages in which tensors lie. Storages are read when a tensor is asked for.
"""

import io
import math
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor

from vqvae.foreign.pickles import Built, Global, Persistent, UnsafePickle, read_pickle

DTYPES = {
    Global("torch", f"{name}Storage"): dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
PARAMETERS = {Global("torch._utils", name) for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")}
TENSORS = {Global("torch._utils", name) for name in ("_rebuild_tensor", "_rebuild_tensor_v2")}

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SHOWN = 16  # bytes of a file that is none of torch's
MOST_FOR_ITS_SIZE = 4  # times the size of a file may its tensors have, some of which may share their values
LARGEST_PICKLE = 256 * 2**20  # bytes; without its tensors, a checkpoint of 1,000 tensors has 0.1 MB


def is_tensor(value: Any) -> bool:
    """Whether `TorchFile.tensor` knows how to build this record."""
    return isinstance(value, Built) and value.what in PARAMETERS | TENSORS


class TorchFile:
    """An open file of torch.save. `root` is what was saved, by records instead of objects (pickles.py).

    Raises ValueError naming the file where it is missing, damaged or none of torch's, and UnsafePickle, a ValueError
    too, where it names what no weights need.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise ValueError(f"{path} is a folder, expected a file" if path.is_dir() else f"no file {path}")
        self._bytes_left = MOST_FOR_ITS_SIZE * path.stat().st_size
        self._stream = path.open("rb")
        try:
            with _naming(path):
                is_zip = self._stream.read(len(ZIP_MAGIC)) == ZIP_MAGIC
                self._stream.seek(0)
                self._storages = _Zip(self._stream) if is_zip else _Legacy(self._stream)
                self.root: Any = self._storages.root
        except BaseException:  # Ctrl-C too: no `with` closes a file that was not opened to its end
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def tensor(self, record: Built) -> Tensor:
        """The tensor that a record stands for, on the CPU, contiguous, with storage of its own."""
        with _naming(self.path):
            while record.what in PARAMETERS:
                record = record.args[0]
            storage, offset, size, stride = record.args[:4]
            _, kind, key, _, n_values, *view = storage.id
            if view not in ([], [None]):
                raise ValueError("its storages are parts of others, as before torch 0.4")
            dtype = DTYPES[kind]
            self._bytes_left -= n_values * dtype.itemsize
            if self._bytes_left < 0:
                raise ValueError(f"its tensors have more than {MOST_FOR_ITS_SIZE} times the bytes of the file")
            content = self._storages.read(key, n_values * dtype.itemsize)
            if math.prod(size) > n_values:
                raise ValueError(f"a tensor of {tuple(size)} in a storage of {n_values} values")
            if not n_values:
                return torch.empty(size, dtype=dtype)
            values = torch.frombuffer(bytearray(content), dtype=dtype)
            return values.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file in whatever goes wrong while it is read: its content is anybody's."""
    try:
        yield
    except UnsafePickle as error:
        raise UnsafePickle(f"{path}: {error}") from error
    except OSError:
        raise
    except Exception as error:
        said = str(error) if isinstance(error, ValueError) else f"damaged: {error or type(error).__name__}"
        raise ValueError(f"{path}: {said}") from error


class _Zip:
    def __init__(self, stream: BinaryIO) -> None:
        self.archive = zipfile.ZipFile(stream)
        names = [name for name in self.archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("a zip archive without data.pkl, so no file of torch.save")
        self.folder = names[0].removesuffix("data.pkl")
        if f"{self.folder}byteorder" in self.archive.namelist() and self._content("byteorder", 16) != b"little":
            raise ValueError("its numbers are big-endian, expected little-endian")
        self.root = read_pickle(io.BytesIO(self._content("data.pkl", LARGEST_PICKLE)))

    def _content(self, name: str, most: int) -> bytes:
        info = self.archive.getinfo(f"{self.folder}{name}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed, which torch.save does not do")
        if info.file_size > most:
            raise ValueError(f"{name} has {info.file_size} bytes, expected at most {most}")
        return self.archive.read(info)

    def read(self, key: str, n_bytes: int) -> bytes:
        content = self._content(f"data/{key}", n_bytes)
        if len(content) != n_bytes:
            raise ValueError(f"storage {key} has {len(content)} bytes, expected {n_bytes}")
        return content


class _Legacy:
    """Five pickles (magic number, protocol, about the machine, what was saved, the storages' keys), then for each key
    its number of values in 8 bytes and the values."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        start = stream.read(SHOWN)
        stream.seek(0)
        try:
            is_torch = read_pickle(stream) == LEGACY_MAGIC and read_pickle(stream) == LEGACY_PROTOCOL
        except UnsafePickle:
            raise
        except ValueError:
            is_torch = False
        if not is_torch:
            raise ValueError(f"no file of torch.save, it begins with {start!r}")
        read_pickle(stream)
        self.root = read_pickle(stream)
        keys = read_pickle(stream)
        sizes = {storage.id[2]: DTYPES[storage.id[1]].itemsize for storage in _storages_in(self.root)}
        self.places: dict[str, tuple[int, int]] = {}  # of the values: where they begin, bytes
        for key in keys:
            (n_values,) = struct.unpack("<q", stream.read(8))
            n_bytes = n_values * sizes[key]
            self.places[key] = stream.tell(), n_bytes
            stream.seek(n_bytes, io.SEEK_CUR)

    def read(self, key: str, n_bytes: int) -> bytes:
        at, found = self.places[key]
        self.stream.seek(at)
        content = self.stream.read(n_bytes) if found == n_bytes else b""
        if len(content) != n_bytes:
            raise ValueError(f"storage {key} has {found} bytes or is cut off, expected {n_bytes}")
        return content


def _storages_in(root: Any) -> Iterator[Persistent]:
    """Every storage, wherever it is: in depth, and each container once, as they may hold one another."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Persistent) and value.id[0] == "storage":
            yield value
        elif isinstance(value, Built):
            waiting += [value.args, value.state, value.items, value.elements]
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
