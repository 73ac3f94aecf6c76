import math

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from vector_quantize_pytorch import FSQ as TheirFSQ

from vqvae.fsq import FSQ, MAX_LEVELS, PAPERS_LEVELS

LEVELS = pytest.mark.parametrize("levels", [[8, 6, 5], [7, 5, 5, 5, 5], [4, 3], [16], [5, 4, 3, 6]])


def fsq(levels: list[int]) -> FSQ:
    return FSQ(math.prod(levels), 48, levels=levels)


def batch(dim: int, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(3, dim, 7, 5, generator=torch.Generator().manual_seed(0)) * scale


@LEVELS
def test_equals_the_librarys(levels):
    """Codes, indices and gradients."""
    ours, theirs = fsq(levels), TheirFSQ(levels)
    x, y, upstream = batch(len(levels)).requires_grad_(), batch(len(levels)).requires_grad_(), batch(len(levels), 1.0)
    quantized = ours(x)
    codes, indices = theirs(y)
    assert torch.equal(quantized.indices, indices.long())
    assert len(indices.unique()) > 10
    torch.testing.assert_close(quantized.z_q, codes)
    torch.testing.assert_close(
        *(torch.autograd.grad(z_q, z, upstream)[0] for z_q, z in ((quantized.z_q, x), (codes, y)))
    )
    every = torch.arange(math.prod(levels)).view(1, 1, -1)
    torch.testing.assert_close(ours.indices_to_codes(every), theirs.indices_to_codes(every), atol=0, rtol=0)


@LEVELS
def test_every_index_comes_back(levels):
    """From a vector that lies at the middle of its code."""
    quantizer, every = fsq(levels), torch.arange(math.prod(levels)).view(1, 1, -1)
    codes = quantizer.indices_to_codes(every)
    z_e = torch.zeros_like(codes)
    for channel, n in enumerate(levels):
        offset = 0.0 if n % 2 else 0.5
        half_range = (n - 1) * 1.001 / 2
        at = np.arctanh((codes[0, channel].double().numpy() * (n // 2) + offset) / half_range)
        z_e[0, channel] = torch.tensor(at - np.arctanh(offset / half_range))
    assert torch.equal(quantizer.hard_indices(z_e), every)
    quantized = quantizer(z_e)
    torch.testing.assert_close(quantized.z_q, codes, atol=1e-6, rtol=0)
    assert torch.equal(quantized.indices, every)


def test_codes_by_hand():
    """The first channel counts fastest; four levels are -1, -1/2, 0 and 1/2."""
    codes = fsq([3, 4]).indices_to_codes(torch.arange(12).view(1, 3, 4))[0].flatten(1).t().tolist()
    assert codes == [[a, b] for b in (-1.0, -0.5, 0.0, 0.5) for a in (-1.0, 0.0, 1.0)]


def test_gradient_is_the_bounds():
    """By differences of the bound, as if nothing had been rounded."""
    quantizer, step = fsq([8, 5]), 1e-2
    z_e, upstream = batch(2, 1.0).requires_grad_(), batch(2)
    (gradient,) = torch.autograd.grad(quantizer(z_e).z_q, z_e, upstream)
    slope = (quantizer.bound(z_e + step) - quantizer.bound(z_e - step)) / (2 * step)
    expected = upstream * slope / torch.tensor([4.0, 2.0])[:, None, None]
    torch.testing.assert_close(gradient, expected.detach(), atol=2e-3, rtol=1e-2)
    assert gradient.abs().amax() > 0.5


def test_zero_is_a_code_and_far_vectors_are_the_outermost():
    levels = [8, 5, MAX_LEVELS, MAX_LEVELS - 1]
    quantizer = fsq(levels)
    assert (quantizer.bound(torch.zeros(1, 4, 1, 1)) == 0).all()
    for sign, expected in ((-1, [-1, -1, -1, -1]), (1, [3 / 4, 1, 1 - 2 / MAX_LEVELS, 1])):
        far = torch.full((1, 4, 1, 1), 100.0 * sign)
        assert quantizer(far).z_q.flatten().tolist() == pytest.approx(expected)
        assert quantizer.hard_indices(far).item() == (0 if sign < 0 else math.prod(levels) - 1)


def test_an_average_of_weights_leaves_the_levels_alone():
    """The callback averages buffers too; in float32, 0.9 of 7 and 0.1 of 7 are less than 7."""
    quantizer, z_e = fsq([7, 6, 3]), batch(3)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), quantizer)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        average.update_parameters(model)
    averaged = average.module[1]
    assert torch.equal(averaged.hard_indices(z_e), quantizer.hard_indices(z_e))
    every = torch.arange(126).view(1, 1, -1)
    assert torch.equal(averaged.indices_to_codes(every), quantizer.indices_to_codes(every))


def test_no_loss():
    quantized = fsq([8, 5])(batch(2).requires_grad_())
    assert quantized.loss == 0
    assert not quantized.parts


@pytest.mark.parametrize(
    ("codebook_size", "levels"),
    [(4, (4,)), (8, (8,)), (16, (4, 4)), (32, (8, 4)), (512, (8, 8, 8)), (1024, (8, 8, 4, 4)), (8192, (8, 8, 8, 4, 4))],
)
def test_the_usual_levels_of_powers_of_two(codebook_size, levels):
    assert FSQ(codebook_size, 192).levels == levels


@pytest.mark.parametrize("levels", PAPERS_LEVELS)
def test_the_papers_levels_by_size(levels):
    quantizer = FSQ(math.prod(levels), 192)
    assert quantizer.levels == levels
    assert quantizer.in_channels == quantizer.out_channels == len(levels)


@pytest.mark.parametrize(
    ("codebook_size", "levels", "message"),
    [
        (
            300,
            [],
            r"codebook_size is 300 and no levels are given: .* 300, a power of 2, or .*\(240 codes \[8, 6, 5\], 1000",
        ),
        (256, [8, 6, 5], r"levels is \[8, 6, 5\] with product 240, expected the product to be codebook_size, 256"),
        (32, [16, 2], r"levels is \[16, 2\], expected whole numbers from 3 to 1000 \(of 2 levels: lfq or bsq\)"),
        (2002, [1001, 2], r"levels is \[1001, 2\], expected whole numbers from 3"),
        (32, [8.0, 4.0], r"levels is \[8.0, 4.0\], expected whole numbers"),
    ],
)
def test_impossible_levels_are_refused(codebook_size, levels, message):
    with pytest.raises(ValueError, match=message):
        FSQ(codebook_size, 48, levels=levels)
