"""Step size over a run, as a factor on its peak: pure functions of the update's number."""

import math


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Rises in equal parts from 1 / warmup_steps at update 0 to 1 at update warmup_steps - 1, and stays there."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def cosine_factor(step: int, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """Warm-up, then half a cosine from 1 at update `warmup_steps` to min_ratio at update `total_steps`, kept after."""
    if step < warmup_steps:
        return warmup_factor(step, warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * progress)) / 2
