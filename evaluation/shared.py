"""What all reports share: which samples are measured, the clock, the report's folder and file."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from data.settings import Loading
from data.split import Keyed, split_by_key
from whole_files import write_object

REPORT = "report.json"


def report_folder(out: str) -> Path:
    """The folder of that name, absolute; it may be missing. Raises ValueError where it is a file."""
    folder = Path(out).absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{out} is a file, expected a folder for the report")
    return folder


def loading(options: Namespace, out: Path) -> Loading:
    """How the samples are read; what a folder has that is unusable is listed beside `out`."""
    return Loading(
        batch_size=options.batch_size,
        workers=options.workers,
        max_rejected=options.max_rejected,
        val_fraction=options.val_fraction,
        report=str(out.with_name(f"{out.name}-rejects.json")) if options.drawings is None else None,
    )


def choose(source: Keyed, split: str | None, count: int | None, val_fraction: float) -> list[int]:
    """Numbers of the pictures to measure; the splits are those of training, which may have held some back by key.

    Raises ValueError where there are none, or fewer than two.
    """
    if split not in (None, "train", "val", "test"):
        raise ValueError(f"split is {split!r}, expected train, val or test")
    if count is not None and count < 2:
        raise ValueError(f"count is {count}, expected at least 2")
    train, val = (indices.tolist() for indices in split_by_key(source, val_fraction))
    splits = {"train": train, "val": val, "test": sorted(set(range(len(source))) - {*train, *val})}
    rows = list(range(len(source))) if split is None else splits[split]
    if len(rows) < 2:
        there = ", ".join(f"{len(of)} of {name}" for name, of in splits.items())
        raise ValueError(f"{len(rows)} pictures{f' of split {split}' if split else ''} ({there}), expected at least 2")
    if count is not None and count < len(rows):
        rows = [rows[i * len(rows) // count] for i in range(count)]
    return rows


def now(device: torch.device) -> float:
    """Seconds, when all that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def write_report(report: dict[str, Any], out: Path) -> None:
    """Writes `report.json` into the folder, which is made where it is missing; beside its place, then renamed.

    NaN and inf, which JSON does not have, are written as null.
    """
    write_object(out / REPORT, _in_json(report))


def _in_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _in_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def which_split(report: dict[str, Any]) -> str:
    """In words; drawings were trained on where the training's had the same seed and were as many."""
    if report["split"]:
        return f"split {report['split']}"
    return "every split" if report["data"] == "drawings" else "every split, what it was trained on too"
