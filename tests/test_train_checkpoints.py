"""Checkpoints of train.py where a disk, a file or a second run is in the way."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import cli
import train
from callbacks.checkpoint import RunCheckpoint
from checkpoint_files import check_undamaged
from checkpoint_folder import CheckpointFolder
from locks import LOCK, only_writer
from model_files import load_config
from run_cli import CHECKPOINT
from tests.runs import MARKS, MODEL_FILES, ROOT, RUN_FILES, arguments, assert_equal, checkpoint_of, files_in, fit
from vqvae.training import TokenizerSystem

pytestmark = MARKS

BOTH = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step")


@pytest.fixture
def disk_full_at(monkeypatch) -> Callable[[range], None]:
    """No checkpoint of these steps can be written."""

    def disk_full_at(steps: range) -> None:
        write = CheckpointFolder.write

        def fail(self, checkpoint: dict) -> None:
            if checkpoint["global_step"] in steps:
                raise OSError(28, "No space left on device")
            write(self, checkpoint)

        monkeypatch.setattr(CheckpointFolder, "write", fail)

    return disk_full_at


def test_a_full_disk_is_said_and_the_run_goes_on_and_on_trying(tmp_path, disk_full_at, caplog):
    disk_full_at(range(4, 8))
    steps = ["--trainer.max_steps=9", "--checkpoints.every_steps=2"]
    run = fit("tokenizer", tmp_path / "run", *steps)
    said = [message for message in caplog.messages if "could not be saved" in message]
    assert [message.split(" could")[0] for message in said] == ["step 4", "step 6"]
    assert all("No space left on device" in message and "before it stay" in message for message in said)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "step-0000008.ckpt"}
    assert checkpoint_of(run)["global_step"] == 9


def test_a_run_whose_end_cannot_be_saved_is_an_error(tmp_path, disk_full_at, capsys):
    disk_full_at(range(4, 10))
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: fit("tokenizer", tmp_path / "run", "--trainer.max_steps=6", "--checkpoints.every_steps=3"))
    assert stop.value.code == 2
    assert "error: the run's end could not be saved: [Errno 28] No space left on device" in capsys.readouterr().err
    assert files_in(tmp_path / "run") >= RUN_FILES
    assert checkpoint_of(tmp_path / "run")["global_step"] == 3
    assert not (tmp_path / "run" / "model").exists()


def test_weights_that_are_not_finite_take_no_checkpoint_place(tmp_path, monkeypatch, caplog):
    original = TokenizerSystem.on_train_batch_end

    def spoil(self, *args) -> None:
        original(self, *args)
        if self.global_step >= 4:
            self.model.decoder.output_conv.weight.data.fill_(torch.nan)

    monkeypatch.setattr(TokenizerSystem, "on_train_batch_end", spoil)
    with pytest.raises((OSError, FloatingPointError)):
        fit("tokenizer", tmp_path / "run", "--trainer.max_steps=6", "--checkpoints.every_steps=3")
    assert checkpoint_of(tmp_path / "run")["global_step"] == 3


def test_the_first_device_may_fail_to_write_and_none_waits(tmp_path):
    """Where a file is in the way of the folder."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").touch()
    devices = ["--trainer.devices=2", "--trainer.strategy=ddp", "--checkpoints.every_steps=2"]
    args = arguments("tokenizer", run, *devices)
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "tokenizer", "fit", *args], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done.stderr
    assert "step 2 could not be saved ([Errno" in done.stderr
    assert "error: the run's end could not be saved: [Errno" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_whose_folder_is_removed_says_so_and_goes_on_in_a_new_one(tmp_path, monkeypatch, caplog, capfd):
    run, original = tmp_path / "run", TokenizerSystem.training_step

    def remove(self, *args) -> object:
        if self.global_step == 3:
            shutil.rmtree(run)
        return original(self, *args)

    monkeypatch.setattr(TokenizerSystem, "training_step", remove)
    fit("tokenizer", run, "--trainer.max_steps=12", "--checkpoints.every_steps=2")
    said = [message for message in caplog.messages if "No such file" in message]
    assert said[0].startswith(f"TensorBoard's log in {run}") and said[0].endswith("; the run goes on")
    assert "Traceback" not in capfd.readouterr().err
    assert checkpoint_of(run)["global_step"] == 12
    assert files_in(run) >= MODEL_FILES


class Killed(BaseException):
    """As kill -9 ends a process: nothing of the run comes after it."""


def test_two_ends_by_kill_of_a_run_by_epochs(tmp_path, monkeypatch):
    """At an epoch's end, which has no validation, and in the next one."""
    length = ("--trainer.max_steps=-1", "--trainer.max_epochs=3", "--checkpoints.every_steps=1")
    length += ("--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=4")
    whole, parts, save = fit("tokenizer", tmp_path / "whole", *length), tmp_path / "parts", RunCheckpoint._save
    for step, *more in ((6,), (8, "--ckpt_path=last"), (9, "--ckpt_path=last")):

        def save_and_end(self, trainer, step=step) -> None:
            save(self, trainer)
            if trainer.global_step == step:
                raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(RunCheckpoint, "_save", save_and_end)
            with pytest.raises(Killed):
                fit("tokenizer", parts, *length, *more)
    fit("tokenizer", parts, *length, "--ckpt_path=last")
    for part in (*BOTH, "loops", "TokenizerData"):
        assert_equal(checkpoint_of(whole)[part], checkpoint_of(parts)[part], part)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_end_is_saved_where_epochs_have_had_other_lengths(tmp_path, capsys):
    epochs = ("--trainer.max_steps=-1", "--trainer.max_epochs")
    run = fit("tokenizer", tmp_path / "run", epochs[0], f"{epochs[1]}=1")
    before = (run / "model" / "model.safetensors").read_bytes()
    capsys.readouterr()
    fit("tokenizer", run, epochs[0], f"{epochs[1]}=2", "--data.loading.batch_size=16", "--ckpt_path=last")
    assert checkpoint_of(run)["global_step"] == 6 + 3
    assert (run / "model" / "model.safetensors").read_bytes() != before
    assert "step 9 of 9, " in capsys.readouterr().out


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(tmp_path, damage, caplog):
    steps = ["--trainer.max_steps=7", "--checkpoints.every_steps=3", "--trainer.precision=32-true"]
    run = fit("tokenizer", tmp_path / "run", *steps)
    expected = checkpoint_of(run)
    damage(run / CHECKPOINT)
    caplog.clear()
    fit("tokenizer", run, *steps, "--ckpt_path=last")
    named, before = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"][:2]
    assert named.startswith(f"{run / CHECKPOINT} is damaged or no training checkpoint: ")
    assert before == f"going back to the one before: {run / 'checkpoints' / 'step-0000006.ckpt'}, step 6"
    for part in BOTH:
        assert_equal(checkpoint_of(run)[part], expected[part], part)
    assert (run / "checkpoints" / "last.ckpt.damaged").is_file()


def test_a_damaged_checkpoint_that_is_asked_for_by_name_is_refused(tmp_path, tokenizer_run):
    run = shutil.copytree(tokenizer_run, tmp_path / "run")
    flip(run / CHECKPOINT)
    for command in ("fit", "validate"):
        with pytest.raises(ValueError, match=r"last.ckpt is damaged or no training checkpoint: its digest"):
            train.train("tokenizer", [command, *arguments("tokenizer", run, f"--ckpt_path={run / CHECKPOINT}")])


def test_a_run_without_a_checkpoint_yet_begins_anew(tmp_path, caplog):
    """As kill -9 leaves one in its first minutes, also in the middle of its first checkpoint."""
    run = fit("tokenizer", tmp_path / "run")
    expected = checkpoint_of(run)
    (run / CHECKPOINT).rename(run / "checkpoints" / ".last.ckpt.part")
    (run / LOCK).write_text("process 1 on another\n")
    again = fit("tokenizer", run, "--ckpt_path=last")  # as a scheduler repeats its job
    assert_equal(checkpoint_of(again)["state_dict"], expected["state_dict"])
    assert f"no checkpoint in {run} yet: the run begins at its beginning" in caplog.messages
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    check_undamaged(run / CHECKPOINT)


def test_a_folder_that_is_being_written_is_refused(tmp_path, tokenizer_run):
    run = shutil.copytree(tokenizer_run, tmp_path / "run")
    before = files_in(run)
    with only_writer(run), pytest.raises(ValueError, match=f"run is being written by process {os.getpid()} on "):
        fit("tokenizer", run, "--ckpt_path=last", "--trainer.max_steps=9")
    assert files_in(run) == before
    assert load_config(run / "model")


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_done(tmp_path, monkeypatch, capsys):
    """Administrators may write anywhere: a file stands in the way."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(TokenizerSystem, "training_step", lambda *_: pytest.fail("trained"))
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: fit("tokenizer", tmp_path / "file" / "run"))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: [Errno") and str(tmp_path / "file") in line


def test_a_refused_run_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="missing: no such folder"):
        fit("tokenizer", tmp_path / "run", "--data.drawings=null", f"--data.folder={tmp_path / 'missing'}")
    assert list(tmp_path.iterdir()) == []
