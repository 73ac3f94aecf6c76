"""How fast a training goes: positions a second, and MFU, the share of the device's peak that the model's products are.

MFU (model FLOPs utilisation, https://arxiv.org/abs/2204.02311, appendix B) divides what the model asks for (flops.py)
by the time that a step takes, all of it, and by the peak of matrix products. That peak is what the data sheet says for
the GPUs in PEAKS. For all other devices, CPUs among them, it is what a large matrix product reached when the training
began: a share of what this machine can do, on a busy machine a share of what it could do then. So it is not to be
compared between one process and several on the same CPU, which measure beside one another.
"""

import time
from functools import lru_cache

import torch
from torch import Tensor

from transformer.flops import TrainingFlops

PEAKS: dict[str, tuple[float, float]] = {
    "H200 NVL": (835e12, 417e12),
    "H200": (989e12, 494e12),
    "H100 NVL": (835e12, 417e12),
    "H100 PCIe": (756e12, 378e12),
    "H100": (989e12, 494e12),
    "A100": (312e12, 156e12),
}
"""Products without sparsity a second in bf16 or fp16 and in tf32, from NVIDIA's data sheets; the first that is part of
the device's name holds."""
MATRIX = 1024
"""Side of the matrices on a CPU, where a product of them then takes 5 to 30 ms; GPUs want eight times that."""
TRIAL_S = 0.05


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Matrix products' operations a second at best, for one device. Measuring takes a CPU 0.1 s."""
    if device.type == "cuda":
        known = known_peak(torch.cuda.get_device_name(device), dtype)
        if known is not None:
            return known
    return measured_peak(device, dtype)


def known_peak(name: str, dtype: torch.dtype) -> float | None:
    """Of a GPU by its name, for float32 if it may be multiplied in tf32; None where that is not in the table."""
    found = next((peaks for part, peaks in PEAKS.items() if part in name), None)
    if found is None or (dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"):
        return None
    return {torch.bfloat16: found[0], torch.float16: found[0], torch.float32: found[1]}.get(dtype)


@lru_cache
def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Of the best of some products of two square matrices, measured once in a process."""
    side = MATRIX if device.type == "cpu" else 8 * MATRIX
    left, right = torch.ones(2, side, side, device=device, dtype=dtype)
    _seconds(left, right)  # the first one sets things up
    deadline = time.perf_counter() + TRIAL_S
    best = _seconds(left, right)
    while time.perf_counter() < deadline:
        best = min(best, _seconds(left, right))
    return 2 * side**3 / best


def _seconds(left: Tensor, right: Tensor) -> float:
    start = time.perf_counter()
    float((left @ right)[0, 0])  # waits for the device
    return time.perf_counter() - start


class Throughput:
    """Between two reports, pauses excluded.

    Args:
        positions: of a picture and its caption, pads included.
        flops: of a training step.
        peak: operations a second of this device.
        devices: that all work on as much.
    """

    def __init__(self, positions: int, flops: TrainingFlops, peak: float, devices: int = 1) -> None:
        self.positions, self.flops, self.peak, self.devices = positions, flops, peak, devices
        self.restart()

    def restart(self) -> None:
        self._pictures, self._text_tokens = 0, 0
        self._since = time.perf_counter()

    def add(self, pictures: int, text_tokens: Tensor) -> None:
        """What this device has worked off; `text_tokens` is a scalar, and not waited for before the report."""
        self._pictures += pictures
        self._text_tokens = self._text_tokens + text_tokens

    def report(self) -> dict[str, float]:
        """`tokens_per_s`, of all devices, and `mfu`, of this one."""
        text_tokens, pictures = int(self._text_tokens), self._pictures
        seconds = time.perf_counter() - self._since
        self.restart()
        flops = pictures * self.flops.picture + text_tokens * self.flops.text_token
        return {
            "tokens_per_s": pictures * self.positions * self.devices / seconds,
            "mfu": flops / seconds / self.peak,
        }
