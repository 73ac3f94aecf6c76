"""Two processes of a run, one of which is killed in the middle of a step: the other ends and says why, and a single one
goes on."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Event
from types import SimpleNamespace

import pytest
import torch

import process_watch
from process_watch import processes_watched, watch_first_process
from tests.runs import MARKS, ROOT, arguments, checkpoint_of, fit

pytestmark = MARKS


def on_two(kind: str, run: Path, *given: str) -> tuple[int, str]:
    """The first process's exit code, and what both have said on standard error until both have ended."""
    args = arguments(kind, run, *given, "--trainer.devices=2", "--data.loading.batch_size=4")
    command = [sys.executable, ROOT / "train.py", kind, "fit", *args]
    script = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = script.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
    return script.returncode, errors


@pytest.mark.parametrize(
    ("kind", "strategy", "killed", "unseen", "said"),
    [
        ("tokenizer", "ddp", 1, False, ("device 1", "was ended by SIGKILL, as where memory runs out: ")),
        ("prior", "fsdp", 0, True, ("device 0", "has ended: ")),
    ],
)
def test_one_process_is_killed(kind, strategy, killed, unseen, said, tmp_path, extra):
    """The tokenizer's quantizer is one that draws nothing: others draw otherwise on another number of devices."""
    given = [*extra[kind], "--trainer.precision=32-true", "--checkpoints.every_steps=1"]
    given += ["--model.vae.quantizer=lfq"] if kind == "tokenizer" else []
    planted = {"device": killed, "step": 3, "unseen": unseen}
    callback = ["--trainer.callbacks+=tests.planted.Killed"]
    callback += [f"--trainer.callbacks.{name}={value}" for name, value in planted.items()]
    code, errors = on_two(kind, tmp_path / "run", *given, f"--trainer.strategy={strategy}", *callback)
    assert code == (1 if killed else -signal.SIGKILL), errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: the process of {said[0]} (") and said[1] in line
    assert "To go on from the last checkpoint: " in line and line.endswith("--ckpt_path last")
    assert "Traceback" not in errors
    assert checkpoint_of(tmp_path / "run")["global_step"] == 2

    run = fit(kind, tmp_path / "run", *given, "--ckpt_path=last")
    losses = [checkpoint_of(each)["update_watch"]["losses"] for each in (run, fit(kind, tmp_path / "alone", *given))]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.fixture
def ends(monkeypatch) -> Iterator[Queue]:
    """What was said in the place of ending this process."""
    monkeypatch.setenv(process_watch.STARTED_BY, "")
    said = Queue()
    monkeypatch.setattr(process_watch, "_end", said.put)
    yield said
    process_watch._over.set()


def trainer_of(process: str) -> SimpleNamespace:
    """Of the first process, which has started one that does this."""
    started = subprocess.Popen([sys.executable, "-S", "-c", process])
    strategy = SimpleNamespace(launcher=SimpleNamespace(procs=[started]), setup_environment=lambda: None)
    return SimpleNamespace(world_size=2, strategy=strategy)


@pytest.fixture
def trainer() -> SimpleNamespace:
    """Of the first process, which has started one that ends by an error."""
    return trainer_of("raise SystemExit(3)")


def test_an_error_in_a_process_that_a_cluster_has_started_stays_one(monkeypatch, ends, trainer):
    """srun and mpirun set no LOCAL_RANK, so that each process begins as a first one does, whatever its device."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    watch_first_process("")
    trainer.strategy.launcher.procs.clear()
    with pytest.raises(torch.OutOfMemoryError), processes_watched(trainer):
        trainer.strategy.setup_environment()
        raise torch.OutOfMemoryError("out of memory")
    assert ends.empty()


@pytest.mark.parametrize("code", [0, 3, 130])
def test_a_process_that_ends_before_all_have_met_is_seen(code, monkeypatch, ends):
    """Then the first one waits for it, also for one that Ctrl-C has ended, and Lightning's own watch would kill it."""
    trainer = trainer_of(f"raise SystemExit({code})")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    watch_first_process("to go on: ...", patience=0)
    of_lightning, met = trainer.strategy.launcher.procs, Event()
    trainer.strategy.setup_environment = met.wait
    monkeypatch.setattr(process_watch, "_end", lambda message: (ends.put(message), met.set()))
    with processes_watched(trainer):
        trainer.strategy.setup_environment()
    assert "device 1 (" in (said := ends.get(timeout=20)) and said.endswith(f") ended with exit code {code}")
    assert of_lightning == [] and len(trainer.strategy.launcher.procs) == 1, "whom Lightning ends at Ctrl-C"


def test_a_process_that_ctrl_c_has_ended_in_order_is_not_missed(monkeypatch, ends):
    """The first one may be busy for long after the last step."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    watch_first_process("", patience=0)
    trainer = trainer_of("raise SystemExit(130)")
    (process,) = trainer.strategy.launcher.procs
    with processes_watched(trainer):
        trainer.strategy.setup_environment()
        assert process.wait(timeout=20) == 130
        with pytest.raises(Empty):
            ends.get(timeout=3 * process_watch.EVERY)


@pytest.mark.parametrize("met", [False, True])
def test_a_first_process_that_a_signal_ends_ends_the_others_before_it(met, monkeypatch, ends):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    watch_first_process("")
    trainer = trainer_of("import time; time.sleep(60)")
    (process,) = trainer.strategy.launcher.procs
    try:
        with pytest.raises(SystemExit), processes_watched(trainer):
            if met:
                trainer.strategy.setup_environment()
            raise SystemExit(0)
        assert process.wait(timeout=5) == -signal.SIGKILL
    finally:
        process.kill()
    assert ends.empty()


@pytest.mark.parametrize(("device", "says"), [("1", True), ("2", False)])
def test_further_processes_end_when_the_first_one_has_and_one_says_so(monkeypatch, ends, device, says):
    monkeypatch.setenv("LOCAL_RANK", device)
    monkeypatch.setenv(process_watch.STARTED_BY, f"{os.getppid()}")
    process_watch._over.clear()
    watch_first_process("", patience=0)
    with pytest.raises(Empty):
        ends.get(timeout=3 * process_watch.EVERY)
    first = os.getppid()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    said = ends.get(timeout=20)
    assert said == (f"the process of device 0 ({first}) has ended" if says else None)
