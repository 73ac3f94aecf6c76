"""How a run ends, by itself or by Ctrl-C, and how it goes on."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import cli
import train
from callbacks.progress import Progress
from model_files import load_config
from run_cli import CHECKPOINT
from tests.runs import (
    MARKS,
    MODEL_FILES,
    ROOT,
    RUN_FILES,
    STEPS_AN_EPOCH,
    arguments,
    assert_equal,
    checkpoint_of,
    files_in,
    fit,
)
from transformer.training import PriorSystem
from vqvae.training import TokenizerSystem

pytestmark = MARKS


@pytest.fixture
def ctrl_c_at(monkeypatch) -> Callable[..., None]:
    """Sends a signal `times` times: during the training step number `step`, counted from 1, or the validation after."""

    def ctrl_c_at(step: int, times: int = 1, during: str = "training_step", number: int = signal.SIGINT) -> None:
        left = [number] * times
        done = step - 1 if during == "training_step" else step
        for system in (TokenizerSystem, PriorSystem):
            original = getattr(system, during)

            def pressed(self, *args, original=original):
                while self.global_step == done and left:
                    signal.raise_signal(left.pop())
                return original(self, *args)

            monkeypatch.setattr(system, during, pressed)

    return ctrl_c_at


EACH_3 = ["--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=3"]
PARTS = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step")


@pytest.mark.parametrize(
    ("kind", "stop"), [("tokenizer", 4), ("tokenizer", STEPS_AN_EPOCH), ("prior", STEPS_AN_EPOCH), ("prior", 9)]
)
def test_a_resumed_run_equals_one_that_was_not_interrupted(kind, stop, tmp_path, extra, ctrl_c_at, monkeypatch):
    steps = [*extra[kind], "--trainer.max_steps=14", "--trainer.precision=32-true"]
    whole = fit(kind, tmp_path / "whole", *steps)
    with monkeypatch.context():
        ctrl_c_at(stop)
        with pytest.raises(KeyboardInterrupt):
            fit(kind, tmp_path / "parts", *steps)
    monkeypatch.undo()
    assert checkpoint_of(tmp_path / "parts")["global_step"] == stop
    parts = fit(kind, tmp_path / "parts", *steps, "--ckpt_path=last")
    for part in PARTS:
        assert_equal(checkpoint_of(whole)[part], checkpoint_of(parts)[part], part)
    assert (whole / "model" / "model.safetensors").read_bytes() == (parts / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("stop", "validate"), [(3, EACH_3), (STEPS_AN_EPOCH, [])])
def test_a_run_stopped_in_a_validation_goes_on_after_it(stop, validate, tmp_path, ctrl_c_at, monkeypatch, capsys):
    steps = ["--trainer.max_steps=14", "--trainer.precision=32-true", *validate]
    whole = fit("tokenizer", tmp_path / "whole", *steps)
    with monkeypatch.context():
        ctrl_c_at(stop, during="validation_step")
        with pytest.raises(KeyboardInterrupt):
            fit("tokenizer", tmp_path / "parts", *steps)
    monkeypatch.undo()
    assert "stopping after this validation" in capsys.readouterr().err
    assert checkpoint_of(tmp_path / "parts")["global_step"] == stop
    parts = fit("tokenizer", tmp_path / "parts", *steps, "--ckpt_path=last")
    for part in PARTS:
        assert_equal(checkpoint_of(whole)[part], checkpoint_of(parts)[part], part)


def test_ctrl_c_in_the_validation_after_the_last_step_is_too_late(tmp_path, ctrl_c_at, capsys):
    ctrl_c_at(STEPS_AN_EPOCH, during="validation_step")
    run = fit("tokenizer", tmp_path / "run", f"--trainer.max_steps={STEPS_AN_EPOCH}")
    assert "the run is at its end already" in capsys.readouterr().err
    assert files_in(run) > RUN_FILES | MODEL_FILES, "the picture too"


@pytest.mark.parametrize(("stop", "during"), [(5, "training_step"), (6, "validation_step")])
def test_a_step_size_that_follows_the_validations_survives_a_resume(
    stop, during, tmp_path, extra, ctrl_c_at, monkeypatch
):
    """Within an epoch and within a validation, which counts once."""
    decay = ["--model.optim.decay=plateau", "--model.optim.patience=0"]
    steps = [*extra["prior"], "--trainer.max_steps=14", "--trainer.precision=32-true", *decay, *EACH_3]
    whole = fit("prior", tmp_path / "whole", *steps)
    with monkeypatch.context():
        ctrl_c_at(stop, during=during)
        with pytest.raises(KeyboardInterrupt):
            fit("prior", tmp_path / "parts", *steps)
    monkeypatch.undo()
    parts = fit("prior", tmp_path / "parts", *steps, "--ckpt_path=last")
    assert checkpoint_of(whole)["lr_schedulers"][0]["last_epoch"] == 4, "validations after steps 3, 6, 9, 12"
    for part in PARTS:
        assert_equal(checkpoint_of(whole)[part], checkpoint_of(parts)[part], part)


@pytest.mark.parametrize(("saved", "killed"), [(3, 4), (3, 9), (2, 6), (2, 7)])
def test_a_kill_in_or_after_a_validation_loses_none(saved, killed, tmp_path, extra, monkeypatch):
    """Where checkpoints are due at the steps of validations, of each one or of some."""
    steps = [*extra["prior"], *LOWERED, "--trainer.max_steps=14", *EACH_3, f"--checkpoints.every_steps={saved}"]
    whole = fit("prior", tmp_path / "whole", *steps)
    with monkeypatch.context():
        for name in ("training_step", "validation_step"):
            monkeypatch.setattr(PriorSystem, name, killed_at(killed, getattr(PriorSystem, name)))
        with pytest.raises(Killed):
            fit("prior", tmp_path / "parts", *steps)
    monkeypatch.undo()
    parts = fit("prior", tmp_path / "parts", *steps, "--ckpt_path=last")
    assert_same_end(whole, parts)


class Killed(Exception):
    pass


def killed_at(updates: int, original: Callable) -> Callable:
    """In the validation after so many updates or, without one, in the training step."""

    def killed(self, *args):
        if self.global_step == updates:
            raise Killed
        return original(self, *args)

    return killed


LOWERED = ["--trainer.precision=32-true", "--model.optim.decay=plateau", "--model.optim.patience=0"]
"""Each validation counts; the size is so large that some lower it."""
LOWERED += ["--model.optim.lr=1.0", "--model.optim.warmup_steps=0"]


@pytest.mark.parametrize(("stop", "validate"), [(6, EACH_3), (STEPS_AN_EPOCH, []), (4, EACH_3)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_validation_that_is_due_comes_before_a_stop(number, stop, validate, tmp_path, extra, ctrl_c_at, monkeypatch):
    steps = [*extra["prior"], *LOWERED, "--trainer.max_steps=14", *validate]
    whole = fit("prior", tmp_path / "whole", *steps)
    with monkeypatch.context():
        ctrl_c_at(stop, number=number)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit("prior", tmp_path / "parts", *steps)
    monkeypatch.undo()
    stopped = checkpoint_of(tmp_path / "parts")
    assert stopped["global_step"] == stop
    assert stopped["lr_schedulers"][0]["last_epoch"] == (stop // 3 if validate else 1)
    assert_same_end(whole, fit("prior", tmp_path / "parts", *steps, "--ckpt_path=last"))


@pytest.mark.parametrize("first", [5, 6])
def test_a_run_that_is_made_longer_has_validated_as_often(first, tmp_path, extra):
    """Its end is followed by a validation only where one is due."""
    steps = [*extra["prior"], *LOWERED, *EACH_3]
    whole = fit("prior", tmp_path / "whole", *steps, "--trainer.max_steps=10")
    fit("prior", tmp_path / "parts", *steps, f"--trainer.max_steps={first}")
    parts = fit("prior", tmp_path / "parts", *steps, "--trainer.max_steps=10", "--ckpt_path=last")
    assert_same_end(whole, parts)


def assert_same_end(whole: Path, parts: Path) -> None:
    for part in PARTS:
        assert_equal(checkpoint_of(whole)[part], checkpoint_of(parts)[part], part)


def test_ctrl_c_ends_with_a_checkpoint_and_a_model(tmp_path, ctrl_c_at, capsys):
    ctrl_c_at(3)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: fit("tokenizer", tmp_path / "run", "--trainer.max_steps=100"))
    assert stop.value.code == 130
    assert files_in(tmp_path / "run") == RUN_FILES | MODEL_FILES, "no picture: a last validation could take minutes"
    assert checkpoint_of(tmp_path / "run")["global_step"] == 3
    said = capsys.readouterr()
    assert "stopping after this step" in said.err
    assert "stopped at step 3; to go on: python train.py tokenizer fit" in said.out
    assert said.out.splitlines()[-2].endswith("--trainer.max_steps=100 --ckpt_path last")
    assert "Traceback" not in said.err
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_stops_at_once(tmp_path, ctrl_c_at, capsys):
    ctrl_c_at(3, times=2)
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: fit("tokenizer", tmp_path / "run"))
    assert stop.value.code == 130
    assert not (tmp_path / "run" / CHECKPOINT).exists()
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("during", ["training_step", "validation_step"])
def test_a_machine_that_is_taken_away_ends_a_run_without_an_error(number, during, tmp_path, ctrl_c_at, capsys):
    """However often it is announced."""
    handler = signal.getsignal(number)
    ctrl_c_at(3, times=3, during=during, number=number)
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: fit("tokenizer", tmp_path / "run", "--trainer.max_steps=100", *EACH_3))
    assert stop.value.code == 0
    assert checkpoint_of(tmp_path / "run")["global_step"] == 3
    assert load_config(tmp_path / "run" / "model")["codebook_size"] == 16
    said = capsys.readouterr()
    assert said.err.count(f"stopping after this {during.removesuffix('_step').replace('training', 'step')}") == 1
    assert "--ckpt_path last" in said.out
    assert signal.getsignal(number) is handler


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_under_slurm_lightning_leaves_the_signals_alone(number, tmp_path, ctrl_c_at, monkeypatch):
    """It would write a checkpoint of its own in the middle of a step, or pass over SIGTERM."""
    for name in ("LOCALID", "PROCID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    for name, value in {"NTASKS": "1", "JOB_ID": "7", "JOB_NAME": "long", "NODELIST": "here"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    ctrl_c_at(2, number=number)
    with pytest.raises(SystemExit) as stop:
        fit("tokenizer", tmp_path / "run", "--trainer.max_steps=100", "--trainer.accumulate_grad_batches=2")
    assert stop.value.code == 0
    assert files_in(tmp_path / "run") == RUN_FILES | MODEL_FILES
    assert checkpoint_of(tmp_path / "run")["global_step"] == 2


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGTERM), (None, signal.SIGINT)])
def test_no_signal_cuts_the_export(first, second, tmp_path, ctrl_c_at, monkeypatch, capsys):
    """A machine is given a second warning; Ctrl-C comes when all is done but that."""
    export = train.TokenizerCLI.export

    def signalled(self, folder: Path) -> None:
        signal.raise_signal(second)
        export(self, folder)

    def default(*_) -> None:
        raise AssertionError("the process would be gone")

    monkeypatch.setattr(train.TokenizerCLI, "export", signalled)
    before = signal.signal(second, default)
    try:
        if first is None:
            fit("tokenizer", tmp_path / "run")
        else:
            ctrl_c_at(3, number=first)
            with pytest.raises(SystemExit) as stop:
                fit("tokenizer", tmp_path / "run")
            assert stop.value.code == 0
        assert signal.getsignal(second) is default
    finally:
        signal.signal(second, before)
    assert ("the run is at its end already" in capsys.readouterr().err) == (first is None)
    assert load_config(tmp_path / "run" / "model")["codebook_size"] == 16


def test_a_reader_that_is_gone_costs_no_checkpoint(tmp_path, ctrl_c_at, monkeypatch):
    """`train.py 2>&1 | tee log`: a signal to the group ends tee, too."""
    reader, writer = os.pipe()
    os.close(reader)
    ctrl_c_at(3, number=signal.SIGTERM)
    monkeypatch.setattr(Progress.__init__, "__defaults__", (0,))  # a line after each step
    with monkeypatch.context() as patched, os.fdopen(writer, "w") as out, os.fdopen(os.dup(writer), "w") as err:
        patched.setattr(sys, "stdout", out)
        patched.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as stop:
            cli.run(lambda: fit("tokenizer", tmp_path / "run", "--trainer.max_steps=100"))
    assert stop.value.code == 0
    assert checkpoint_of(tmp_path / "run")["global_step"] == 3
    assert load_config(tmp_path / "run" / "model")["codebook_size"] == 16


def test_ctrl_c_after_that_stops_at_once(tmp_path, monkeypatch):
    original = TokenizerSystem.training_step

    def signalled(self, *args):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(TokenizerSystem, "training_step", signalled)
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: fit("tokenizer", tmp_path / "run"))
    assert stop.value.code == 130
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_a_run_that_is_over_is_exported_again(tokenizer_run, tmp_path, capsys):
    run = shutil.copytree(tokenizer_run, tmp_path / "run")
    shutil.rmtree(run / "model")
    fit("tokenizer", run, "--ckpt_path=last")
    assert (run / "model" / "model.safetensors").read_bytes() == (
        tokenizer_run / "model" / "model.safetensors"
    ).read_bytes()


def test_where_the_last_one_is_damaged_the_one_before_is_exported_again(tmp_path):
    """No step is left to do from there, so that the damaged one stays in its place."""
    run = fit("tokenizer", tmp_path / "run", "--checkpoints.every_steps=3")
    expected = torch.load(run / "checkpoints" / "step-0000003.ckpt", weights_only=True)["state_dict"]
    (run / CHECKPOINT).write_bytes(b"nothing")
    shutil.rmtree(run / "model")
    fit("tokenizer", run, "--ckpt_path=last", "--trainer.max_steps=3")
    for name, tensor in load_file(run / "model" / "model.safetensors").items():
        assert torch.equal(tensor, expected[f"model.{name}"]), name


def test_a_checkpoint_that_is_at_the_end_already_is_exported_under_another_name(tokenizer_run, tmp_path):
    run = fit("tokenizer", tmp_path / "new", f"--ckpt_path={tokenizer_run / CHECKPOINT}")
    assert not (run / CHECKPOINT).exists(), "no step, nothing to save"
    assert (run / "model" / "model.safetensors").read_bytes() == (
        tokenizer_run / "model" / "model.safetensors"
    ).read_bytes()


def test_epochs_end_a_run_too(tmp_path):
    run = fit("tokenizer", tmp_path / "run", "--trainer.max_steps=-1", "--trainer.max_epochs=1")
    assert checkpoint_of(run)["global_step"] == STEPS_AN_EPOCH


def test_accumulated_gradients_are_never_split_by_a_checkpoint(tmp_path, ctrl_c_at):
    ctrl_c_at(1)
    with pytest.raises(KeyboardInterrupt):
        fit("tokenizer", tmp_path / "run", "--trainer.accumulate_grad_batches=3")
    checkpoint = checkpoint_of(tmp_path / "run")
    assert checkpoint["global_step"] == 1
    assert checkpoint["TokenizerData"]["position"] == 3 * 8


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_to_the_whole_group_reaches_the_workers_too_and_loses_nothing(number, code, tmp_path):
    """As a terminal sends Ctrl-C, and a batch system SIGTERM."""
    run = tmp_path / "run"
    args = arguments("tokenizer", run, "--trainer.max_steps=100000", "--data.loading.workers=1")
    script = subprocess.Popen(
        [sys.executable, ROOT / "train.py", "tokenizer", "fit", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a process group of its own, as a shell gives it
    )
    while not list(run.glob("pictures/*.png")) and script.poll() is None:
        time.sleep(0.1)
    assert script.poll() is None, script.stdout.read()
    os.killpg(script.pid, number)
    said, _ = script.communicate(timeout=60)
    assert script.returncode == code, said
    (command,) = re.findall(r"stopped at step \d+; to go on: (.*)", said)
    assert shlex.split(command) == [*script.args[:1], *map(str, script.args[1:]), "--ckpt_path", "last"]
    assert "Traceback" not in said
    assert said.count("stopping after this ") == 1
    assert load_config(run / "model")["codebook_size"] == 16
    assert checkpoint_of(run)["global_step"] >= STEPS_AN_EPOCH


def test_a_worker_is_killed(tmp_path, capsys):
    given = ["--data.loading.workers=2", "--checkpoints.every_steps=1", "--trainer.max_steps=40"]
    given += ["--trainer.callbacks+=tests.planted.WorkerKilled", "--trainer.callbacks.step=2"]
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: train.train("tokenizer", ["fit", *arguments("tokenizer", tmp_path / "run", *given)]))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: a worker that reads samples (process ")
    assert "most likely as memory has run out" in line
    last = captured.out.splitlines()[-1]
    assert last.startswith("to go on from the last checkpoint: ") and last.endswith("--ckpt_path last")
