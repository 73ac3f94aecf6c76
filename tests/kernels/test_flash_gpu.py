"""The Triton kernels at full size on a GPU, with the launch parameters that users get, tuned or not."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux")

from kernels import patterns
from kernels.flash import attention_flash
from kernels.patterns import Pattern
from tests.kernels import oracle
from tests.kernels.flash_cases import inputs
from tests.kernels.oracle import DEVICE, every_rule, on_a_gpu, output_and_gradient, unpack

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@on_a_gpu
@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 128, 256])
def test_full_size(kind, wrap, dtype, head_dim):
    pattern = Pattern(kind, 256, 32, 32, 11, wrap)
    oracle.assert_as_exact_as_masked_sdpa(attention_flash, inputs(pattern, 2, 2, head_dim, dtype=dtype), pattern)


@on_a_gpu
@every_rule
@pytest.mark.parametrize("lengths", [[0, 256], [1, 64], [77, 255]])
@pytest.mark.parametrize("shape", [(256, 32, 32, 11), (256, 64, 64, 11), (250, 33, 31, 5), (300, 7, 200, 3)])
def test_full_size_with_prefixes(kind, wrap, lengths, shape):
    pattern = Pattern(kind, *shape, wrap)
    qkv = inputs(pattern, 2, 1, 64, dtype=torch.bfloat16)
    oracle.assert_as_exact_as_masked_sdpa(attention_flash, qkv, pattern, torch.tensor(lengths, device=DEVICE))


@on_a_gpu
@every_rule
def test_more_than_65536_positions(kind, wrap):
    """The last rows and the text keys' gradients against the same computed from their own keys alone."""
    pattern = Pattern(kind, 256, 256, 257, 11, wrap)
    q, k, v = (x.requires_grad_() for x in unpack(inputs(pattern, 1, 1, 64, dtype=torch.bfloat16)))
    o = attention_flash(q, k, v, pattern)
    rows = torch.tensor([0, 255, 256, 300, 40_000, 65_535, 65_537, pattern.seq_len - 1], device=DEVICE)
    expected = rows_of_reference(q, k, v, pattern, rows)
    torch.testing.assert_close(o[:, :, rows].double(), expected, atol=2e-2, rtol=2e-2)
    do = torch.zeros_like(o)
    do[:, :, rows] = torch.randn_like(do[:, :, rows])
    found = torch.autograd.grad(o, (q, k, v), do)
    exact = torch.autograd.grad(expected, (q, k, v), do[:, :, rows].double())
    torch.testing.assert_close(found, exact, atol=2e-2, rtol=2e-2)


def rows_of_reference(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, rows: Tensor) -> Tensor:
    mask = patterns.attention_mask(pattern, rows, torch.arange(pattern.seq_len, device=q.device))
    scores = q[:, :, rows].double() @ k.double().transpose(-2, -1) / q.shape[-1] ** 0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ v.double()


@on_a_gpu
def test_offsets_beyond_32_bits():
    pattern = Pattern("row", 256, 32, 32)
    heads = 2**31 // (pattern.seq_len * 64) + 2
    q, k, v = torch.randn(3, 1, heads, pattern.seq_len, 64, device=DEVICE, dtype=torch.bfloat16)
    last = slice(heads - 1, heads)
    tensors, of_last = ([x[:, heads].detach().requires_grad_() for x in (q, k, v)] for heads in (slice(None), last))
    o, expected = attention_flash(*tensors, pattern), attention_flash(*of_last, pattern)
    torch.testing.assert_close(o[:, last], expected)
    gradients = torch.autograd.grad(o, tensors, torch.ones_like(o))
    exact = torch.autograd.grad(expected, of_last, torch.ones_like(expected))
    torch.testing.assert_close([x[:, last] for x in gradients], list(exact))


@on_a_gpu
@every_rule
def test_same_bits_twice(kind, wrap):
    pattern = Pattern(kind, 256, 64, 64, 11, wrap)
    qkv = inputs(pattern, 2, 4, 64, dtype=torch.bfloat16)
    first, second = (output_and_gradient(attention_flash, qkv, pattern) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
