"""Which precision is quick on which device."""

from collections.abc import Callable

import pytest
import torch

from precision import cpu_likes_bf16, default_precision, product_dtype


@pytest.fixture
def machine(monkeypatch) -> Callable[..., None]:
    """Makes PyTorch see a machine of another kind."""

    def machine(*, cpu: bool = False, cuda: bool | None = None, mps: bool = False) -> None:
        """`cpu`, `cuda`: whether it is good at bf16; `cuda` None: there is none."""
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu, raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bool(cuda))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return machine


@pytest.mark.parametrize(
    ("accelerator", "seen", "precision"),
    [
        ("auto", {"cpu": True}, "bf16-mixed"),
        ("auto", {}, "32-true"),
        ("cpu", {"cpu": True}, "bf16-mixed"),
        ("cpu", {"cuda": True}, "32-true"),
        ("cpu", {"cpu": True, "cuda": False, "mps": True}, "bf16-mixed"),
        ("auto", {"cuda": True}, "bf16-mixed"),
        ("auto", {"cuda": False, "cpu": True}, "32-true"),
        ("gpu", {"cuda": True}, "bf16-mixed"),
        ("cuda", {"cuda": False, "cpu": True}, "32-true"),
        ("gpu", {"cpu": True}, "32-true"),
        ("auto", {"mps": True, "cpu": True}, "32-true"),
        ("mps", {"mps": True, "cpu": True}, "32-true"),
    ],
)
def test_bf16_where_the_device_is_good_at_it(machine, accelerator, seen, precision):
    machine(**seen)
    assert default_precision(accelerator) == precision


def test_a_processor_that_cannot_be_asked_is_taken_for_slow_at_bf16(monkeypatch):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not cpu_likes_bf16()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert cpu_likes_bf16()


def test_products_are_made_in_bf16_but_on_a_cpu_that_is_slow_at_it(machine):
    machine(cpu=True, cuda=False)
    assert product_dtype(torch.device("cpu")) == product_dtype(torch.device("cuda")) == torch.bfloat16
    machine(cpu=False, cuda=False)
    assert product_dtype(torch.device("cpu")) == torch.float32
    assert product_dtype(torch.device("cuda")) == torch.bfloat16
