"""Schedules of the dVAE's training. All are cosines: linear ones "typically led to divergence" (2102.12092, A.2)."""

import math


def cosine(step: int, start: float, end: float, steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at step `steps`, constant afterwards; at once if steps is 0."""
    if step >= steps:
        return end
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / steps))
