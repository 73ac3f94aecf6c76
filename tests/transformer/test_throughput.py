import time

import pytest
import torch

from transformer import throughput
from transformer.flops import TrainingFlops
from transformer.throughput import Throughput, known_peak, measured_peak, peak_flops


@pytest.fixture
def clock(monkeypatch):
    """Seconds that go by when a test says so."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(throughput.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_by_hand(clock):
    speed = Throughput(positions=10, flops=TrainingFlops(picture=1000, text_token=7), peak=2000.0, devices=3)
    speed.add(2, torch.tensor(5))
    clock.now += 1
    speed.add(2, torch.tensor(4))
    clock.now += 3
    assert speed.report() == {"tokens_per_s": 4 * 10 * 3 / 4, "mfu": (4 * 1000 + 9 * 7) / 4 / 2000}
    clock.now += 60
    speed.restart()
    speed.add(1, torch.tensor(0))
    clock.now += 1
    assert speed.report() == {"tokens_per_s": 30.0, "mfu": 0.5}


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_known_devices(name, bf16, monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert known_peak(name, torch.bfloat16) == bf16
    assert known_peak(name, torch.float32) == (bf16 and pytest.approx(bf16 / 2, rel=0.01))
    assert known_peak(name, torch.float64) is None
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    assert known_peak(name, torch.float32) is None


def test_a_known_device_is_not_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(throughput, "measured_peak", lambda *args: 1.0)
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == 989e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == 1.0
    assert peak_flops(torch.device("cpu"), torch.bfloat16) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_is_measured_in_little_time(dtype, monkeypatch):
    monkeypatch.setattr(throughput, "MATRIX", 256)
    measured_peak.cache_clear()
    start = time.perf_counter()
    assert 1e8 < measured_peak(torch.device("cpu"), dtype) < 1e14
    assert time.perf_counter() - start < 2  # 0.05 s and three products, on a machine that may be busy
