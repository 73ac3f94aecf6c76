import shlex
import sys

import pytest

from resume_command import resume_command

ARGS = ["fit", "--run", "my run", "--trainer.max_steps=3"]


@pytest.mark.parametrize(
    "before", [[], ["--ckpt_path", "other.ckpt"], ["--ckpt_path=other.ckpt"], ["--ckpt_path=last"]]
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
