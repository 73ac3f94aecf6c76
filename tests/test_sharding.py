"""Runs of train.py on two devices, in processes of a CPU: what one device would do with both halves of each batch."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train
from callbacks.folder_io import ReadAlready
from pipeline import TextToImage
from run_cli import CHECKPOINT
from sharding import ShardedStrategy, fill, gathered, local, spread_like
from tests.loss_curve import curve_of
from tests.runs import (
    BUNDLE_FILES,
    MARKS,
    MODEL_FILES,
    ROOT,
    RUN_FILES,
    arguments,
    checkpoint_of,
    events_of,
    files_in,
    fit,
)

pytestmark = MARKS

# Captions of several lengths, some dropped; batches added up; gradients clipped; averaged weights validated half-way.
SETTINGS = (
    "--model.caption_dropout=0.3",
    "--model.optim.total_steps=4",
    "--data.text.text_len=48",
    "--trainer.precision=32-true",
    "--trainer.gradient_clip_val=0.5",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.val_check_interval=4",
    "--trainer.log_every_n_steps=1",
    "--trainer.callbacks+=tests.loss_curve.LossCurve",
)


def on_two(run: Path, tokenizer: Path, strategy: str, *extra: str) -> Path:
    """As a user would start it; returns the run's folder."""
    devices = ("--trainer.devices=2", f"--trainer.strategy={strategy}", "--data.loading.batch_size=4")
    args = arguments("prior", run, f"--tokenizer={tokenizer}", *SETTINGS, *devices, *extra)
    command = [sys.executable, ROOT / "train.py", "prior", "fit", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model: ") == 1, "the first device alone exports"
    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tokenizer_run) -> Path:
    """The run on one device that the others are compared with."""
    run = tmp_path_factory.mktemp("alone") / "run"
    return fit("prior", run, f"--tokenizer={tokenizer_run}", *SETTINGS, "--data.loading.batch_size=8")


@pytest.fixture(scope="module")
def half(tmp_path_factory, tokenizer_run) -> Path:
    """Spread over two devices, until half-way."""
    return on_two(tmp_path_factory.mktemp("half") / "run", tokenizer_run, "fsdp", "--trainer.max_steps=2")


def assert_same_curve(run: Path, alone: Path, first: int = 1) -> None:
    found, expected = curve_of(run), curve_of(alone)
    assert list(found) == list(range(first, 5))
    for step, values in found.items():
        torch.testing.assert_close(values, expected[step], atol=1e-4, rtol=0)


COUNTS = ("epoch", "global_step", "lr_schedulers", "averaging_state", "image_tokenizer", "PriorData")


def assert_same_checkpoint(run: Path, alone: Path, counts: tuple[str, ...] = ("loops", *COUNTS)) -> None:
    """In the same form as well, so that each run goes on from the other's."""
    found, expected = checkpoint_of(run), checkpoint_of(alone)
    for part in ("state_dict", "current_model_state", "optimizer_states"):
        assert_near(found.pop(part), expected.pop(part), part)
    for part in counts:
        assert found[part] == expected[part], part


def assert_near(found: Any, expected: Any, path: str) -> None:
    if isinstance(found, dict):
        assert list(found) == list(expected), path
        for name in found:
            assert_near(found[name], expected[name], f"{path}/{name}")
    elif isinstance(found, Tensor):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3, msg=path)
    elif isinstance(found, list | tuple):
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_near(*pair, f"{path}/{i}")
    else:
        assert found == expected, path


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_devices_do_what_one_would(alone, tokenizer_run, tmp_path, strategy):
    run = on_two(tmp_path / "run", tokenizer_run, strategy)
    assert_same_curve(run, alone)
    assert_same_checkpoint(run, alone)
    assert files_in(run) >= RUN_FILES | MODEL_FILES | BUNDLE_FILES
    ours, theirs = (TextToImage.from_pretrained(folder / "model").prior.state_dict() for folder in (run, alone))
    assert_near(dict(ours), dict(theirs), "model")


def test_a_spread_run_goes_on_spread(alone, half, tokenizer_run, tmp_path):
    checkpoint = f"--ckpt_path={half / CHECKPOINT}"
    run = on_two(tmp_path / "run", tokenizer_run, "fsdp", checkpoint)
    assert_same_curve(run, alone, first=3)
    assert_same_checkpoint(run, alone)


def test_a_spread_run_goes_on_on_one_device(alone, half, tokenizer_run, tmp_path):
    given = (f"--ckpt_path={half / CHECKPOINT}", "--data.loading.batch_size=8")
    run = fit("prior", tmp_path / "run", f"--tokenizer={tokenizer_run}", *SETTINGS, *given)
    assert_same_curve(run, alone, first=3)
    assert_same_checkpoint(run, alone)


def test_a_run_that_moves_between_one_device_and_two(tokenizer_run, tmp_path):
    """Two of its updates have a loss on the last device that is not finite: both devices leave them out."""
    spoilt = ("--trainer.callbacks+=tests.planted.Spoilt", "--trainer.callbacks.steps=[2,4]")
    given = (f"--tokenizer={tokenizer_run}", *SETTINGS, "--data.loading.batch_size=8", *spoilt)
    stayed = fit("prior", tmp_path / "stayed", *given)
    run, curve = fit("prior", tmp_path / "1", *given, "--trainer.max_steps=1"), {}
    for step, strategy in enumerate(["ddp", None, "fsdp"], start=2):
        curve |= curve_of(run)
        there = (f"--ckpt_path={run / CHECKPOINT}", f"--trainer.max_steps={step}")
        run = tmp_path / f"{step}"
        if strategy is None:
            fit("prior", run, *given, *there)
        else:
            on_two(run, tokenizer_run, strategy, *spoilt, *there)
    curve, expected = curve | curve_of(run), curve_of(stayed)
    assert list(curve) == list(expected) == [1, 2, 3, 4]
    for step, values in curve.items():
        torch.testing.assert_close(values, expected[step], atol=1e-4, rtol=0, equal_nan=True)
        assert values[1].isnan() == (step in (2, 4))
    assert_same_checkpoint(run, stayed, COUNTS)  # each part has validated after its last step
    assert checkpoint_of(run)["update_watch"]["skipped"] == checkpoint_of(stayed)["update_watch"]["skipped"] == 2
    (found,), expected = events_of(tmp_path / "2"), events_of(stayed)[0]
    assert (found["step"], found["first"], expected["first"]) == (2, "loss of device 1", "loss")
    keys = [device["keys"] for device in found["devices"]]
    assert [len(each) for each in keys] == [8, 8], "two batches of four on each"
    assert {*keys[0], *keys[1]} == set(expected["devices"][0]["keys"])


def test_another_batch_over_all_devices_is_refused_within_an_epoch(half, tokenizer_run, tmp_path):
    given = (f"--ckpt_path={half / CHECKPOINT}", "--data.loading.batch_size=4")
    said = refused("prior", tmp_path / "run", f"--tokenizer={tokenizer_run}", *SETTINGS, *given)
    assert "cannot resume in the middle of an epoch: global_batch_size was 8 and is 4" in said


def test_what_is_compared_did_happen(alone):
    """The gradients were clipped, and the averaged weights are others than the trained ones."""
    assert all(norm > 0.5 for _, norm in curve_of(alone).values())
    checkpoint = checkpoint_of(alone)
    name = "prior.image_head.weight"
    assert not torch.allclose(checkpoint["state_dict"][name], checkpoint["current_model_state"][name], atol=1e-4)


def refused(kind: str, run: Path, *given: str) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        train.train(kind, ["fit", *arguments(kind, run, *given)])
    return str(error.value)


def test_what_cannot_be_spread_is_refused(tokenizer_run, tmp_path):
    run, tokenizer = tmp_path / "run", f"--tokenizer={tokenizer_run}"
    said = refused("tokenizer", run, "--trainer.strategy=fsdp")
    assert "trainer.strategy is 'fsdp', expected auto or ddp for a tokenizer" in said
    said = refused("prior", run, tokenizer, "--trainer.strategy=deepspeed")
    assert "trainer.strategy is 'deepspeed', expected auto, ddp or fsdp for a prior" in said
    assert not run.exists()


def test_what_was_read_and_checked_is_not_read_again(tmp_path, monkeypatch):
    """Where it lay, a run that still trains may have put another."""
    strategy, path = ShardedStrategy(), tmp_path / "last.ckpt"
    monkeypatch.setattr(strategy, "broadcast", lambda path: path)
    torch.save({"global_step": 2}, path)
    assert strategy.load_checkpoint(str(path), weights_only=True) == {"global_step": 2}
    strategy.checkpoint_io = ReadAlready(checked := {"global_step": 1})
    assert strategy.load_checkpoint(str(path), weights_only=True) is checked


def test_what_is_not_spread_stays_as_it_is():
    tensor = torch.arange(3.0)
    assert local(tensor) is spread_like(tensor, torch.zeros(3)) is tensor
    assert gathered(tensor, keep=False) is None
    assert torch.equal(gathered(tensor), tensor)
    linear = torch.nn.Linear(2, 1)
    fill(linear, {"weight": torch.ones(1, 2), "bias": torch.ones(1)})
    assert linear.weight.sum() == 2
