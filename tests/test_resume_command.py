import shlex
import sys

import pytest

from resume_command import LAUNCHERS, resume_command

pytestmark = pytest.mark.usefixtures("no_launcher")

ARGS = ["fit", "--run", "my run", "--trainer.max_steps=3"]


@pytest.fixture
def no_launcher(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "before", [[], ["--check"], ["--ckpt_path", "other.ckpt"], ["--ckpt_path=other.ckpt"], ["--ckpt_path=last"]]
)
def test_what_was_typed_goes_on_from_the_last_checkpoint(before, monkeypatch):
    args = [*ARGS[:2], ARGS[2], *before, ARGS[3]]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "../train.py", "prior", *args])
    expected = ["python", "-X", "dev", "../train.py", "prior", *ARGS, "--ckpt_path", "last"]
    assert shlex.split(resume_command("prior", args)) == expected


def test_a_run_that_another_script_began(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "demo.py"])
    assert resume_command("prior", ARGS) == (
        "python train.py prior fit --run 'my run' --trainer.max_steps=3 --ckpt_path last"
    )


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_run_that_a_launcher_began(name, monkeypatch):
    """Each process has an interpreter and arguments of its own, with which one alone would wait for the others."""
    monkeypatch.setenv(name, "2")
    assert resume_command("prior", ARGS) == "the same launcher and command with --ckpt_path last"
