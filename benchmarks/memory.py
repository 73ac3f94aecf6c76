"""The most memory that a run holds at a time of what it allocates.

On a CPU it is read off the events of PyTorch's allocator, which the profiler records: every tensor, the scratch inside
its operators included, exact and the same each time. (Tensors that operators return, all that a dispatch mode sees,
lack the scratch; a process' peak RSS has the interpreter, threads and what malloc keeps.) On a CUDA device the
allocator counts by itself.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import Run


def peak_bytes(run: Run, device: torch.device | str) -> int:
    """Of a second run: what the first makes and keeps, such as the workspace of a library, does not count."""
    run()
    return _cuda_peak(run, device) if torch.device(device).type == "cuda" else peak_of(_cpu_allocations(run))


def _cuda_peak(run: Run, device: torch.device | str) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_allocations(run: Run) -> list[Mapping[str, Any]]:
    """The profiler's events, among them one for everything that is allocated or freed, unordered."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler else complains where a CUDA build has no device
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        return json.loads(trace.read_text())["traceEvents"]


def peak_of(events: list[Mapping[str, Any]]) -> int:
    """Largest sum, in the order of time, of the bytes allocated (freed: negative)."""
    held = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak
