"""Entropies of small distributions, and of a batch that two processes share."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vqvae.entropies import batch_entropy_of_bits, batch_mean, entropy, entropy_of_bits
from vqvae.quantizer import Quantizer
from vqvae.quantizers import build_quantizer

KINDS = ("lfq", "bsq", "ibq")


def test_entropy_of_distributions():
    p = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    torch.testing.assert_close(entropy(p), torch.tensor([0.0, math.log(2), math.log(4)]))


def test_a_probability_of_zero_has_a_finite_gradient():
    p = torch.tensor([1.0, 0.0], requires_grad=True)
    assert torch.autograd.grad(entropy(p), p)[0].isfinite().all()


def test_entropy_of_bits_by_the_formula():
    logits = torch.linspace(-30, 30, 121, dtype=torch.float64, requires_grad=True)
    p, rest = logits.sigmoid(), (-logits).sigmoid()
    expected = -(p * p.log() + rest * rest.log())
    actual = entropy_of_bits(logits.float())
    torch.testing.assert_close(actual.double(), expected, atol=1e-7, rtol=1e-5)
    gradients = [torch.autograd.grad(total.sum(), logits)[0] for total in (actual, expected)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    assert entropy_of_bits(far).tolist() == [0, 0]
    assert torch.autograd.grad(entropy_of_bits(far).sum(), far)[0].isfinite().all()


def test_sure_bits_leave_codes_of_probability_zero_and_finite_gradients():
    logits = (torch.randn(50, 9, generator=torch.Generator().manual_seed(0)) * 1e4).requires_grad_()
    total = batch_entropy_of_bits(logits, 18, all_ranks=False)
    _, counts = (logits > 0).unique(dim=0, return_counts=True)
    assert total.item() == pytest.approx(entropy(counts / 50).item(), rel=1e-5)
    assert torch.autograd.grad(total, logits)[0].isfinite().all()


def test_one_process_has_its_own_mean():
    sums = torch.tensor([3.0, 5.0])
    for all_ranks in (True, False):
        assert batch_mean(sums, 4, all_ranks).tolist() == [0.75, 1.25]


# ---- two processes


def quantizer(kind: str) -> Quantizer:
    torch.manual_seed(0)
    options = {"codebook_dim": 3} if kind == "ibq" else {"group_bits": 2}
    return build_quantizer(kind, 8, 48, options | {"temperature": 1.0, "entropy": 1.0})


def whole_batch() -> torch.Tensor:
    """(6, 3, 2, 2); the halves have little in common."""
    z_e = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    z_e[:3] += 1
    return z_e


def results(kind: str, z_e: torch.Tensor) -> dict[str, torch.Tensor]:
    module, z_e = quantizer(kind), z_e.clone().requires_grad_()
    quantized = module(z_e)
    (gradient,) = torch.autograd.grad(quantized.loss, z_e)
    in_use = module.eval()(z_e).parts["batch_entropy"]
    return {"training": quantized.parts["batch_entropy"], "gradient": gradient, "in_use": in_use}


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {kind: results(kind, whole_batch().chunk(2)[rank]) for kind in KINDS}
    found["mean"] = batch_mean(torch.tensor([3.0, 5.0 + rank]), 4 + rank, all_ranks=True)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_in_training_the_batch_is_that_of_both(ranks, kind):
    """DDP averages the processes' losses, and with them their gradients."""
    expected = results(kind, whole_batch())
    for rank in ranks:
        torch.testing.assert_close(rank[kind]["training"], expected["training"])
    gradient = torch.cat([rank[kind]["gradient"] for rank in ranks]) / 2
    torch.testing.assert_close(gradient, expected["gradient"], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_in_use_each_has_its_own(ranks, kind):
    """Processes may have different numbers of batches to validate."""
    for rank, half in zip(ranks, whole_batch().chunk(2), strict=True):
        torch.testing.assert_close(rank[kind]["in_use"], results(kind, half)["training"])
        assert (rank[kind]["in_use"] - rank[kind]["training"]).abs() > 1e-3


def test_batches_may_differ_in_size(ranks):
    for rank in ranks:
        torch.testing.assert_close(rank["mean"], torch.tensor([6 / 9, 11 / 9]))
