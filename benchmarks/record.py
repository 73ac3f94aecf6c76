"""What a result is worth nothing without: where, with what, at which commit and when it was measured."""

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


def circumstances(device: str) -> dict[str, Any]:
    """The head of every result."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def rounded(value: Any) -> Any:
    """What JSON can hold, with 4 digits of every float in it."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else round_to_4_digits(value)


def round_to_4_digits(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def hardware(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"


def commit() -> str | None:
    """The checked-out commit, `+` where the tree has changes; None outside a repository or before a first commit."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    revision = git("rev-parse", "--short", "HEAD")
    return revision and revision + ("+" if git("status", "--porcelain") else "")
