"""Signals before a script has imported what it needs, and before a run has begun to train."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

import cli
import start_signals
import train
from tests.runs import MARKS, ROOT, files_in, fit
from vqvae.model import DiscreteVAE

pytestmark = MARKS

FIT = ["tokenizer", "fit", "--ckpt_path", "last"]


@pytest.fixture
def ended_by_import(tmp_path):
    """Runs a script whose first import of PyTorch is slow, and is signalled in the middle of that."""

    def ended_by_import(script: str, number: int, *args: str) -> tuple[int, str]:
        slow = (
            "import os, time\ntry:\n    os.kill(os.getpid(), {})\n    time.sleep(30)\nexcept BaseException:\n    pass\n"
        )
        (tmp_path / "torch.py").write_text(slow.format(int(number)))
        command = [sys.executable, str(ROOT / script), *args]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
        assert done.stdout == ""
        return done.returncode, done.stderr

    return ended_by_import


@pytest.mark.parametrize("script", ["train.py", "encode.py", "sample.py", "evaluate.py", "fit_palette.py", "demo.py"])
def test_ctrl_c_while_a_script_imports_is_one_line(script, ended_by_import):
    assert ended_by_import(script, signal.SIGINT, *FIT) == (130, "interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_machine_that_is_taken_away_while_train_py_imports(number, ended_by_import):
    code, said = ended_by_import("train.py", number, *FIT)
    assert code == 0
    assert said == f"ended by {number.name} before the training began; the same command starts it again\n"


@pytest.mark.parametrize("args", [["tokenizer", "fit", "--check"], ["prior", "validate"]])
def test_what_is_no_training_ends_as_other_programs_do(args, ended_by_import):
    """A script that goes on after it would take exit code 0 for success."""
    assert ended_by_import("train.py", signal.SIGTERM, *args) == (-signal.SIGTERM, "")


@pytest.fixture
def installed() -> Iterator[None]:
    """As by the first lines of train.py, in this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *start_signals.TAKEN_AWAY)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in start_signals.TAKEN_AWAY:
        signal.signal(number, signal.SIG_DFL)
    start_signals.install(trains=True)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


PLACES = [(DiscreteVAE, "__init__"), (train.TokenizerCLI, "prepare"), (train.TokenizerSystem, "on_fit_start")]


@pytest.mark.parametrize(("system", "name"), PLACES)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 130)])
def test_signals_while_a_run_is_set_up(system, name, number, code, installed, tmp_path, monkeypatch, capfd):
    """The model is built, the data are read, the Trainer begins: no lock stays, and the same command trains."""
    original = getattr(system, name)

    def signalled(*args, **kwargs):
        signal.raise_signal(number)
        return original(*args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stop:
        patched.setattr(system, name, signalled)
        cli.run(lambda: fit("tokenizer", tmp_path / "run"))
    assert stop.value.code == code
    said = capfd.readouterr().err
    assert said.splitlines() == [
        "interrupted"
        if number == signal.SIGINT
        else f"ended by {number.name} before the training began; the same command starts it again"
    ]
    assert files_in(tmp_path) <= {"run/config.yaml", "run/tensorboard/events", "run/tensorboard/hparams.yaml"}


def test_after_a_run_signals_are_as_they_were_by_themselves(installed, tmp_path):
    cli.run(lambda: fit("tokenizer", tmp_path / "run", "--trainer.max_steps=1"))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_after_an_error_of_the_training_hides_no_error(installed, tmp_path, monkeypatch, capfd):
    """It ends the process as it ends others, and not with exit code 0 and words of the time before the training."""

    def fails(*_: object) -> None:
        raise ValueError("planted")

    ended = []
    monkeypatch.setattr(train.TokenizerSystem, "training_step", fails)
    with pytest.raises(SystemExit, match="2"):
        cli.run(lambda: fit("tokenizer", tmp_path / "run"))
    monkeypatch.setattr(os, "kill", lambda *process_and_number: ended.append(process_and_number))
    signal.raise_signal(signal.SIGTERM)
    assert ended == [(os.getpid(), signal.SIGTERM)]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert capfd.readouterr().err == "error: planted\n"


def test_signals_that_are_ignored_stay_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        start_signals.install()
        start_signals.imports_over()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_forked_process_is_ended_by_its_parent(installed):
    if not (child := os.fork()):
        signal.raise_signal(signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_a_further_device_leaves_its_end_to_be_missed(monkeypatch):
    assert start_signals.trains(FIT)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not start_signals.trains(FIT)
