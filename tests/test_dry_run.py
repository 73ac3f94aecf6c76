"""--check: what a run would take, found out without leaving anything; and what is said where memory runs out."""

import os
import re
import resource
import shutil
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import cli
import memory
import train
from callbacks import dry_run
from checkpoint_folder import CheckpointFolder
from memory import Memory, in_words, largest, memory_of, out_of_memory_said, own_memory, together
from tests.runs import MARKS, arguments, fit
from transformer.training import PriorSystem
from vqvae.training import TokenizerSystem

pytestmark = MARKS


@pytest.mark.parametrize("kind", ["tokenizer", "prior"])
def test_it_says_what_a_run_would_take_and_leaves_nothing(kind, tmp_path, extra, monkeypatch, capsys):
    done, written = [], []
    for name in ("training_step", "validation_step"):
        for system in (TokenizerSystem, PriorSystem):
            original = getattr(system, name)
            monkeypatch.setattr(
                system, name, lambda *args, name=name, original=original: (done.append(name), original(*args))[1]
            )
    write = CheckpointFolder.write
    monkeypatch.setattr(
        CheckpointFolder, "write", lambda self, state: (write(self, state), written.append(self.last.stat().st_size))
    )
    fit(kind, tmp_path / "runs" / "new", *extra[kind], "--trainer.max_steps=50", "--check")
    assert done == ["training_step", "training_step", "validation_step"]
    update, used, checkpoint = capsys.readouterr().out.splitlines()
    assert "; the 50 of this run 0:" in update
    assert used.startswith("memory: ") and used.endswith(" are there")
    assert checkpoint.startswith(f"a checkpoint: {in_words(written[0])}; ")
    assert checkpoint.endswith(" are free, and 3 have to fit")
    assert list(tmp_path.iterdir()) == []


def test_it_says_what_it_is_doing(tmp_path, caplog):
    caplog.set_level("INFO")
    fit("tokenizer", tmp_path / "run", "--check", "--trainer.accumulate_grad_batches=2")
    said = [line.getMessage() for line in caplog.records if line.getMessage().startswith("check: ")]
    assert [re.sub(r"took .*", "took", line) for line in said] == [
        "check: building the model",
        "check: looking through the data",
        "check: 2 updates of 2 batches each, then a batch of the validation and a checkpoint",
        "check: update 1 took",
        "check: update 2 took",
        "check: writing a checkpoint",
    ]


def test_no_list_of_unusable_files_stays(tmp_path):
    """Though one is asked for."""
    (tmp_path / "pictures").mkdir()
    for number in range(40):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / "pictures" / f"{number}.png")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"nothing")
    given = ["--data.drawings=null", f"--data.folder={tmp_path / 'pictures'}"]
    given += [f"--data.loading.report={tmp_path / 'report.json'}"]
    fit("tokenizer", tmp_path / "run", *given, "--check")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_validate_has_no_check(tokenizer_run):
    with pytest.raises(ValueError, match="--check is for fit"):
        train.train("tokenizer", ["validate", *arguments("tokenizer", tokenizer_run, "--check")])


@pytest.mark.parametrize(("share", "risk"), [(1.2, False), (1.05, True)])
def test_a_run_at_risk_is_told_what_to_do(share, risk, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dry_run, "memory_of", lambda device: Memory(100, int(100 * share)))
    fit("tokenizer", tmp_path / "run", "--check")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (4 if risk else 3)
    assert not risk or lines[3].startswith("at risk of running out of memory, with more than 90% of it taken: halve ")


def test_a_run_that_does_not_fit_ends_a_check(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "memory_of", lambda device: Memory(2**31, 2**30))
    with pytest.raises(ValueError, match=r"out of memory: 2.00 GiB were taken, 1.00 GiB are there: halve data"):
        fit("tokenizer", tmp_path / "run", "--check")


def test_processes_that_read_count(tmp_path, monkeypatch, capsys):
    """All of them, with what is theirs alone."""
    monkeypatch.setattr(dry_run, "memory_of", lambda device: Memory(0, 2**40))
    monkeypatch.setattr(dry_run, "own_memory", lambda processes: 2**30 * len(list(processes)))
    fit("tokenizer", tmp_path / "run", "--check", "--data.loading.workers=1")
    assert "memory: 2.00 GiB at most, 1024.00 GiB are there" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux'")
def test_what_a_process_has_for_itself():
    of_both = os.urandom(2**20) * 50
    ready, done = os.pipe(), os.pipe()
    if not (child := os.fork()):
        own = os.urandom(2**20) * 30
        os.write(ready[1], own[:1])
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    assert 30 * 2**20 <= own_memory([child]) < len(of_both)
    os.write(done[1], b".")
    os.waitpid(child, 0)
    assert own_memory([child]) == 0


def test_the_memory_of_several_devices():
    """The fullest GPU has to hold its part; processes share the memory of their machine."""
    memories = [Memory(10, 100), Memory(60, 80), Memory(70, 100), Memory(20, 100)]
    assert largest(memories) == Memory(60, 80)
    assert together(memories, machines=1) == Memory(160, 80)
    assert together(memories, machines=2) == Memory(80, 80)


def test_a_run_that_is_there_stays_as_it_is(tokenizer_run, tmp_path, capsys, caplog):
    run = shutil.copytree(tokenizer_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="holds a run already"):
        fit("tokenizer", run, "--check")
    fit("tokenizer", run, "--check", "--trainer.max_steps=50", "--ckpt_path=last")
    assert "; the 46 of this run" in capsys.readouterr().out
    changes = [line.getMessage() for line in caplog.records if line.getMessage().startswith("other than before: ")]
    assert changes == ["other than before: trainer.max_steps was 4 and is 50"]
    with pytest.raises(ValueError, match="nothing is left to do"):
        fit("tokenizer", run, "--check", "--ckpt_path=last")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_checkpoints_that_would_not_fit_are_told(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1000))
    with pytest.raises(ValueError, match=r"6 checkpoints of .* MiB do not fit on the disk of .*run, where 0.0 MiB are"):
        fit("tokenizer", tmp_path / "run", "--check", "--checkpoints.keep_last=5")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def full(self, checkpoint: dict) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointFolder, "write", full)
    with pytest.raises(OSError, match=r"a checkpoint could not be written: .*No space left"):
        fit("tokenizer", tmp_path / "run", "--check")


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_memory_that_runs_out_is_one_line_with_the_batch_size(check, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(TokenizerSystem, "training_step", lambda *_: torch.empty(2**62, dtype=torch.uint8))
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: fit("tokenizer", tmp_path / "run", *check))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory with data.loading.batch_size 8 on each device: halve data.loading.")
    assert "double trainer.accumulate_grad_batches" in line


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
        MemoryError(),
    ],
)
def test_memory_runs_out_in_several_ways(error):
    with pytest.raises(ValueError, match="batch_size 8"), out_of_memory_said(8):
        raise error


@pytest.mark.parametrize("more", [[], ["--check"]])
def test_a_model_that_does_not_fit(more, tokenizer_run, tmp_path, capsys):
    """Its embedding of texts alone would take more than any machine has."""
    given = [f"--tokenizer={tokenizer_run}", "--data.text.vocab_size=2000000000", *more]
    given += ["--model.prior.n_embd=65536", "--model.prior.n_head=1024"]
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: fit("prior", tmp_path / "run", *given))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory before the training began") and "data.text.vocab_size" in line


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match=r"^shapes$"), out_of_memory_said(8):
        raise RuntimeError("shapes")


def test_what_the_starting_process_had_does_not_count(tmp_path, monkeypatch):
    """`ru_maxrss` of a process begins with it."""
    large = SimpleNamespace(ru_maxrss=2**40)
    monkeypatch.setattr(resource, "getrusage", lambda who: large)
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t  900 kB\nVmHWM:\t  700 kB\nVmRSS:\t  300 kB\n")
    monkeypatch.setattr(memory, "STATUS", status)
    assert memory_of(torch.device("cpu")).peak == 700 * 1024
    status.unlink()
    assert memory_of(torch.device("cpu")).peak >= 2**40, "there is nothing better"


def test_memory_of_a_container(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CONTAINER_LIMIT", limit)
    whole = memory_of(torch.device("cpu"))
    assert 2**20 < whole.peak < whole.there
    limit.write_text("max\n")
    assert memory_of(torch.device("cpu")).there == whole.there
    limit.write_text("4096\n")
    assert memory_of(torch.device("cpu")).there == 4096
    assert (in_words(3 * 2**29), in_words(2**19)) == ("1.50 GiB", "0.5 MiB")
