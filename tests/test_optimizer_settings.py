"""Runs that go on with another step size, weight decay, betas or eps."""

import shutil
from pathlib import Path

import pytest
import torch

import train
from tests.runs import MARKS, arguments, assert_equal, checkpoint_of, fit

pytestmark = MARKS

OTHER = ["lr=4e-5", "muon_lr=3e-3", "weight_decay=0.3", "betas=[0.7, 0.8]", "eps=1e-6"]
ADVERSARIAL = ['--model.adversarial={"start_step": 0, "width": 8, "n_layers": 1}']
CASES = {
    "Muon": ("tokenizer", [], []),
    "discriminator": (
        "tokenizer",
        ADVERSARIAL,
        ["--model.adversarial.lr=3e-5", "--model.adversarial.betas=[0.1, 0.2]"],
    ),
    "cosine": ("prior", ["--model.optim.total_steps=6"], []),
    "plateau": ("prior", ["--model.optim.decay=plateau"], ["--model.optim.patience=5"]),
    "no warm-up": ("prior", ["--model.optim.decay=plateau", "--model.optim.warmup_steps=0"], []),
}


def training_state(run: Path) -> tuple[list[dict], list[dict]]:
    """Of a checkpoint: the optimisers' groups, and the schedules."""
    checkpoint = checkpoint_of(run)
    groups = [group for optimizer in checkpoint["optimizer_states"] for group in optimizer["param_groups"]]
    return groups, checkpoint["lr_schedulers"]


@pytest.mark.parametrize("case", CASES)
def test_they_end_with_the_settings_of_a_run_that_began_with_them(case, tmp_path, extra):
    kind, shared, other = CASES[case]
    given = [*extra[kind], *shared, "--model.optim.muon_lr=1e-2"]
    other = [*given, *other, *(f"--model.optim.{setting}" for setting in OTHER)]
    fit(kind, tmp_path / "run", *given, "--trainer.max_steps=2")
    fit(kind, tmp_path / "run", *other, "--trainer.max_steps=3", "--ckpt_path=last")
    fit(kind, tmp_path / "whole", *other, "--trainer.max_steps=3")
    (ours, our_schedules), (theirs, their_schedules) = (training_state(tmp_path / name) for name in ("run", "whole"))
    for one, another in zip(ours, theirs, strict=True):
        assert one.pop("lr") == pytest.approx(another.pop("lr"), rel=1e-12)
        assert_equal(one, another)
    for one, another in zip(our_schedules, their_schedules, strict=True):
        for name in ("base_lrs", "patience"):
            assert one.get(name) == another.get(name)


def test_the_first_update_takes_the_other_step_size(tokenizer_run, tmp_path):
    run = shutil.copytree(tokenizer_run, tmp_path / "run")
    given = ["--model.optim.lr=1e-9", "--model.optim.min_lr=0", "--trainer.max_steps=5", "--ckpt_path=last"]
    assert train.train("tokenizer", ["fit", *arguments("tokenizer", run, *given)])["lr"] == pytest.approx(
        1e-9, rel=1e-3
    )


def test_what_the_plateau_has_halved_stays_halved(tmp_path, extra):
    """From a checkpoint in which it has done so once."""
    given = [*extra["prior"], "--model.optim.decay=plateau"]
    run = fit("prior", tmp_path / "run", *given, "--trainer.max_steps=2")
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for group in checkpoint["optimizer_states"][0]["param_groups"]:
        group["lr"] /= 2
    torch.save(checkpoint, path)
    fit("prior", run, *given, "--model.optim.lr=3e-3", "--trainer.max_steps=3", "--ckpt_path=last")
    groups, _ = training_state(run)
    assert [group["lr"] for group in groups] == pytest.approx([1.5e-3] * len(groups), rel=1e-12)


@pytest.mark.parametrize("kind", ["tokenizer", "discriminator"])
def test_a_run_whose_optimisers_were_not_fused_goes_on(kind, tmp_path):
    """As such a run's checkpoint says, until all of them became so."""
    given = [*(ADVERSARIAL if kind == "discriminator" else []), "--trainer.precision=32-true", "--trainer.max_steps=3"]
    run = fit("tokenizer", tmp_path / "run", *given, "--trainer.max_steps=2")
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for state in checkpoint["optimizer_states"]:
        for group in state["param_groups"]:
            assert group["fused"]
            group["fused"] = None
    torch.save(checkpoint, path)
    fit("tokenizer", run, *given, "--ckpt_path=last")
    whole = fit("tokenizer", tmp_path / "whole", *given)
    for part in ("state_dict", "optimizer_states"):
        assert_equal(checkpoint_of(run)[part], checkpoint_of(whole)[part])
