"""The public face: what it refuses and what it accepts."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from kernels.attention import IMPLS, attention
from kernels.limits import is_capable, suits_triton
from kernels.patterns import CONV_WRAPS, KINDS, Pattern
from kernels.reference import attention_reference

ALL_RULES = [(kind, "linear") for kind in KINDS if kind != "conv"] + [("conv", wrap) for wrap in CONV_WRAPS]
every_rule = pytest.mark.parametrize(("kind", "wrap"), ALL_RULES)
TOY = Pattern("row", 6, 4, 4)
LARGE = Pattern("conv", 9, 16, 16, 5)  # long enough to be tiled


def qkv(pattern: Pattern, batch: int = 2, heads: int = 2, head_dim: int = 4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, batch, heads, pattern.seq_len, head_dim, generator=generator, dtype=dtype).unbind(0)


def test_reference_on_numbers_worked_out_by_hand():
    """One text token, a 1x2 picture: scores 0, and ln 2 on the last pair, so the weights are simple fractions."""
    pattern = Pattern("row", 1, 1, 2)
    q = torch.tensor([0.0, 0.0, 1.0]).view(1, 1, 3, 1)
    k = torch.tensor([0.0, 0.0, math.log(2)]).view(1, 1, 3, 1)
    v = torch.tensor([4.0, 8.0, 16.0]).view(1, 1, 3, 1)
    o = attention_reference(q, k, v, pattern)
    # Rows: v0; (v0 + v1) / 2; (v0 + v1 + 2 v2) / 4. Without the text key: v0; v1; (v1 + 2 v2) / 3.
    torch.testing.assert_close(o.flatten(), torch.tensor([4.0, 6.0, 11.0]))
    none = attention_reference(q, k, v, pattern, prefix_lengths=torch.tensor([0]))
    torch.testing.assert_close(none.flatten(), torch.tensor([4.0, 8.0, 40 / 3]))


@every_rule
@pytest.mark.parametrize("size", [(6, 4, 4), (9, 16, 16)])
def test_implementations_agree(kind, wrap, size):
    pattern = Pattern(kind, *size, 3, wrap)
    q, k, v = qkv(pattern)
    outputs = [attention(q, k, v, pattern, impl=impl) for impl in ("auto", "structured", "reference")]
    for o in outputs[1:]:
        torch.testing.assert_close(o, outputs[0])


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-46, math.inf, math.nan, "0.1"])
def test_scales_that_are_not_positive_are_refused(scale):
    q, k, v = qkv(TOY)
    with pytest.raises(ValueError, match=f"scale is {scale!r}, expected a positive number"):
        attention(q, k, v, TOY, scale=scale)


def test_unknown_impl_lists_the_known():
    with pytest.raises(ValueError, match="unknown impl 'flash', expected one of " + ", ".join(IMPLS)):
        attention(*qkv(TOY), TOY, impl="flash")


def test_length_mismatch_names_both():
    q, k, v = (x[:, :, :-1] for x in qkv(TOY))
    with pytest.raises(ValueError, match=r"hold 21 positions, the pattern 22 \(6 text \+ 4x4 image\)"):
        attention(q, k, v, TOY)


def test_shapes_dtypes_that_do_not_fit():
    q, k, v = qkv(TOY)
    with pytest.raises(ValueError, match=r"k has shape \(2, 22, 4\), expected \(B, H, T, D\)"):
        attention(q, k[0], v, TOY)
    with pytest.raises(ValueError, match=r"q has shape \(0, 2, 22, 4\), expected at least 1 everywhere"):
        attention(q[:0], k[:0], v[:0], TOY)
    with pytest.raises(ValueError, match=r"differ in shape: \(2, 2, 22, 4\), \(2, 2, 22, 4\), \(2, 1, 22, 4\)"):
        attention(q, k, v[:, :1], TOY)
    with pytest.raises(ValueError, match=r"differ in dtype: torch.float64, torch.float32, torch.float64"):
        attention(q, k.float(), v, TOY)
    with pytest.raises(ValueError, match=r"are torch.int64, expected floating point"):
        attention(q.long(), k.long(), v.long(), TOY)
    with pytest.raises(ValueError, match="on different devices: cpu, meta, cpu"):
        attention(q, k.to("meta"), v, TOY)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([1.0, 2.0]), "prefix_lengths is torch.float32, expected int32 or int64"),
        (torch.tensor([1, 2, 3]), r"prefix_lengths has shape \(3,\), expected \(2,\)"),
        (torch.tensor([3, 7]), r"prefix_lengths holds \[3, 7\], expected 0..6"),
        (torch.tensor([-1, 2]), r"prefix_lengths holds \[-1, 2\], expected 0..6"),
        (torch.tensor([1, 2], device="meta"), "prefix_lengths is on meta, q on cpu"),
    ],
)
def test_bad_prefix_lengths(lengths, message):
    q, k, v = qkv(TOY)
    with pytest.raises(ValueError, match=message):
        attention(q, k, v, TOY, prefix_lengths=lengths)


@pytest.mark.parametrize("pattern", [TOY, LARGE])
@pytest.mark.parametrize("impl", ["structured", "reference"])
def test_autocast_decides_the_dtype(pattern, impl):
    q, k, v = qkv(pattern, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        o = attention(q, k.bfloat16(), v, pattern, impl=impl)
    assert o.dtype == torch.bfloat16
    expected = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), pattern, impl=impl)
    assert torch.equal(o, expected)


def test_checkpoint_and_compile_change_nothing():
    x = torch.stack(qkv(LARGE)).requires_grad_()

    def function(x):
        return attention(*(x * 2).unbind(0), LARGE) * 2

    def result(run):
        o = run(x)
        return o, torch.autograd.grad(o.square().sum(), x)[0]

    expected = result(function)
    torch.testing.assert_close(result(lambda x: checkpoint(function, x, use_reentrant=False)), expected)
    torch.testing.assert_close(result(torch.compile(function, backend="aot_eager")), expected)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context):
    q, k, v = (x.requires_grad_() for x in qkv(LARGE))
    with context():
        o = attention(q, k, v, LARGE)
    assert not o.requires_grad
    torch.testing.assert_close(o, attention(q, k, v, LARGE).detach())


def test_what_is_no_tensor_is_named():
    q, k, v = qkv(TOY)
    with pytest.raises(ValueError, match=r"prefix_lengths is \[3, 2\], expected a tensor"):
        attention(q, k, v, TOY, prefix_lengths=[3, 2])


class OnAGpu:
    """As much of a CUDA tensor as the choice of an implementation looks at."""

    is_cuda, device = True, torch.device("cuda", 0)

    def __init__(self, dtype: torch.dtype, head_dim: int) -> None:
        self.dtype, self.shape = dtype, (1, 1, 9, head_dim)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "capability", "platform", "suits"),
    [
        (torch.bfloat16, 64, (9, 0), "linux", True),
        (torch.float32, 256, (8, 0), "linux", True),
        (torch.float64, 64, (9, 0), "linux", False),
        (torch.float16, 257, (9, 0), "linux", False),
        (torch.float16, 64, (7, 5), "linux", False),
        (torch.float16, 64, (9, 0), "win32", False),
    ],
)
def test_auto_chooses_by_device_dtype_and_head_dim(monkeypatch, dtype, head_dim, capability, platform, suits):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("sys.platform", platform)
    assert suits_triton(OnAGpu(dtype, head_dim)) == suits
    assert not suits_triton(torch.zeros(1, 1, 9, 64))
    if suits or capability < (8, 0):
        assert is_capable(OnAGpu.device) == suits
