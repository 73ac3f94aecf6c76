"""What tests of the fast implementations share: masks, inputs as a model gives them, comparison with the oracle."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.patterns import CONV_WRAPS, KINDS, Pattern, Rule, attention_mask
from kernels.reference import attention_reference

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
ALL_RULES = [(kind, "linear") for kind in KINDS if kind != "conv"] + [("conv", wrap) for wrap in CONV_WRAPS]
every_rule = pytest.mark.parametrize(("kind", "wrap"), ALL_RULES)
pattern_strategy = st.builds(
    lambda rule, text_len, height, width, kernel: Pattern(rule[0], text_len, height, width, kernel, rule[1]),
    st.sampled_from(ALL_RULES),
    text_len=st.integers(1, 12),
    height=st.integers(1, 13),
    width=st.integers(1, 40),
    kernel=st.sampled_from([1, 3, 5, 11]),
)


def on_a_gpu(test: Callable) -> Callable:
    return pytest.mark.gpu(pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")(test))


def packed(pattern: Pattern, batch: int, heads: int, head_dim: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, pattern.seq_len, 3, heads, head_dim, generator=generator, dtype=dtype)


def unpack(qkv: Tensor) -> tuple[Tensor, ...]:
    """q, k, v (B, H, T, D) as a model gets them: views of one projection (B, T, 3, H, D)."""
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def output_and_gradient(function: Callable, qkv: Tensor, pattern: Pattern, **options) -> tuple[Tensor, Tensor]:
    qkv = qkv.detach().clone().requires_grad_()
    o = function(*unpack(qkv), pattern, **options)
    # A different weight on every element, so that no two errors can cancel.
    weight = torch.linspace(-1, 1, o.numel(), dtype=torch.float64, device=o.device).view(o.shape)
    (o.double() * weight).sum().backward()
    return o.detach(), qkv.grad


def assert_matches_reference(function: Callable, qkv: Tensor, pattern: Pattern, atol: float = 1e-11, **options) -> None:
    """Outputs and gradients, to an absolute and relative `atol` of the reference in at least float32."""
    found = output_and_gradient(function, qkv, pattern, **options)
    expected = output_and_gradient(attention_reference, qkv, pattern, **options)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, atol=atol, rtol=atol)


def assert_as_exact_as_masked_sdpa(
    function: Callable, qkv: Tensor, pattern: Pattern, prefix_lengths: Tensor | None = None
) -> None:
    """Errors of output and gradient are at most twice those of plain torch at the same dtype."""
    positions = torch.arange(pattern.seq_len, device=qkv.device)
    mask = attention_mask(pattern, positions, positions, prefix_lengths)
    exact = output_and_gradient(attention_reference, qkv.double(), pattern, prefix_lengths=prefix_lengths)
    found = output_and_gradient(function, qkv, pattern, prefix_lengths=prefix_lengths)
    plain = output_and_gradient(lambda q, k, v, _: scaled_dot_product_attention(q, k, v, mask), qkv, pattern)
    for x, y, z in zip(found, plain, exact, strict=True):
        assert x.dtype == qkv.dtype
        spacing = torch.finfo(qkv.dtype).eps * z.abs().max()
        assert (x.double() - z).abs().max() <= 2 * (y.double() - z).abs().max() + spacing


def every_second(q, k, width: int, half: int):
    """A rule without a reach that is not causal's."""
    return (k <= q) & ((q - k) % 2 == 0)


OTHER_RULE = Rule(every_second, None, by_offset=True)
