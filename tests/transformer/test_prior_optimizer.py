import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from muon import Muon, MuonAdamW
from transformer.training import OptimConfig, make_optimizer

SETTINGS = {"lr": 1e-3, "muon_lr": 3e-3, "weight_decay": 0.1}


def halving(optimizer):
    return LambdaLR(optimizer, lambda step: 0.5**step)


def train(prior, batch, steps, *optimizers):
    """Updates of all optimisers, the step sizes halved after each."""
    schedules = [halving(optimizer) for optimizer in optimizers]
    text_tokens, image_tokens = batch
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        cross_entropy(prior(text_tokens, image_tokens).image_logits.flatten(0, 1), image_tokens.flatten()).backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()


def assert_equal(left: nn.Module, right: nn.Module):
    for (name, a), b in zip(left.state_dict().items(), right.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0, msg=name)


def test_equals_the_two_by_themselves(make_prior, make_batch):
    """Matrices of the blocks by Muon; heads with weight decay and tables, gains and positions without by AdamW."""
    one, two = make_prior(), make_prior()
    two.load_state_dict(one.state_dict())
    matrices = {name: p for name, p in two.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
    assert {name.split(".", 2)[2] for name in matrices} == {
        "attention.qkv.weight",
        "attention.proj.weight",
        "mlp.gate_up.weight",
        "mlp.proj.weight",
    }
    heads = [two.text_head.weight, two.image_head.weight]
    taken = {id(p) for p in [*matrices.values(), *heads]}
    rest = [p for p in two.parameters() if id(p) not in taken]
    by_muon = Muon([{"params": list(matrices.values())}], lr=3e-3, weight_decay=0.1)
    groups = [{"params": heads, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    adamw = AdamW(groups, lr=1e-3, betas=(0.9, 0.96), fused=True)
    batch = make_batch(3)
    train(one, batch, 4, make_optimizer(one, OptimConfig(**SETTINGS)))
    train(two, batch, 4, by_muon, adamw)
    assert_equal(one, two)


def test_goes_on_from_its_state(make_prior, make_batch):
    """Momentum, AdamW's averages and the step sizes come back, and both parts work on them."""
    batch = make_batch(3)
    whole, parted = make_prior(), make_prior()
    parted.load_state_dict(whole.state_dict())
    optimizer = make_optimizer(whole, OptimConfig(**SETTINGS))
    train(whole, batch, 2, optimizer)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    train(whole, batch, 2, optimizer)

    optimizer = make_optimizer(parted, OptimConfig(**SETTINGS))
    train(parted, batch, 2, optimizer)
    resumed = make_optimizer(parted, OptimConfig(lr=1.0, muon_lr=1.0))
    resumed.load_state_dict(optimizer.state_dict())
    assert [group["weight_decay"] for group in resumed.param_groups] == [0.1, 0.1, 0.0]
    for group in resumed.param_groups:
        group["lr"] = group["initial_lr"]
    train(parted, batch, 2, resumed)
    assert_equal(whole, parted)


def test_without_a_step_size_there_is_no_muon(make_prior):
    assert isinstance(make_optimizer(make_prior(), OptimConfig(muon_lr=1e-3)), MuonAdamW)
    assert type(make_optimizer(make_prior(), OptimConfig())) is AdamW
