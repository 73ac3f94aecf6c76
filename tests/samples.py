"""What sample.py has written."""

import json
from pathlib import Path


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*_seed*.png")}


def manifest(folder: Path) -> dict:
    (path,) = folder.glob("grid_*.json")
    return json.loads(path.read_text(encoding="utf-8"))
