"""LFQ and BSQ against vector-quantize-pytorch's, and against the papers' formulas over all codes in float64."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vector_quantize_pytorch import LFQ as TheirLFQ

from vqvae.lfq import BSQ, LFQ

BOTH = pytest.mark.parametrize("cls", [LFQ, BSQ])


def batch(bits: int, scale: float = 0.5) -> torch.Tensor:
    return torch.randn(3, bits, 4, 5, generator=torch.Generator().manual_seed(bits)) * scale


def all_codes(bits: int, corner: float) -> torch.Tensor:
    """(K, D) float64 in the order of their indices, the first number the most significant bit."""
    rows = [[2.0 * (k >> (bits - 1 - d) & 1) - 1 for d in range(bits)] for k in range(2**bits)]
    return torch.tensor(rows, dtype=torch.float64) * corner


def entropy(p: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(p.clamp(min=1e-300)).sum(dim=-1)


def by_brute_force(z_e: torch.Tensor, cls: type[LFQ], temperature: float) -> dict[str, torch.Tensor]:
    """z_e (B, D, h, w) float64 -> both entropies, from the N x K distances, and the commitment."""
    z = z_e.movedim(1, -1).flatten(0, 2)
    z = z / z.norm(dim=1, keepdim=True) if cls is BSQ else z
    corner = z.shape[1] ** -0.5 if cls is BSQ else 1.0
    distances = torch.cdist(z, all_codes(z.shape[1], corner), compute_mode="donot_use_mm_for_euclid_dist").square()
    q = (-distances / (temperature * corner**2)).softmax(dim=1)
    return {
        "sample_entropy": entropy(q).mean(),
        "batch_entropy": entropy(q.mean(dim=0)),
        "commitment": distances.amin(dim=1).mean() / z.shape[1],
        "indices": distances.argmin(dim=1).view(z_e[:, 0].shape),
    }


@BOTH
@pytest.mark.parametrize("bits", [1, 2, 5])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_the_librarys(cls, bits, temperature):
    """At temperatures that give no code less than the library's least probability."""
    weights = {"entropy": 0.3, "diversity": 0.7, "commitment": 0.2}
    ours = cls(2**bits, 48, temperature=temperature, **weights)
    theirs = TheirLFQ(
        dim=bits,
        codebook_size=2**bits,
        entropy_loss_weight=0.3,
        diversity_gamma=0.7,
        commitment_loss_weight=0.2,
        spherical=cls is BSQ,
    )
    x, y, upstream = batch(bits).requires_grad_(), batch(bits).requires_grad_(), batch(bits, 1.0).flip(0)
    quantized = ours(x)
    inverse = (bits if cls is BSQ else 1) / temperature  # theirs is of plain distances, whatever the corner
    (codes, indices, loss), parts = theirs(y, inv_temperature=inverse, return_loss_breakdown=True)
    assert torch.equal(quantized.indices, indices.long())
    torch.testing.assert_close(quantized.z_q, codes)
    torch.testing.assert_close(quantized.loss, loss, atol=1e-5, rtol=1e-4)
    expected = dict(zip(("sample_entropy", "batch_entropy", "commitment"), parts, strict=True))
    torch.testing.assert_close(quantized.parts, expected, atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad((quantized.z_q * upstream).sum() + quantized.loss, x)
    torch.testing.assert_close(
        gradient, torch.autograd.grad((codes * upstream).sum() + loss, y)[0], atol=1e-5, rtol=1e-4
    )
    every = torch.arange(2**bits).view(1, 1, -1)
    torch.testing.assert_close(ours.indices_to_codes(every), theirs.indices_to_codes(every))


@BOTH
@pytest.mark.parametrize("bits", [1, 4, 7])
@pytest.mark.parametrize("temperature", [0.01, 0.35, 5.0])
def test_loss_over_all_codes(cls, bits, temperature):
    quantizer = cls(2**bits, 48, temperature=temperature, entropy=0.3, diversity=0.7, commitment=0.2)
    x, y = batch(bits).requires_grad_(), batch(bits).double().requires_grad_()
    quantized, expected = quantizer(x), by_brute_force(y, cls, temperature)
    assert torch.equal(quantized.indices, expected.pop("indices"))
    assert quantized.parts.keys() == expected.keys()
    for name, value in expected.items():
        assert quantized.parts[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5), name
    loss = 0.3 * (expected["sample_entropy"] - 0.7 * expected["batch_entropy"]) + 0.2 * expected["commitment"]
    torch.testing.assert_close(quantized.loss.double(), loss, atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(quantized.loss, x)
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(loss, y)[0], atol=1e-5, rtol=1e-3)


@BOTH
def test_entropies_at_their_limits(cls):
    """Each corner once: sure of each and all in use. Vectors near 0: LFQ is sure of none."""
    quantizer = cls(32, 48)
    corners = quantizer.indices_to_codes(torch.arange(32).view(2, 4, 4))
    parts = quantizer(corners * 3).parts
    assert parts["sample_entropy"].item() == pytest.approx(0, abs=1e-2)
    assert parts["batch_entropy"].item() == pytest.approx(math.log(32), rel=1e-5)
    assert quantizer(corners[:1, :, :1, :1]).parts["batch_entropy"].item() < 0.1
    near = quantizer(corners * 1e-4).parts["sample_entropy"].item()
    assert near == pytest.approx(0 if cls is BSQ else math.log(32), abs=1e-2)


def test_groups_of_bits_have_more_entropy_than_they_have_together():
    """The sum of the groups', here of 3, 3 and 1 bits; the last bit repeats the first, which only one group sees."""
    x = batch(7)
    x[:, 6] = x[:, 0]
    grouped = LFQ(128, 48, group_bits=3)(x).parts["batch_entropy"].item()
    parts = [by_brute_force(part.double(), LFQ, 0.35)["batch_entropy"].item() for part in x.split(3, dim=1)]
    assert grouped == pytest.approx(sum(parts), rel=1e-4)
    whole = LFQ(128, 48, group_bits=7)(x).parts["batch_entropy"].item()
    assert whole == pytest.approx(by_brute_force(x.double(), LFQ, 0.35)["batch_entropy"].item(), rel=1e-4)
    assert grouped > whole + 0.1


@BOTH
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e3, 1e20])
def test_far_vectors_and_zeros_have_finite_gradients(cls, scale):
    x = (batch(10) * scale).requires_grad_()
    quantized = cls(1024, 48)(x)
    (gradient,) = torch.autograd.grad(quantized.loss, x)
    assert quantized.loss.isfinite() or scale == 1e20  # the commitment of which is beyond float32
    assert gradient.isfinite().all()


@BOTH
def test_no_value_for_each_vector_and_code(cls):
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(each.numel() for each in [result] if isinstance(each, torch.Tensor))
            return result

    quantizer, x = cls(2**12, 48), batch(12).requires_grad_()
    with Watch():
        quantizer(x).loss.backward()
        quantizer.hard_indices(x)
    assert 2**12 <= max(sizes) <= max(2**12, x[:, 0].numel() * 2**6)


def test_gradient_passes_straight_through():
    x, upstream = batch(6).requires_grad_(), batch(6, 1.0).flip(0)
    (through,) = torch.autograd.grad(LFQ(64, 48)(x).z_q, x, upstream)
    torch.testing.assert_close(through, upstream)
    (through,) = torch.autograd.grad(BSQ(64, 48)(x).z_q, x, upstream)
    length = x.detach().norm(dim=1, keepdim=True)
    u = x.detach() / length
    torch.testing.assert_close(through, (upstream - u * (u * upstream).sum(dim=1, keepdim=True)) / length)


@BOTH
def test_every_index_comes_back(cls):
    quantizer, every = cls(2**9, 48), torch.arange(2**9).view(2, 16, 16)
    codes = quantizer.indices_to_codes(every)
    torch.testing.assert_close(codes.norm(dim=1), torch.full((2, 16, 16), 1.0 if cls is BSQ else 3.0))
    assert torch.equal(quantizer.hard_indices(codes), every)
    assert torch.equal(codes[1, :, 0, 1].sign(), torch.tensor([1.0, -1, -1, -1, -1, -1, -1, -1, 1]))  # 257


@BOTH
@pytest.mark.parametrize(
    ("codebook_size", "options", "message"),
    [
        (48, {}, "codebook_size is 48, expected a power of 2"),
        (32, {"entropy": -0.1}, r"entropy is -0.1, expected at least 0"),
        (32, {"diversity": math.nan}, "diversity is nan, expected at least 0"),
        (32, {"commitment": -1}, "commitment is -1, expected at least 0"),
        (32, {"temperature": 0.0}, r"temperature is 0.0, expected more than 0"),
        (32, {"group_bits": 0}, "group_bits is 0, expected a whole number from 1 to 24"),
        (32, {"group_bits": 2.5}, r"group_bits is 2.5, expected a whole number"),
    ],
)
def test_impossible_options_are_refused(cls, codebook_size, options, message):
    with pytest.raises(ValueError, match=message):
        cls(codebook_size, 48, **options)
