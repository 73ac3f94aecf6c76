"""Updates whose gradients are not finite change nothing; those whose are, are what they were without the guard."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from guard import Guard, Held
from muon import MuonAdamW


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5))


def muon(model: nn.Module) -> MuonAdamW:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": others, "lr": 0.1, "weight_decay": 0.1}]
    return MuonAdamW({"params": matrices, "lr": 0.1, "weight_decay": 0.1}, groups, betas=(0.9, 0.99), eps=1e-8)


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "AdamW": lambda model: AdamW(model.parameters(), lr=0.1, fused=True),
    "Adam": lambda model: Adam(model.parameters(), lr=0.1, fused=True),
    "Muon": muon,
    "Muon, float64": lambda model: muon(model.double()),
}


def learn(make: Callable[[nn.Module], Optimizer], plan: str, guard: Guard | None, clip: float | None = 0.5) -> list:
    """Weights and the optimiser's state after a step for each letter: "." as it is, "n" with a loss that is NaN."""
    model = network()
    optimizer = make(model)
    for step, letter in enumerate(plan):
        random = torch.Generator().manual_seed(step)
        loss = model(torch.randn(4, 3, generator=random).to(model[0].weight)).square().mean()
        if letter == "n":
            loss = loss * math.nan
        optimizer.zero_grad()
        if guard is None:
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
        else:
            guard.begin()
            guard.loss(loss, {}).backward()
            guard.check(optimizer, model.named_parameters(), clip)
        optimizer.step()
    return state_of(model, optimizer)


def state_of(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    states = optimizer.state_dict()["state"]
    tensors = [value for number in sorted(states) for _, value in sorted(states[number].items())]
    return copy.deepcopy([*model.parameters(), *tensors])


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_finite_updates_are_what_they_were(name, clip):
    assert equal(learn(OPTIMIZERS[name], "....", Guard(), clip), learn(OPTIMIZERS[name], "....", None, clip))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_that_is_not_finite_changes_nothing(name):
    """Weights, moments, momentum and the count of steps."""
    assert equal(learn(OPTIMIZERS[name], "..nn", Guard()), learn(OPTIMIZERS[name], "..", None))
    bad, good = learn(OPTIMIZERS[name], "n", Guard()), learn(OPTIMIZERS[name], "", None)
    assert equal(bad[: len(good)], good) and not any(tensor.any() for tensor in bad[len(good) :])
    assert not equal(learn(OPTIMIZERS[name], "n.", Guard()), learn(OPTIMIZERS[name], "n", Guard()))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_makes_its_gradient_so(loss):
    """Also where the gradient would be finite: another device has no other sign of it."""
    weight = nn.Parameter(torch.ones(2))
    optimizer, guard = AdamW([weight], fused=True), Guard()
    guard.loss(weight.sum() + loss, {}).backward()
    assert weight.grad.isnan().all()
    norm = guard.check(optimizer, [("weight", weight)])
    assert not norm.isfinite() and guard.checks[0].found_inf == 1


def test_a_gradient_alone_is_enough():
    """Of a finite loss."""
    weight, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    optimizer, guard = AdamW([weight, other], fused=True), Guard()
    guard.loss((weight.sqrt() + other).sum(), {"part": other.sum()}).backward()
    guard.check(optimizer, [("weight", weight), ("other", other)])
    (check,) = guard.checks
    assert check.found_inf == 1
    assert dict(zip(check.names, check.norms.isfinite().tolist(), strict=True)) == {"weight": False, "other": True}
    assert check.losses == [{"loss": 2.0, "part": 2.0}]


def test_tensors_that_a_forward_pass_changed_are_put_back():
    count, total = torch.zeros(()), torch.zeros(2)
    for found_inf, expected in ((0.0, 1.0), (1.0, 1.0), (0.0, 2.0)):
        held = Held([count, total])
        count += 1
        total.add_(1.0 if found_inf == 0 else math.nan)
        held.put_back(torch.tensor(found_inf))
        assert count == expected and (total == expected).all()
