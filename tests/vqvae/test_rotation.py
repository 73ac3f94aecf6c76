"""The rotation trick against the rotation in the plane of a vector and its code, in float64."""

import torch

from vqvae.rotation import rotate_to


def rotation(e: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """(D, D): from the direction of e (D,) into that of q by their angle; all that is at right angles to both stays."""
    e, q = e / e.norm(), q / q.norm()
    across = q - (q @ e) * e
    sine, cosine = across.norm(), q @ e
    across = across / sine
    turn = sine * (torch.outer(across, e) - torch.outer(e, across))
    return torch.eye(len(e), dtype=e.dtype) + turn + (cosine - 1) * (torch.outer(e, e) + torch.outer(across, across))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_gradient_is_that_of_the_rotation():
    z_e, codes, upstream = (random(2, 5, 3, 4, seed=seed) for seed in range(3))
    z_e.requires_grad_()
    z_q = rotate_to(z_e, codes)
    torch.testing.assert_close(z_q, codes)
    (gradient,) = torch.autograd.grad(z_q, z_e, upstream)
    for b, i, j in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        e, q = z_e.detach()[b, :, i, j], codes[b, :, i, j]
        matrix = q.norm() / e.norm() * rotation(e, q)
        torch.testing.assert_close(matrix @ e, q)
        torch.testing.assert_close(gradient[b, :, i, j], matrix.T @ upstream[b, :, i, j])


def test_codes_get_no_gradient():
    codes = random(1, 4, 2, 2).requires_grad_()
    z_q = rotate_to(random(1, 4, 2, 2, seed=1).requires_grad_(), codes)
    assert torch.autograd.grad(z_q.sum(), codes, allow_unused=True) == (None,)


def test_a_vector_of_no_length_gets_no_gradient_and_none_that_is_opposite_a_wild_one():
    codes = random(1, 3, 2, 1)
    z_e = (-codes * torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)).requires_grad_()
    z_q = rotate_to(z_e, codes)
    torch.testing.assert_close(z_q, codes)
    (gradient,) = torch.autograd.grad(z_q.sum(), z_e)
    assert gradient[:, :, 0].abs().max() == 0
    assert gradient.norm() < 4
