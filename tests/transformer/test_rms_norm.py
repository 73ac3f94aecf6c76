import pytest
import torch
import torch.nn.functional as F

from transformer.config import NORM_EPS
from transformer.rms_norm import RMSNorm


def reference(x, gain):
    """As the paper writes it, differentiated by PyTorch."""
    return x / (x.square().mean(dim=-1, keepdim=True) + NORM_EPS).sqrt() * gain


def inputs(dtype, shape=(2, 5, 12)):
    generator = torch.Generator().manual_seed(0)
    norm = RMSNorm(shape[-1]).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(0.5 + torch.rand(shape[-1], generator=generator))
    x = (3 * torch.randn(shape, generator=generator)).to(dtype)
    x[0, 0] *= 1e-3  # where eps matters
    return norm, x.requires_grad_(), torch.randn(shape, generator=generator).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_its_formula(dtype, tolerance):
    norm, x, dy = inputs(dtype)
    y, expected = norm(x), reference(x, norm.weight)
    torch.testing.assert_close(y, expected, atol=tolerance, rtol=tolerance)
    ours = torch.autograd.grad(y, (x, norm.weight), dy)
    theirs = torch.autograd.grad(expected, (x, norm.weight), dy)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, atol=tolerance, rtol=tolerance)


def test_any_number_of_dimensions_and_strides():
    norm, x, dy = inputs(torch.float64, (2, 5, 12))
    single = x.detach()[0, 1].requires_grad_()
    torch.testing.assert_close(norm(single), reference(single, norm.weight))
    grad = torch.autograd.grad(norm(single).sum(), single)[0]
    torch.testing.assert_close(grad, torch.autograd.grad(reference(single, norm.weight).sum(), single)[0])
    strided = x.detach()[:, ::2].requires_grad_()
    grad = torch.autograd.grad(norm(strided), strided, dy[:, ::2])[0]
    torch.testing.assert_close(grad, torch.autograd.grad(reference(strided, norm.weight), strided, dy[:, ::2])[0])


def test_half_precision_is_summed_in_float32():
    norm, x, dy = inputs(torch.bfloat16, (4, 2048))
    y = norm(x)
    dx, dgain = torch.autograd.grad(y, (x, norm.weight), dy)
    assert y.dtype == dx.dtype == dgain.dtype == torch.bfloat16
    exact_x, exact_gain = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    expected = reference(exact_x, exact_gain)
    for found, exact in zip(
        (y, dx, dgain), (expected, *torch.autograd.grad(expected, (exact_x, exact_gain), dy.double())), strict=True
    ):
        torch.testing.assert_close(found.double(), exact, atol=2e-3, rtol=2**-7)


def test_under_autocast_it_casts_its_result():
    norm, x, dy = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, reference(x, norm.weight).bfloat16())
    dx = torch.autograd.grad(y, x, dy.bfloat16())[0]
    assert dx.dtype == torch.float32
    expected = torch.autograd.grad(reference(x, norm.weight), x, dy.bfloat16().float())[0]
    torch.testing.assert_close(dx, expected, atol=1e-5, rtol=1e-5)


def test_compiled_it_is_pytorchs():
    norm, x, _ = inputs(torch.float32)
    compiled = torch.compile(norm, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), F.rms_norm(x, (12,), norm.weight, NORM_EPS), atol=0, rtol=0)
