"""Peak memory of runs whose allocations are known."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.memory import peak_bytes, peak_of

MEGABYTE = 2**20


def floats(megabytes: int) -> torch.Tensor:
    return torch.empty(megabytes * MEGABYTE // 4)


def test_the_peak_is_what_is_held_at_a_time():
    def run():
        first = floats(8)
        del first
        second, third = floats(4), floats(3)
        second += 1
        return third

    assert peak_bytes(run, "cpu") == 8 * MEGABYTE


def test_scratch_inside_an_operator_counts():
    """A written-out attention makes its scores inside one call."""
    q = torch.randn(1, 1, 512, 16)
    mask = torch.zeros(512, 512, requires_grad=True)  # which the fused kernel does not take
    assert peak_bytes(lambda: scaled_dot_product_attention(q, q, q, attn_mask=mask), "cpu") >= 512 * 512 * 4


def test_what_the_first_run_keeps_does_not_count():
    kept = {}
    assert peak_bytes(lambda: kept.setdefault("workspace", kept.get("workspace") or [floats(4)]), "cpu") < MEGABYTE


def test_events_are_taken_in_the_order_of_time():
    events = [
        {"name": "[memory]", "ts": 3, "args": {"Bytes": -10}},
        {"name": "aten::mul", "ts": 2},
        {"name": "[memory]", "ts": 4, "args": {"Bytes": 7}},
        {"name": "[memory]", "ts": 1, "args": {"Bytes": 10}},
    ]
    assert peak_of(events) == 10
    assert peak_of([]) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    assert peak_bytes(lambda: torch.empty(MEGABYTE, device="cuda") + 1, "cuda") == 8 * MEGABYTE
