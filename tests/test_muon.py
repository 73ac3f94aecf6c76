import pytest
import torch
from torch import nn

import muon
from muon import Muon, orthogonalise


@pytest.mark.parametrize("max_stacked", [2**24, 1, 2 * 24 * 8])
def test_equals_pytorchs_muon(monkeypatch, max_stacked):
    """Wide, tall and square matrices, some of one shape, one without a gradient; stacks of all, of one and of two."""
    monkeypatch.setattr(muon, "MAX_STACKED", max_stacked)
    generator = torch.Generator().manual_seed(0)
    shapes = [(24, 8), (8, 24), (24, 8), (8, 8), (24, 8), (8, 24), (5, 3)]
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [nn.Parameter(weight.detach().clone()) for weight in ours]
    one = Muon([{"params": ours}], lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for left, right in zip(ours[:-1], theirs[:-1], strict=True):
            left.grad = torch.randn(left.shape, generator=generator)
            right.grad = left.grad.clone()
        one.step()
        other.step()
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, atol=2e-3, rtol=0)  # of updates of 3 * 0.02 * 0.2 * sqrt(24) = 0.06


def test_a_convolution_is_a_matrix_with_a_row_for_each_channel_that_comes_out():
    generator = torch.Generator().manual_seed(0)
    kernels = [
        torch.randn(24, 8, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last),
        torch.randn(24, 8, 3, 3, generator=generator),
        torch.randn(8, 24, 1, 1, generator=generator),
    ]
    one = [nn.Parameter(kernel.clone()) for kernel in kernels]
    other = [nn.Parameter(kernel.flatten(1)) for kernel in kernels]
    by_kernel, by_matrix = Muon([{"params": one}], lr=0.02), Muon([{"params": other}], lr=0.02)
    for _ in range(2):
        for kernel, matrix in zip(one, other, strict=True):
            gradient = torch.randn(kernel.shape, generator=generator)
            kernel.grad = gradient.contiguous(memory_format=torch.channels_last)
            matrix.grad = gradient.flatten(1)
        by_kernel.step()
        by_matrix.step()
    for kernel, matrix in zip(one, other, strict=True):
        torch.testing.assert_close(kernel.flatten(1), matrix, atol=0, rtol=0)
    assert one[0].is_contiguous(memory_format=torch.channels_last)


def test_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match=r"shape \(3,\), expected 2 dimensions or more"):
        Muon([{"params": [nn.Parameter(torch.ones(3))]}])


def test_orthogonalises():
    matrices = torch.randn(3, 20, 12, generator=torch.Generator().manual_seed(0))
    for x in (matrices, matrices.mT):
        nearest, _, ways = torch.linalg.svd(x, full_matrices=False)
        found = orthogonalise(x).double()
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6 and values.max() < 1.3
        alignment = ((nearest @ ways).double() * found).sum(dim=(1, 2)) / found.norm(dim=(1, 2)) / 12**0.5
        assert alignment.min() > 0.97
