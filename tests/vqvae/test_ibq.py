import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vqvae.ibq import IBQ


def ibq(codebook_size: int = 24, dim: int = 6, **options) -> IBQ:
    torch.manual_seed(0)
    return IBQ(codebook_size, 48, codebook_dim=dim, **options)


def batch(dim: int = 6) -> torch.Tensor:
    return torch.randn(3, dim, 4, 5, generator=torch.Generator().manual_seed(0))


def entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p * (p + 1e-300).log()).sum(dim=-1)


def by_the_paper(z_e, codebook, beta, weight, temperature) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """The quantizer and its entropy penalty, over all codes: rows z_e (N, D), codebook (K, D) -> z_q, loss, parts."""
    logits = z_e @ codebook.t()
    soft = logits.softmax(dim=1)
    hard = torch.nn.functional.one_hot(logits.argmax(dim=1), len(codebook)).double()
    z_q = (hard - soft.detach() + soft) @ codebook
    code = hard @ codebook
    quantization = (z_q - z_e).square().mean() + (code.detach() - z_e).square().mean()
    quantization = quantization + beta * (code - z_e.detach()).square().mean()
    q = (logits / temperature).softmax(dim=1)
    parts = {"sample_entropy": entropy(q).mean(), "batch_entropy": entropy(q.mean(dim=0)), "quantization": quantization}
    return z_q, quantization + weight * (parts["sample_entropy"] - parts["batch_entropy"]), parts


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize(("codebook_size", "dim"), [(24, 6), (7, 1), (50, 16)])
def test_equals_the_papers_formulas(codebook_size, dim, temperature):
    """In float64 over all codes: codes, loss and the gradients to the vectors and to each code."""
    quantizer = ibq(codebook_size, dim, beta=0.4, entropy=0.3, temperature=temperature)
    x, y = batch(dim).requires_grad_(), batch(dim).double().requires_grad_()
    codebook = quantizer.codebook.detach().double().requires_grad_()
    quantized = quantizer(x)
    z_q, loss, parts = by_the_paper(y.movedim(1, -1).flatten(0, 2), codebook, 0.4, 0.3, temperature)
    upstream = batch(dim).flip(0)
    torch.testing.assert_close(quantized.z_q.movedim(1, -1).flatten(0, 2).double(), z_q, atol=1e-6, rtol=1e-5)
    for name, value in parts.items():
        assert quantized.parts[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5), name
    torch.testing.assert_close(quantized.loss.double(), loss, atol=1e-5, rtol=1e-4)
    rows = upstream.movedim(1, -1).flatten(0, 2).double()
    ours = torch.autograd.grad((quantized.z_q * upstream).sum() + quantized.loss, (x, quantizer.codebook))
    papers = torch.autograd.grad((z_q * rows).sum() + loss, (y, codebook))
    for left, right in zip(ours, papers, strict=True):
        torch.testing.assert_close(left.double(), right, atol=1e-4, rtol=1e-3)


def test_gradient_is_the_softmaxs():
    """With respect to the vector, that of the mean code under the softmax, by differences, with the codes held."""
    quantizer, step = ibq(), 1e-5
    codes = quantizer.codebook.detach().double()
    x, upstream = batch()[:1, :, :1, :1].requires_grad_(), torch.linspace(-1, 1, 6)
    (gradient,) = torch.autograd.grad((quantizer(x).z_q.flatten() * upstream).sum(), x)
    for d in range(6):
        shift = step * torch.eye(6, dtype=torch.float64)[d]
        above, below = (((x.detach().flatten() + s) @ codes.t()).softmax(dim=0) @ codes for s in (shift, -shift))
        difference = ((above - below) @ upstream.double() / (2 * step)).item()
        assert gradient.flatten()[d].item() == pytest.approx(difference, rel=1e-3, abs=1e-6)


def test_all_codes_learn_from_one_vector():
    """Through z_q alone; the entropies and the loss aside."""
    quantizer = ibq()
    quantized = quantizer(batch()[:1, :, :1, :1])
    (gradient,) = torch.autograd.grad(quantized.z_q.square().sum(), quantizer.codebook)
    assert (gradient.norm(dim=1) > 0).all()
    chosen = quantized.indices.item()
    assert gradient.norm(dim=1).argmax() == chosen


def test_indices_are_of_the_largest_product():
    quantizer = ibq(300, 8)
    x = batch(8)
    products = torch.einsum("bdhw,kd->bkhw", x.double(), quantizer.codebook.detach().double())
    quantized = quantizer(x)
    assert torch.equal(quantized.indices, products.argmax(dim=1))
    assert torch.equal(quantizer.hard_indices(x), products.argmax(dim=1))
    torch.testing.assert_close(quantized.logits.double(), products, atol=1e-6, rtol=1e-4)
    assert len(quantized.indices.unique()) > 20


def test_hard_codes_need_no_value_for_each_vector_and_code():
    """Training does. (What is inside the operator: tests/kernels/test_nearest.py.)"""
    quantizer, sizes = ibq(5000), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(each.numel() for each in [result] if isinstance(each, torch.Tensor))
            return result

    conv = torch.nn.Conv2d(3, 6, 1)
    with Watch(), torch.no_grad():
        quantizer.indices_after(batch(3), conv)
    assert max(sizes) < 60 * 5000
    with Watch(), torch.no_grad():
        quantizer(batch())
    assert max(sizes) >= 60 * 5000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "codebook_dim is 0, expected a whole number of at least 1"),
        ({"dim": 2.5}, r"codebook_dim is 2.5, expected a whole number"),
        ({"beta": -1}, "beta is -1, expected at least 0"),
        ({"entropy": math.nan}, "entropy is nan, expected at least 0"),
        ({"temperature": 0}, "temperature is 0, expected more than 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ibq(**options)
