"""Random numbers as a function of where a run stands: a resumed run draws what an uninterrupted one would."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(device: torch.device, *counters: int) -> Iterator[None]:
    """Inside, random numbers on the CPU and on `device` follow from the counters (>= 0); outside, they go on as if
    nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0]))
        yield
