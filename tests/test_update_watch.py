"""train.py where losses or gradients are not finite, and where the loss has spikes."""

import json
from typing import Any

import pytest
from torch import nn

import cli
import run_cli
import train
from callbacks.update_watch import UpdateWatch
from guard import Guard
from run_cli import CHECKPOINT
from tests.runs import MARKS, arguments, assert_equal, checkpoint_of, events_of, fit

pytestmark = MARKS

EACH_STEP = ["--trainer.precision=32-true", "--trainer.log_every_n_steps=1", "--trainer.max_steps=6"]
PARTS = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step", "update_watch")


def spoilt(*steps: int, **given: Any) -> list[str]:
    given = {"steps": list(steps)} | given
    return [
        "--trainer.callbacks+=tests.planted.Spoilt",
        *(f"--trainer.callbacks.{name}={value}" for name, value in given.items()),
    ]


@pytest.fixture
def without_guard(monkeypatch):
    """Training as it was before there was one."""

    def check(self, optimizer, parameters, largest=None):
        parameters = [parameter for _, parameter in parameters]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        if largest:
            nn.utils.clip_grads_with_norm_(parameters, largest, norm)
        return norm

    monkeypatch.setattr(Guard, "check", check)
    monkeypatch.setattr(Guard, "loss", lambda self, loss, terms: loss)
    monkeypatch.setattr(run_cli, "UpdateWatch", lambda file, limit: run_cli.Callback())
    monkeypatch.setattr("vqvae.training.Held.put_back", lambda self, found_inf: None)
    monkeypatch.setattr("vqvae.training.TokenizerSystem._leave_out", _only_clip)


def _only_clip(self, optimizer, largest, held):
    if largest:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], largest)


@pytest.mark.parametrize(
    ("kind", "more"),
    [("tokenizer", []), ("prior", ["--model.optim.muon_lr=6e-3", "--trainer.accumulate_grad_batches=2"])],
)
def test_updates_that_are_finite_are_what_they_were(kind, more, tmp_path, extra, request):
    given = [*extra[kind], *EACH_STEP, "--trainer.gradient_clip_val=0.5", *more]
    ours = checkpoint_of(fit(kind, tmp_path / "ours", *given))
    request.getfixturevalue("without_guard")
    theirs = checkpoint_of(fit(kind, tmp_path / "theirs", *given))
    assert ours["update_watch"]["skipped"] == 0 and not (tmp_path / "ours" / "spikes.jsonl").exists()
    for part in PARTS[:-1]:
        assert_equal(ours[part], theirs[part], part)


@pytest.mark.parametrize("kind", ["tokenizer", "prior"])
def test_updates_that_are_left_out(kind, tmp_path, extra, caplog):
    """They count, and are told: each in the file, the first of several in a row in a line."""
    name = {"tokenizer": "decoder.blocks.input.weight", "prior": "image_head.weight"}[kind]
    run = tmp_path / "run"
    given = arguments(kind, run, *extra[kind], *EACH_STEP, *spoilt(2, 3, 5, parameter=name))
    assert train.train(kind, ["fit", *given])["train/skipped"] == 3
    checkpoint = checkpoint_of(run)
    assert checkpoint["global_step"] == 6
    assert checkpoint["update_watch"]["skipped"] == 3
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())
    assert [event["step"] for event in events_of(run)] == [2, 3, 5]
    second, third, _ = events_of(run)
    assert second["kind"] == "left out" and second["first"].endswith(name)
    (device,), (after,) = second["devices"], third["devices"]
    assert len(device["keys"]) == 8 and after["keys_before"] == device["keys"]
    said = [message for message in caplog.messages if "is left out" in message]
    assert [message.split(":")[0] for message in said] == ["step 2", "step 5"]
    assert ", ".join(device["keys"][:5]) + ", ...; all keys are in" in said[0]


def test_too_many_in_a_row_end_the_run(tmp_path, extra, capsys):
    """The checkpoint is that of the last good update, though they are written after each."""
    given = [
        *extra["prior"],
        *EACH_STEP,
        "--checkpoints.every_steps=1",
        "--max_skipped=3",
        "--trainer.log_every_n_steps=3",
    ]
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: fit("prior", tmp_path / "run", *given, *spoilt(2, 4, 5, 6)))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    keys = ", ".join(events_of(tmp_path / "run")[1]["devices"][0]["keys"][:5])
    assert "3 updates in a row were left out by step 6, where this was looked at; max_skipped is 3" in line
    assert f"First, step 4: loss is not finite; batch: {keys}, ..." in line
    assert "to go on from the last checkpoint: " in captured.out
    checkpoint = checkpoint_of(tmp_path / "run")
    assert checkpoint["global_step"] == 5 and checkpoint["update_watch"]["streaks"] == [2, 0]
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())


def test_too_many_before_the_first_checkpoint(tmp_path, capsys):
    """More than the limit, as they are counted at steps that are logged; and there is nothing to go on from."""
    given = [*EACH_STEP, "--max_skipped=2", "--trainer.log_every_n_steps=5"]
    with pytest.raises(SystemExit):
        cli.run(lambda: fit("tokenizer", tmp_path / "run", *given, *spoilt(1, 2, 3, 4, 5)))
    captured = capsys.readouterr()
    assert "5 updates in a row were left out by step 5, where this was looked at; max_skipped is 2" in captured.err
    assert "checkpoint" not in captured.out + captured.err


def test_a_run_that_goes_on_after_them(tmp_path, extra):
    """Counts, what is usual and what began the row are as if it had not been interrupted."""
    given = [*extra["prior"], *EACH_STEP, "--model.optim.total_steps=6", *spoilt(3, 4)]
    whole = fit("prior", tmp_path / "whole", *given)
    fit("prior", tmp_path / "parts", *given, "--trainer.max_steps=3")
    fit("prior", tmp_path / "parts", *given, "--ckpt_path=last")
    for part in PARTS:
        assert_equal(checkpoint_of(whole)[part], checkpoint_of(tmp_path / "parts")[part], part)
    assert checkpoint_of(whole)["update_watch"]["skipped"] == 2
    assert events_of(whole) == events_of(tmp_path / "parts")


def test_what_was_told_before_a_kill_is_told_once(tmp_path):
    """The process came to step 5 after its last checkpoint, of step 3, and died in the middle of a line."""
    given = [*EACH_STEP, *spoilt(3, 4)]
    run = fit("tokenizer", tmp_path / "run", *given, "--trainer.max_steps=5", "--checkpoints.every_steps=3")
    (run / "checkpoints" / "step-0000003.ckpt").replace(run / CHECKPOINT)
    with (run / "spikes.jsonl").open("a") as file:
        file.write('{"step": 5, "ki')
    fit("tokenizer", run, *given, "--trainer.max_steps=7", "--trainer.callbacks.steps=[3,4,6]", "--ckpt_path=last")
    *lines, last = (run / "spikes.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines[:-1]] == [3, 4]
    assert lines[-1] == '{"step": 5, "ki' and json.loads(last)["step"] == 6


def test_accumulated_batches_are_left_out_together(tmp_path):
    """The second batch of three is bad."""
    names = [
        "--trainer.accumulate_grad_batches=3",
        "--trainer.max_steps=2",
        "--trainer.callbacks+=tests.planted.Spoilt",
    ]
    run = fit("tokenizer", tmp_path / "run", *EACH_STEP, *names, "--trainer.callbacks.steps=[2]")
    (event,) = events_of(run)
    assert event["step"] == 2 and len(event["devices"][0]["keys"]) == 3 * 8
    assert checkpoint_of(run)["update_watch"]["skipped"] == 1


def test_a_spike_of_the_loss(tmp_path, extra, caplog):
    steps = ["--trainer.max_steps=28", "--trainer.log_every_n_steps=7"]
    run = fit("prior", tmp_path / "run", *extra["prior"], *EACH_STEP, *steps, *spoilt(24, 25, factor=20.0))
    (event,) = events_of(run)
    assert (event["step"], event["kind"]) == (24, "spike")
    assert event["loss"] > event["usual"] + 10 * event["spread"]
    (device,) = event["devices"]
    assert device["loss"] == event["loss"]
    assert len(set(device["keys"])) == len(set(device["keys_before"])) == 8
    assert [m for m in caplog.messages if m.startswith("step 24: the loss is ") and device["keys"][0] in m]
    assert checkpoint_of(run)["update_watch"]["skipped"] == 0


def test_a_file_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    (tmp_path / "run" / "spikes.jsonl").mkdir(parents=True)
    run = fit("tokenizer", tmp_path / "run", *EACH_STEP, *spoilt(2))
    assert checkpoint_of(run)["global_step"] == 6
    assert [message for message in caplog.messages if "spikes.jsonl could not be added to: " in message]


def test_a_limit_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_skipped is 0, expected at least 1"):
        UpdateWatch(tmp_path / "spikes.jsonl", limit=0)
