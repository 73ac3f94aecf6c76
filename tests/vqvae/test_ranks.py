"""Two processes learn the codebook that one process with both halves of the batch would."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vqvae.ranks import RowsOfAllRanks, from_first_rank, sum_over_ranks, world_size
from vqvae.vector_quantizer import VectorQuantizer

STEPS = 4
PLAIN = {"normalise": False, "standardise": False}
LEARNT = {
    "without restarts": {"restart_below": 0.0},
    "restarts": {"restart_below": 0.9},
    "plain": {"restart_below": 0.9, **PLAIN},
    "gradient": {"restart_below": 0.9, "ema": False},
    "plain gradient": {"restart_below": 0.9, "ema": False, **PLAIN},
}
STARTED = {
    "samples": {},
    "k-means": {"kmeans_steps": 3},
    "plain k-means": {"kmeans_steps": 3, **PLAIN},
    "k-means for gradient": {"kmeans_steps": 3, "ema": False},
}


def whole_batch(step: int) -> torch.Tensor:
    """(4, 4, 3, 3); the halves have little in common."""
    z_e = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(step))
    z_e[:2] += 2
    return z_e


def quantizer(**options) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(16, 48, **{"codebook_dim": 4, "decay": 0.7} | options)


def seed(step: int) -> None:
    """As TokenizerSystem does: of each process its own, of the first that of a single one."""
    torch.manual_seed(100 * (dist.get_rank() if dist.is_initialized() else 0) + step)


def learn(quantizer: VectorQuantizer, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """The gradients of each batch; the codebook is given, not started from the first batch."""
    quantizer.counts.fill_(1.0)
    gradients = []
    for step, z_e in enumerate(batches):
        z_e = z_e.clone().requires_grad_()
        seed(step)
        quantized = quantizer(z_e)
        (quantized.z_q.square() * torch.linspace(0, 1, 4)[:, None, None]).mean().add(quantized.loss).backward()
        gradients.append(z_e.grad)
        with torch.no_grad():  # what DDP and an optimiser do
            for parameter in quantizer.parameters():
                parameter -= 0.5 * sum_over_ranks(parameter.grad) / world_size()
                parameter.grad = None
    return gradients


def start(quantizer: VectorQuantizer, z_e: torch.Tensor) -> None:
    seed(0)
    quantizer(z_e)


def learnt_and_started(batches: list[torch.Tensor]) -> dict:
    """State dicts, and gradients, of every case."""
    results = {}
    for case, options in LEARNT.items():
        gradients = learn(learner := quantizer(**options), batches)
        results[case] = learner.state_dict() | {f"gradient {step}": g for step, g in enumerate(gradients)}
    for case, options in STARTED.items():
        start(starter := quantizer(**options), batches[0])
        results[case] = starter.state_dict()
    return results


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    results = learnt_and_started([whole_batch(step).chunk(2)[rank] for step in range(STEPS)])
    results |= {"world_size": world_size(), "first": from_first_rank(torch.tensor([rank + 5.0]))}
    rows = RowsOfAllRanks(torch.tensor([[0.0, 0.5], [1.0, 1.5], [2.0, 2.5]])[slice(2) if rank == 0 else slice(2, 3)])
    results |= {"n_rows": len(rows), "rows": rows[torch.tensor([2, 0, 2, 1])]}
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def one() -> dict:
    return learnt_and_started([whole_batch(step) for step in range(STEPS)])


@pytest.mark.parametrize("case", [*LEARNT, *STARTED])
def test_state_is_the_same_in_both(ranks, case):
    """To the last bit, though their batches and random numbers differ."""
    for name, tensor in ranks[0][case].items():
        if not name.startswith("gradient"):
            assert torch.equal(tensor, ranks[1][case][name]), name


@pytest.mark.parametrize("case", [*LEARNT, *STARTED])
def test_state_is_that_of_one_process_with_both_halves(ranks, one, case):
    for name, tensor in one[case].items():
        if not name.startswith("gradient"):
            torch.testing.assert_close(ranks[0][case][name], tensor, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("case", LEARNT)
def test_gradients_are_those_of_the_whole_batch(ranks, one, case):
    """DDP averages the processes' losses, each a mean over half of the batch."""
    for step in range(STEPS):
        name = f"gradient {step}"
        halves = torch.cat([rank[case][name] for rank in ranks]) / 2
        torch.testing.assert_close(halves, one[case][name], atol=1e-6, rtol=1e-4)


def test_what_is_compared_did_happen(one):
    """Codes were learnt by both ways, restarted, and started at samples or centres, which differ."""
    begin = quantizer().sums
    for case, options in LEARNT.items():
        assert not torch.allclose(one[case]["sums" if options.get("ema", True) else "embedding"], begin, atol=0.1)
        assert (one[case]["counts"] == 1.0).any() == (case != "without restarts")
    assert not torch.allclose(one["samples"]["sums"], begin, atol=0.1)
    assert not torch.allclose(one["samples"]["sums"], one["k-means"]["sums"], atol=0.1)


def test_sizes_and_sources(ranks):
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    assert [rank["first"].item() for rank in ranks] == [5.0, 5.0]


def test_rows_of_all_in_one_order(ranks):
    """Two of the first process, one of the second."""
    for rank in ranks:
        assert rank["n_rows"] == 3
        assert rank["rows"].tolist() == [[2.0, 2.5], [0.0, 0.5], [2.0, 2.5], [1.0, 1.5]]


def test_one_process_has_nothing_to_share():
    tensor = torch.randn(3, 2)
    assert world_size() == 1
    assert sum_over_ranks(tensor) is tensor
    assert from_first_rank(tensor) is tensor
    rows = RowsOfAllRanks(tensor)
    assert len(rows) == 3
    assert torch.equal(rows[torch.tensor([2, 0])], tensor[[2, 0]])
