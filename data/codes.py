"""Pictures as the indices an image tokenizer gave them, on disk: encode once, train the prior many times.

A folder holds `codes.npy` (uint16, N x h x w; read through a memory map), `captions.jsonl` (key, captions and split of
each row) and `manifest.json` (which image tokenizer, how many codes, the grid, the count). It appears whole or not at
all: it is written beside and renamed.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

CODES, CAPTIONS, MANIFEST = "codes.npy", "captions.jsonl", "manifest.json"
MAX_CODEBOOK_SIZE = 2**16  # what uint16 holds
_DTYPE = np.dtype("<u2")
Row = tuple[str, tuple[str, ...], str | None]  # key, captions, split


def refuse_existing(folder: str | Path) -> None:
    """ValueError where codes cannot be written to `folder` because something is there."""
    if Path(folder).exists():
        raise ValueError(f"{folder} exists already: remove it or write the codes elsewhere")


class CodesWriter:
    """Writes a folder of codes, batch after batch; a context manager that leaves nothing behind when it fails.

    Args:
        folder: must not exist yet.
        fingerprint: names the image tokenizer that made the codes.
        codebook_size: the codes are 0 .. codebook_size - 1; at most 65,536.
        grid_size: (h, w) of each picture's codes.

    Raises ValueError where the folder exists, the codebook is too large or the grid is empty.
    """

    def __init__(self, folder: str | Path, fingerprint: str, codebook_size: int, grid_size: tuple[int, int]) -> None:
        if not 1 <= codebook_size <= MAX_CODEBOOK_SIZE:
            raise ValueError(f"codebook_size is {codebook_size}, expected 1 to {MAX_CODEBOOK_SIZE}: codes are uint16")
        if len(grid_size) != 2 or min(grid_size) < 1:
            raise ValueError(f"grid_size is {tuple(grid_size)}, expected two positive numbers")
        self.folder = Path(folder)
        refuse_existing(self.folder)
        self.fingerprint, self.codebook_size, self.grid_size = fingerprint, codebook_size, tuple(grid_size)
        self._keys: set[str] = set()
        self._beside = self.folder.with_name(f"{self.folder.name}.partial")
        shutil.rmtree(self._beside, ignore_errors=True)
        self._beside.mkdir(parents=True)
        self._codes = (self._beside / CODES).open("wb")
        self._captions = (self._beside / CAPTIONS).open("w", encoding="utf-8")
        self._header_size = _write_header(self._codes, 0, self.grid_size)

    def add(
        self,
        keys: Sequence[str],
        captions: Sequence[Sequence[str]],
        splits: Sequence[str | None],
        indices: Tensor,
    ) -> None:
        """Append a batch.

        Args:
            keys, captions, splits: B each, as `data.source.Source` has them.
            indices: (B, h, w), integers in [0, codebook_size).

        Raises ValueError where the lengths or the grid differ, a code is out of range or a key comes twice.
        """
        expected = (len(keys), *self.grid_size)
        if tuple(indices.shape) != expected or not len(keys) == len(captions) == len(splits):
            raise ValueError(
                f"got indices {tuple(indices.shape)} for {len(keys)} keys, {len(captions)} captions and {len(splits)} "
                f"splits; expected indices {expected} and as many of each"
            )
        if len(keys) == 0:
            return
        if indices.min() < 0 or indices.max() >= self.codebook_size:
            raise ValueError(
                f"codes run from {indices.min()} to {indices.max()}, expected 0 to {self.codebook_size - 1}"
            )
        for row in zip(keys, captions, splits, strict=True):
            self._add_row(*row)
        self._codes.write(indices.cpu().numpy().astype(_DTYPE).tobytes())

    def _add_row(self, key: str, captions: Sequence[str], split: str | None) -> None:
        if key in self._keys:
            raise ValueError(f"key {key!r} comes twice, expected it once")
        self._keys.add(key)
        row = {"key": key, "captions": list(captions), "split": split}
        self._captions.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Finish the files and give the folder its name. Raises ValueError where nothing was added."""
        if not self._keys:
            self.discard()
            raise ValueError(f"no codes for {self.folder}: expected at least one picture")
        self._codes.seek(0)
        assert _write_header(self._codes, len(self._keys), self.grid_size) == self._header_size
        self._close_files()
        manifest = {
            "fingerprint": self.fingerprint,
            "codebook_size": self.codebook_size,
            "grid_size": list(self.grid_size),
            "count": len(self._keys),
        }
        (self._beside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        self._beside.rename(self.folder)

    def discard(self) -> None:
        """Remove what has been written."""
        self._close_files()
        shutil.rmtree(self._beside)

    def _close_files(self) -> None:
        self._codes.close()
        self._captions.close()

    def __enter__(self) -> "CodesWriter":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error_type is None:
            self.close()
        else:
            self.discard()


def _write_header(file: BinaryIO, count: int, grid_size: tuple[int, ...]) -> int:
    """The .npy header. NumPy leaves room in it for the first axis to grow, so it can be written again at the end.

    Returns its length in bytes.
    """
    header = {"descr": _DTYPE.str, "fortran_order": False, "shape": (count, *grid_size)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


class CodesSource:
    """Reads a folder of codes; keys, captions and splits as `data.source.Source` has them, codes instead of pictures.

    Raises ValueError naming the file that is missing, broken or holds another count than the manifest; a code that the
    image tokenizer has not is found when it is read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is no folder: expected one with {CODES}, {CAPTIONS} and {MANIFEST}")
        manifest = _read_manifest(self.folder / MANIFEST)
        self.fingerprint: str = manifest["fingerprint"]
        self.codebook_size: int = manifest["codebook_size"]
        self.grid_size: tuple[int, int] = tuple(manifest["grid_size"])
        self._codes = _map_codes(self.folder / CODES, (manifest["count"], *self.grid_size))
        self._rows = _read_rows(self.folder / CAPTIONS, manifest["count"])

    def __reduce__(self) -> tuple:
        return CodesSource, (
            self.folder,
        )  # a worker that is not forked maps the file instead of being sent its content

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        return self._rows[index][0]

    def captions(self, index: int) -> tuple[str, ...]:
        return self._rows[index][1]

    def split(self, index: int) -> str | None:
        return self._rows[index][2]

    def identity(self) -> Iterator[str]:
        """The image tokenizer and a digest of all codes (the whole file is read), then key, captions and split of each
        sample."""
        digest = hashlib.blake2b(np.ascontiguousarray(self._codes), digest_size=16).hexdigest()
        yield f"{self.fingerprint} {self.grid_size} {digest}"
        yield from map(json.dumps, self._rows)

    def codes(self, index: int) -> Tensor:
        """Codes of one picture, (h, w) int64."""
        codes = torch.from_numpy(self._codes[index].astype(np.int64))
        if codes.max() >= self.codebook_size:
            raise ValueError(
                f"{self.folder / CODES}: the code {codes.max()} of {self.key(index)!r}, expected 0 to "
                f"{self.codebook_size - 1}"
            )
        return codes


def _read_manifest(path: Path) -> dict[str, Any]:
    kinds = {"fingerprint": str, "codebook_size": int, "grid_size": list, "count": int}
    try:
        manifest = json.loads(_require(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    for name, kind in kinds.items():
        if not isinstance(manifest, dict) or not isinstance(manifest.get(name), kind):
            raise ValueError(f"{path} has no {name!r} of type {kind.__name__}")
    return manifest


def _map_codes(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        codes = np.load(_require(path), mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if codes.shape != shape or codes.dtype != _DTYPE:
        raise ValueError(f"{path} holds {codes.dtype} {codes.shape}, but {MANIFEST} says {_DTYPE} {shape}")
    return codes


def _read_rows(path: Path, count: int) -> list[Row]:
    rows = []
    with _require(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(_row(json.loads(line.decode())))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path} line {number}: expected key, captions and split as JSON ({error!r})"
                ) from error
    if len(rows) != count:
        raise ValueError(f"{path} has {len(rows)} rows, but {MANIFEST} says {count}")
    return rows


def _row(row: dict[str, Any]) -> Row:
    key, captions, split = row["key"], row["captions"], row["split"]
    if not isinstance(key, str):
        raise TypeError(f"key is {key!r}")
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise TypeError(f"captions is {captions!r}, no list of strings")
    if split not in (None, "train", "val", "test"):
        raise ValueError(f"split is {split!r}")
    return key, tuple(captions), split


def _require(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    return path
