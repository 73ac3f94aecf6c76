"""Folders of codes that no tokenizer has made."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.code_manifest import Recipe
from data.code_shards import Row
from data.codes import CodesSource
from data.codes_writer import write_codes

GRID = (3, 4)
FIRST, SECOND = "000000.safetensors", "000001.safetensors"


def codes_of(count: int, grid: tuple[int, int] = GRID, codebook_size: int = 65_536) -> torch.Tensor:
    return torch.randint(codebook_size, (count, *grid), generator=torch.Generator().manual_seed(count))


def write(
    folder: Path,
    codes: torch.Tensor,
    captions: Sequence[Sequence[str]],
    keys: Sequence[str] | None = None,
    splits: Sequence[str | None] | None = None,
    **settings: Any,
) -> CodesSource:
    """Codes (N, h, w), or (N, K, h, w) of K crops; settings are the recipe's."""
    codes = codes[:, None] if codes.ndim == 3 else codes
    count, crops, *grid = codes.shape
    usual = {"fingerprint": "abc", "codebook_size": 65_536, "grid_size": tuple(grid), "image_size": 8}
    recipe = Recipe(**usual | {"crops": crops, "count": count} | settings)
    keys, splits = keys or [str(i) for i in range(count)], splits or [None] * count
    rows = [Row(key, tuple(texts), split) for key, texts, split in zip(keys, captions, splits, strict=True)]
    return write_codes(folder, recipe, rows, codes)


def written(folder: Path, count: int = 5, **settings) -> Path:
    """Pictures v, w, ... in shards of two."""
    captions = [(f"a {key}", "zwei Wörter\n") for key in "vwxyz"[:count]]
    write(folder, codes_of(count), captions, list("vwxyz"[:count]), **{"rows_per_shard": 2} | settings)
    return folder


def flip(path: Path, name: str, bit: int = 1) -> None:
    """One bit of a tensor in a shard, where its content begins."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    begin, _ = json.loads(content[8 : 8 + length])[name]["data_offsets"]
    content[8 + length + begin] ^= bit
    path.write_bytes(content)
