"""Two processes, whose weights are spread over both, learn what one with both halves of the batch does."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import Optimizer

from guard import Guard
from muon import orthogonalise, orthogonalise_spread
from transformer.config import PriorConfig
from transformer.model import Prior
from transformer.plan import Run, memory
from transformer.spread import is_spread, spread, whole_prior
from transformer.training import OptimConfig, make_optimizer

STEPS = 4
SIZES = {"preset": "tiny", "text_len": 6, "grid_size": (4, 3), "codebook_size": 13, "text_vocab_size": 11}
SIZES |= {"n_layer": 3, "n_head": 2, "n_embd": 24, "conv_kernel": 3}
CASES: dict[str, dict[str, Any]] = {
    "modern": {},
    "paper": {"block": "paper"},
    "checkpoints": {"checkpoint_activations": True, "attend_pads": False},
    "muon": {"muon_lr": 3e-2},
    "bf16": {"products": torch.bfloat16},
    "bf16, paper, checkpoints": {"products": torch.bfloat16, "block": "paper", "checkpoint_activations": True},
}
MATRICES = [(3, 5, 4), (1, 4, 7), (4, 1, 3)]  # so many, of so many rows and columns


def learn(case: str, share: slice, mesh: dist.DeviceMesh | None) -> dict[str, Tensor]:
    """The losses, the gradients' norms before clipping, and the weights in the end."""
    settings = dict(CASES[case])
    products, muon_lr = settings.pop("products", None), settings.pop("muon_lr", None)
    torch.manual_seed(0)
    prior = Prior(PriorConfig(**SIZES | settings)).train()
    if mesh is not None:
        spread(prior, mesh, products)
        assert is_spread(prior) and all(isinstance(parameter, DTensor) for parameter in prior.parameters())
    optimizer = make_optimizer(prior, OptimConfig(lr=1e-2, muon_lr=muon_lr))
    guard, losses, norms = Guard(), [], []
    for step in range(STEPS + 1):
        random = torch.Generator().manual_seed(step)
        text_tokens = torch.randint(11, (4, 5), generator=random)
        text_tokens[:, 3:] = -1  # as many on both, or the mean of the means is another
        image_tokens = torch.randint(13, (4, 4, 3), generator=random)
        with torch.autocast("cpu", torch.bfloat16, enabled=products is not None):
            loss = prior.loss(text_tokens[share], image_tokens[share]).total
        losses.append(loss.detach())
        before = state_of(prior, optimizer)
        if step == STEPS and share.start != 0:  # of the last device alone
            loss = loss * torch.nan
        guard.loss(loss, {}).backward()
        norms.append(whole(guard.check(optimizer, prior.named_parameters(), 0.3)))
        optimizer.step()
        optimizer.zero_grad()
    assert all(map(torch.equal, before, state_of(prior, optimizer))), "an update that is not finite was not left out"
    losses, norms = losses[:STEPS], norms[:STEPS]
    weights = {name: whole(parameter.detach()) for name, parameter in prior.named_parameters()}
    held = [parameter.to_local().numel() for parameter in prior.parameters() if isinstance(parameter, DTensor)]
    return {"losses": torch.stack(losses), "norms": torch.stack(norms), "held": torch.tensor(sum(held))} | weights


def state_of(prior: Prior, optimizer: Optimizer) -> list[Tensor]:
    """What an update changes."""
    kept = [value for values in optimizer.state.values() for value in values.values()]
    return [whole(tensor.detach()).clone() for tensor in (*prior.parameters(), *kept)]


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def some_matrices(number: int) -> Tensor:
    return torch.randn(MATRICES[number], generator=torch.Generator().manual_seed(number))


def rows_orthogonalised(number: int, mesh: dist.DeviceMesh) -> Tensor:
    """Of each matrix, this device's rows: (B, rows, M)."""
    spread_ones = [distribute_tensor(matrix, mesh, [Shard(0)]) for matrix in some_matrices(number)]
    rows = torch.stack([matrix.to_local() for matrix in spread_ones])
    return orthogonalise_spread(rows, spread_ones[0])


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    results: dict[str, Any] = {case: learn(case, slice(rank, None, 2), mesh) for case in CASES}
    results["rows"] = [rows_orthogonalised(number, mesh) for number in range(len(MATRICES))]
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def one() -> dict[str, dict[str, Tensor]]:
    return {case: learn(case, slice(None), None) for case in CASES}


EXACT = [case for case in CASES if "bf16" not in case]
ROUGH = [case for case in CASES if "bf16" in case]


@pytest.mark.parametrize("case", EXACT)
def test_the_curve_is_that_of_one_process(ranks, one, case):
    losses = torch.stack([rank[case]["losses"] for rank in ranks]).mean(dim=0)
    torch.testing.assert_close(losses, one[case]["losses"], atol=1e-4, rtol=0)
    assert not torch.allclose(ranks[0][case]["losses"], losses, atol=1e-3), "one half is not the whole batch"


@pytest.mark.parametrize("case", EXACT)
def test_norm_and_weights_are_those_of_one_process(ranks, one, case):
    """The norm is over all devices' shares, and above what it is clipped to."""
    assert (one[case]["norms"] > 0.3).all()
    # Muon's bf16 iteration makes a step of the last bit of a gradient.
    tolerance = 5e-3 if case == "muon" else 1e-4
    for name in one[case].keys() - {"losses", "held"}:
        torch.testing.assert_close(ranks[0][case][name], one[case][name], atol=tolerance, rtol=1e-3, msg=name)


@pytest.mark.parametrize("case", ROUGH)
def test_in_bf16_it_is_near(ranks, one, case):
    losses = torch.stack([rank[case]["losses"] for rank in ranks]).mean(dim=0)
    torch.testing.assert_close(losses, one[case]["losses"], atol=2e-3, rtol=0)
    torch.testing.assert_close(ranks[0][case]["norms"], one[case]["norms"], atol=0, rtol=0.02)


@pytest.mark.parametrize("case", CASES)
def test_both_devices_end_with_the_same_weights(ranks, case):
    for name in ranks[0][case].keys() - {"losses", "held"}:
        assert torch.equal(ranks[0][case][name], ranks[1][case][name]), name


def test_the_first_device_holds_what_the_plan_says(ranks, one):
    run = Run(prior=PriorConfig(**SIZES), strategy="fsdp", devices=2, batch_size=1, precision="32-true")
    shares = [int(rank["modern"]["held"]) for rank in ranks]
    assert memory(run).weights == 4 * shares[0] >= 4 * shares[1]
    parameters = one["modern"].keys() - {"losses", "norms", "held"}
    assert sum(shares) == sum(one["modern"][name].numel() for name in parameters)


@pytest.mark.parametrize("number", range(len(MATRICES)))
def test_matrices_in_shares_are_orthogonalised_as_whole_ones(ranks, number):
    """Rows and matrices that two devices cannot share evenly, and a device without any."""
    rows = torch.cat([rank["rows"][number] for rank in ranks], dim=1)
    torch.testing.assert_close(rows, orthogonalise(some_matrices(number)))


def test_a_whole_prior_has_the_weights_it_is_given(make_prior):
    prior = make_prior()
    found = whole_prior(prior.config, prior.state_dict())
    assert not is_spread(found)
    assert found.text_head.weight.data_ptr() == prior.text_head.weight.data_ptr()
    with pytest.raises(RuntimeError, match=r"Missing key.*text_head\.weight"):
        whole_prior(prior.config, {})
