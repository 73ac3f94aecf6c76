"""The contract, for every quantizer there is."""

import copy

import pytest
import torch

from vqvae.quantizer import Quantizer
from vqvae.quantizers import build_quantizer

CODES = 32


@pytest.fixture
def quantizer(quantizer_settings) -> Quantizer:
    """Each in turn, after a few batches."""
    torch.manual_seed(0)
    quantizer = build_quantizer(quantizer_settings["quantizer"], CODES, 48, quantizer_settings["quantizer_options"])
    for step in range(5):
        quantizer.anneal(step)
        quantizer(vectors(quantizer, seed=100 + step))
    return quantizer.eval()


def vectors(quantizer: Quantizer, seed: int = 0) -> torch.Tensor:
    return torch.randn(3, quantizer.in_channels, 4, 5, generator=torch.Generator().manual_seed(seed))


def test_shapes_and_types(quantizer):
    z_e = vectors(quantizer)
    for quantized in (quantizer.train()(z_e), quantizer.eval()(z_e), quantizer.relax(z_e)):
        assert quantized.z_q.shape == (3, quantizer.out_channels, 4, 5)
        assert quantized.indices.shape == (3, 4, 5)
        assert quantized.indices.dtype == torch.int64
        assert quantized.indices.min() >= 0
        assert quantized.indices.max() < CODES
        assert quantized.loss.shape == ()
        assert quantized.parts or quantized.loss == 0
        assert not any(part.requires_grad for part in quantized.parts.values())


def test_eval_mode_gives_the_hard_codes(quantizer):
    z_e = vectors(quantizer)
    quantized = quantizer(z_e)
    assert torch.equal(quantized.indices, quantizer.hard_indices(z_e))
    assert torch.equal(quantized.z_q, quantizer.indices_to_codes(quantized.indices))


def test_codes_come_back(quantizer):
    indices = torch.arange(CODES).view(2, 4, 4)
    codes = quantizer.indices_to_codes(indices)
    assert codes.shape == (2, quantizer.out_channels, 4, 4)
    assert torch.equal(codes[1, :, 2, 3], quantizer.indices_to_codes(indices[1:, 2:3, 3:])[0, :, 0, 0])
    assert len({tuple(code.tolist()) for code in codes.permute(0, 2, 3, 1).reshape(CODES, -1)}) == CODES


@pytest.mark.parametrize("training", [True, False])
def test_only_training_changes_state(quantizer, training):
    quantizer.train(training)
    before = copy.deepcopy(quantizer.state_dict())
    z_e = vectors(quantizer) + 3
    quantizer.hard_indices(z_e)
    quantizer.harden(quantizer.relax(z_e))
    if not training:
        quantizer(z_e)
    assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())


def test_indices_do_not_depend_on_the_mode_or_the_batch(quantizer):
    z_e = vectors(quantizer)
    indices = quantizer.hard_indices(z_e)
    assert torch.equal(quantizer.train().hard_indices(z_e), indices)
    assert torch.equal(quantizer.hard_indices(z_e[1:2] + 0), indices[1:2])


def test_gradients_reach_the_encoder(quantizer):
    z_e = vectors(quantizer).requires_grad_()
    for quantized in (quantizer.train()(z_e), quantizer.relax(z_e)):
        (gradient,) = torch.autograd.grad(((quantized.z_q - 0.1) ** 2).sum() + quantized.loss, z_e)
        assert gradient.isfinite().all()
        assert (gradient.flatten(2).abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("train", [True, False])
def test_channels_last_changes_nothing(quantizer, train):
    quantizer.train(train)
    z_e = vectors(quantizer)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        results.append(copy.deepcopy(quantizer)(z_e.to(memory_format=layout)))
    assert torch.equal(results[0].indices, results[1].indices)
    torch.testing.assert_close(results[0].z_q, results[1].z_q)
    torch.testing.assert_close(results[0].loss, results[1].loss)


def test_bf16_autocast_computes_in_float32(quantizer):
    """Vectors that a convolution under autocast hands over; in bf16 the nearest of many codes would tie."""
    z_e = vectors(quantizer).bfloat16().to(memory_format=torch.channels_last)
    expected = quantizer(z_e.float())
    with torch.autocast("cpu", torch.bfloat16):
        quantized = quantizer(z_e)
        assert torch.equal(quantizer.hard_indices(z_e), expected.indices)
    assert torch.equal(quantized.indices, expected.indices)
    assert quantized.z_q.dtype == quantized.loss.dtype == torch.float32
    torch.testing.assert_close(quantized.loss, expected.loss)
    torch.testing.assert_close(quantized.parts, expected.parts)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_indices_after_a_convolution(quantizer, layout):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(7, quantizer.in_channels, 1).to(memory_format=layout)
    torch.nn.init.normal_(conv.weight)
    features = torch.randn(3, 7, 4, 5).to(memory_format=layout)
    indices = quantizer.indices_after(features, conv)
    assert torch.equal(indices, quantizer.hard_indices(conv(features)))
    assert len(indices.unique()) > 10


def test_indices_after_a_convolution_under_autocast_are_of_float32():
    """In bf16, many of the largest logits tie, and the first is hardly ever the right one."""
    torch.manual_seed(0)
    conv, features = torch.nn.Conv2d(64, 4096, 1), torch.randn(1, 64, 16, 16).bfloat16()
    quantizer = build_quantizer("gumbel", 4096, 192, {})
    exact = conv.double()(features.double()).argmax(dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.indices_after(features, conv.float()), exact)
        assert not torch.equal(quantizer.hard_indices(conv(features)), exact)


def test_the_papers_logits_under_autocast():
    """hard_indices of a 1x1 convolution's bf16, channels-last output: the argmax of exactly these numbers."""
    torch.manual_seed(0)
    x = torch.randn(1, 16, 8, 8).to(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(16, 8192, 1).to(memory_format=torch.channels_last)
    quantizer = build_quantizer("gumbel", 8192, 192, {})
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(x)
        indices = quantizer.hard_indices(logits)
    assert logits.dtype == torch.bfloat16
    largest = logits.float().amax(dim=1)
    assert torch.equal(logits.float().gather(1, indices[:, None])[:, 0], largest)
    assert torch.equal(quantizer.indices_to_codes(indices).argmax(dim=1), indices)
    assert torch.equal(quantizer.relax(logits).indices, indices)


def test_many_codes_are_in_use_here(quantizer):
    """Else the tests above would prove little."""
    assert len(quantizer.hard_indices(vectors(quantizer)).unique()) > CODES / 2
