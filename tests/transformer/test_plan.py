import resource

import pytest
import torch

from transformer import plan
from transformer.config import PriorConfig
from transformer.footprint import footprint
from transformer.model import Prior
from transformer.plan import Run, main, memory
from transformer.training import OptimConfig, make_optimizer


def config(**settings) -> PriorConfig:
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 24, "text_len": 6, "grid_size": (4, 3)}
    return PriorConfig(**sizes | {"codebook_size": 13, "text_vocab_size": 11, "conv_kernel": 3} | settings)


def bytes_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("block", ["paper", "modern"])
@pytest.mark.parametrize("muon", [False, True])
def test_weights_gradients_and_moments_are_those_of_a_real_run(block, muon):
    """To the byte, but for the counts of steps, a number of each tensor."""
    prior = Prior(config(block=block))
    optimizer = make_optimizer(prior, OptimConfig(muon_lr=1e-2 if muon else None))
    prior.loss(torch.zeros(1, 5).long(), torch.zeros(1, 4, 3).long()).total.backward()
    optimizer.step()
    found = memory(Run(prior=prior.config, strategy="single", batch_size=1, precision="32-true", muon=muon))
    assert found.weights == found.average == bytes_of(prior.parameters())
    assert found.gradients == bytes_of(parameter.grad for parameter in prior.parameters())
    state = [value for values in optimizer.state.values() for name, value in values.items() if name != "step"]
    assert found.moments == bytes_of(state)


def test_what_each_strategy_holds():
    runs = {name: Run(prior=config(), strategy=name, devices=1 + (name != "single")) for name in plan.STRATEGIES}
    single, ddp, fsdp = (memory(runs[name]) for name in ("single", "ddp", "fsdp"))
    assert ddp == single
    assert single.casts > fsdp.casts == 0
    assert single.weights / 2 <= fsdp.weights < 0.55 * single.weights  # rows that are not even
    assert fsdp.gathered > single.gathered == 0
    assert fsdp.activations == single.activations == footprint(config(), 8, True).kept
    assert memory(Run(prior=config(), average=False)).average == 0


def test_what_is_gathered_by_hand():
    """In float32, a block of 4 (3 + 1 + 8) 24^2 numbers and its norms and biases; two of it, arriving, made, summed."""
    prior = config(block="paper", n_layer=1)
    block = 12 * 24**2 + (3 + 1 + 4 + 1) * 24 + 4 * 24
    rest = sum(parameter.numel() for parameter in plan.meta_prior(prior).parameters()) - block
    found = memory(Run(prior=prior, strategy="fsdp", precision="32-true")).gathered
    assert found == 4 * (2 * rest + 5 * block)
    assert memory(Run(prior=prior, strategy="fsdp")).gathered == 8 * rest + (3 * 2 + 2 + 4) * block


def test_the_papers_prior_costs_no_memory(capsys):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    args = ["--preset", "dalle-12b", "--strategy", "fsdp", "--devices", "64", "--batch_size", "8"]
    assert main(args) == 1
    assert main([*args, "--checkpoint_activations"]) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes
    said = capsys.readouterr().out
    assert "parameters        12,292,808,448" in said
    assert "pictures a step   512 of 1,280 positions" in said
    assert "does not fit" in said and "of 80: fits" in said
    # Its weights, gradients, two moments and average, shared out.
    for name, numbers in (("weights", 1), ("moments", 2), ("average", 1)):
        assert f"  {name:<12}{numbers * 4 * 12_292_808_448 / 64 / 1e9:>10.2f}" in said
    assert "49.2 a process at the start, 196.7 the first for a checkpoint" in said


def test_flops_of_a_step(capsys):
    assert main(["--preset", "tiny", "--batch_size", "3", "--checkpoint_activations", "--n_layer", "2"]) == 0
    prior = PriorConfig(preset="tiny", n_layer=2)
    flops = plan.training_flops(prior)
    said = capsys.readouterr().out
    step = 3 * (flops.picture + 255 * flops.text_token)
    assert f"FLOPs a step      {step:.4g}, {step:.4g} on each device" in said
    again = 3 * sum(plan.forward_flops(prior)[:3])
    assert f"done again      {again:.4g} because" in said


def test_mistakes_are_said(capsys):
    assert main(["--preset", "tiny", "--devices", "2"]) == 2
    assert capsys.readouterr().err == "error: devices is 2 with strategy single, expected 1\n"
    assert main(["--preset", "tiny", "--n_head", "3"]) == 2
    assert "n_embd 256 is not a multiple of n_head 3" in capsys.readouterr().err
    for wrong, said in [
        ({"strategy": "zero"}, "strategy is 'zero', expected single or ddp or fsdp"),
        ({"precision": "16-mixed"}, "precision is '16-mixed', expected bf16-mixed or 32-true"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
    ]:
        with pytest.raises(ValueError, match=said):
            Run(prior=config(), **wrong)
