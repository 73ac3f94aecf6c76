"""Attention by Triton as PyTorch's operator: compilers, autocast, checkpoints, and what it refuses."""

import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton", reason="Triton is for Linux")

from kernels import flash, flash_launch, jit
from kernels.attention import attention
from kernels.reference import attention_reference
from tests.kernels.flash_cases import TOY, small_blocks, toy  # noqa: F401
from tests.kernels.oracle import DEVICE, on_a_gpu

pytestmark = pytest.mark.usefixtures("poisoned_memory", "small_blocks")


@pytest.mark.parametrize("lengths", [None, [3]])
@pytest.mark.parametrize("kind", ["row", "causal"])
def test_opcheck(kind, lengths):
    prefix_lengths = None if lengths is None else torch.tensor(lengths, device=DEVICE)
    arguments = (*toy(), prefix_lengths, 0.25, kind, 5, 3, 4, 11, "linear")
    torch.library.opcheck(torch.ops.imagewords.attention.default, arguments)


def test_opcheck_of_the_backward_pass():
    q, k, v = (x.detach() for x in toy())
    settings = (None, 0.25, "row", 5, 3, 4, 11, "linear")
    o, lse = torch.ops.imagewords.attention(q, k, v, *settings)
    torch.library.opcheck(
        torch.ops.imagewords.attention_backward.default, (torch.ones_like(o), q, k, v, o, lse, *settings)
    )


@pytest.mark.parametrize("allow", ["set_float32_matmul_precision", "fp32_precision"])
def test_tf32_where_pytorch_is_told_so(allow, monkeypatch):
    assert flash_launch._precision() == "tf32x3"
    try:
        if allow == "fp32_precision":
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        else:
            torch.set_float32_matmul_precision("high")
        assert flash_launch._precision() == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none" if allow == "fp32_precision" else "ieee"
        torch.set_float32_matmul_precision("highest")


def test_launched_on_the_device_of_the_tensors():
    q, k, v = toy()
    with mock.patch.object(torch.cuda, "device_of", wraps=torch.cuda.device_of) as device_of:
        attention(q, k, v, TOY, impl="triton").sum().backward()
    assert len(device_of.mock_calls) == 3


def test_compiled_without_a_graph_break():
    q, k, v = toy()

    def loss(q: Tensor, k: Tensor, v: Tensor, impl: str) -> Tensor:
        return attention(2 * q, k, v, TOY, impl=impl).square().sum()

    found = torch.compile(loss, fullgraph=True)(q, k, v, "triton")
    expected = loss(q, k, v, "reference")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    gradients = [torch.autograd.grad(x, (q, k, v)) for x in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    q, k, v = toy()
    with torch.autocast(DEVICE, dtype):
        o = attention(q, k, v, TOY, impl="triton")
    assert o.dtype == dtype
    expected = attention_reference(q.to(dtype), k.to(dtype), v.to(dtype), TOY)
    torch.testing.assert_close(o, expected, atol=2e-2, rtol=2e-2)
    assert all(x.dtype == torch.float32 for x in torch.autograd.grad(o.sum(), (q, k, v)))


def test_activation_checkpointing():
    q, k, v = toy()
    plain = attention(q, k, v, TOY, impl="triton")
    kept = checkpoint(lambda q: attention(q, k, v, TOY, impl="triton"), q, use_reentrant=False)
    gradients = [torch.autograd.grad(o.square().sum(), (q, k, v)) for o in (plain, kept)]
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


def test_gradients_of_some_inputs_only():
    q, k, v = toy()
    o = attention(q.detach(), k.detach(), v, TOY, impl="triton")
    expected = attention_reference(q.detach(), k.detach(), v, TOY)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), v) for x in (o, expected)), atol=1e-5, rtol=1e-5)


def test_second_derivatives_are_refused():
    q, k, v = toy()
    (gradient,) = torch.autograd.grad(attention(q, k, v, TOY, impl="triton").sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives; impl='reference' has"):
        gradient.sum().backward()


def test_forward_mode_is_refused():
    q, k, v = toy()
    with pytest.raises(RuntimeError, match="no forward-mode derivatives; impl='reference' has"):
        torch.func.jvp(lambda q: attention(q, k, v, TOY, impl="triton"), (q,), (q,))


def test_vmap_is_refused():
    q, _, _ = toy(3)
    with pytest.raises(RuntimeError, match=r"torch.func.vmap: make that dimension part of B"):
        torch.func.vmap(lambda x: attention(x, x, x, TOY, impl="triton"))(q[:, None])


def test_what_the_kernels_do_not_take_is_refused():
    q, k, v = toy()
    with pytest.raises(ValueError, match="takes float32, float16 and bfloat16, not float64"):
        attention(q.double(), k.double(), v.double(), TOY, impl="triton")
    wide = torch.zeros(1, 1, TOY.seq_len, 257, device=DEVICE)
    with pytest.raises(ValueError, match="head dim of at most 256, not 257"):
        attention(wide, wide, wide, TOY, impl="triton")


@pytest.mark.parametrize(
    ("head_dim", "dtype", "device", "message"),
    [
        (257, torch.float32, DEVICE, "head dim of at most 256, not 257"),
        (16, torch.float64, DEVICE, "takes float32, float16 and bfloat16, not float64"),
        (16, torch.float32, "cpu", "Triton kernels run on CUDA devices, these tensors are on cpu"),
    ],
)
def test_the_operators_themselves_refuse_too(head_dim, dtype, device, message, monkeypatch):
    monkeypatch.setattr(jit, "INTERPRETED", False)
    x = torch.zeros(1, 1, TOY.seq_len, head_dim, dtype=dtype, device=device)
    settings = (None, 1.0, *TOY.settings)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.imagewords.attention(x, x, x, *settings)

    def backward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.imagewords.attention_backward(x, x, x, x, x, x[..., 0], *settings)

    for operator in (forward, backward):
        for refusing in (operator, torch.compile(operator, backend="aot_eager", fullgraph=True)):
            with pytest.raises(ValueError, match=message):
                refusing(x)


def test_the_operators_refuse_tensors_that_do_not_fit():
    x = torch.zeros(1, 1, TOY.seq_len, 16, device=DEVICE)
    settings = (None, 1.0, *TOY.settings)
    for wrong in (x[:, :, :8], x.half(), x[..., :8]):
        with pytest.raises(ValueError, match=r"k is .*, expected"):
            torch.ops.imagewords.attention(x, wrong, x, *settings)
        with pytest.raises(ValueError, match=r"do is .*, expected"):
            torch.ops.imagewords.attention_backward(wrong, x, x, x, x, x[..., 0], *settings)


def test_tensors_on_a_cpu_are_refused_without_the_interpreter():
    source = """
import torch
from kernels.attention import attention
from kernels.patterns import Pattern
x = torch.zeros(1, 1, 17, 16)
attention(x, x, x, Pattern("row", 5, 3, 4), impl="triton")
"""
    root = Path(__file__).parents[2]
    environment = {"PATH": "", "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", source], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ValueError: Triton kernels run on CUDA devices, these tensors are on cpu" in done.stderr


@on_a_gpu
def test_auto_means_triton():
    q, k, v = toy()
    with mock.patch.object(flash, "run_forward", wraps=flash.run_forward) as run_forward:
        attention(q, k, v, TOY)
    assert run_forward.called
