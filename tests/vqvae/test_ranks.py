"""Two processes learn the codebook that one process with both halves of the batch would."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vqvae.ranks import from_first_rank, sum_over_ranks, world_size
from vqvae.vector_quantizer import VectorQuantizer

STEPS = 4


def whole_batch(step: int) -> torch.Tensor:
    """(4, 4, 3, 3); the halves have little in common."""
    z_e = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(step))
    z_e[:2] += 2
    return z_e


def quantizer(restart_below: float) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(16, 48, codebook_dim=4, decay=0.7, restart_below=restart_below)


def learn(quantizer: VectorQuantizer, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """The gradients of each batch; the codebook is given, not started from the first batch."""
    quantizer.counts.fill_(1.0)
    gradients = []
    for step, z_e in enumerate(batches):
        z_e = z_e.clone().requires_grad_()
        torch.manual_seed(100 * (dist.get_rank() if dist.is_initialized() else 0) + step)
        quantized = quantizer(z_e)
        (quantized.z_q.square() * torch.linspace(0, 1, 4)[:, None, None]).mean().add(quantized.loss).backward()
        gradients.append(z_e.grad)
    return gradients


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    halves = [whole_batch(step).chunk(2)[rank] for step in range(STEPS)]
    results = {"gradients": learn(never := quantizer(0.0), halves), "never": never.state_dict()}
    learn(often := quantizer(0.9), halves)
    started = quantizer(0.5)
    torch.manual_seed(rank)
    started(halves[0])
    results |= {"often": often.state_dict(), "started": started.state_dict()}
    results |= {"world_size": world_size(), "first": from_first_rank(torch.tensor([rank + 5.0]))}
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", ["never", "often", "started"])
def test_state_is_the_same_in_both(ranks, case):
    """Without restarts, with restarts at each step, and started from the first batch; their random numbers differ."""
    assert ranks[0][case].keys() == {"sums", "counts", "standardise.running_mean", "standardise.running_var"}
    for name, tensor in ranks[0][case].items():
        assert torch.equal(tensor, ranks[1][case][name]), name


def test_both_halves_teach(ranks):
    one = quantizer(0.0)
    learn(one, [whole_batch(step) for step in range(STEPS)])
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(ranks[0]["never"][name], tensor, atol=1e-5, rtol=1e-5, msg=name)


def test_gradients_are_those_of_the_whole_batch(ranks):
    """DDP averages the processes' losses, each a mean over half of the batch."""
    whole = learn(quantizer(0.0), [whole_batch(step) for step in range(STEPS)])
    for step in range(STEPS):
        halves = torch.cat([rank["gradients"][step] for rank in ranks]) / 2
        torch.testing.assert_close(halves, whole[step], atol=1e-6, rtol=1e-4)


def test_restarts_and_starts_did_happen(ranks):
    assert (ranks[0]["often"]["counts"] == 1.0).any()
    assert not torch.equal(ranks[0]["started"]["sums"], quantizer(0.5).sums)


def test_sizes_and_sources(ranks):
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    assert [rank["first"].item() for rank in ranks] == [5.0, 5.0]


def test_one_process_has_nothing_to_share():
    tensor = torch.randn(3)
    assert world_size() == 1
    assert sum_over_ranks(tensor) is tensor
    assert from_first_rank(tensor) is tensor
