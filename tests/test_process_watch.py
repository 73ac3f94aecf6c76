"""Two processes of a run, one of which is killed in the middle of a step: the other ends, and says why."""

import subprocess
import sys

import pytest

from tests.runs import MARKS, ROOT, arguments, checkpoint_of

pytestmark = MARKS


@pytest.mark.parametrize(
    ("strategy", "killed", "said"),
    [
        ("ddp", 1, r"the process of device 1 (PID) was ended by SIGKILL, as where memory runs out: "),
        ("fsdp", 0, r"the process of device 0 (PID) has ended: "),
    ],
)
def test_the_other_one_ends(strategy, killed, said, tokenizer_run, tmp_path):
    planted = ["--trainer.callbacks+=tests.planted.Killed", f"--trainer.callbacks.device={killed}"]
    args = arguments(
        "prior",
        tmp_path / "run",
        f"--tokenizer={tokenizer_run}",
        "--trainer.devices=2",
        f"--trainer.strategy={strategy}",
        "--data.loading.batch_size=4",
        "--checkpoints.every_steps=1",
        *planted,
        "--trainer.callbacks.step=3",
    )
    script = subprocess.Popen(
        [sys.executable, ROOT / "train.py", "prior", "fit", *args], stderr=subprocess.PIPE, text=True
    )
    _, errors = script.communicate(timeout=120)  # until both have closed it
    assert script.returncode == (1 if killed else -9), errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    before, after = said.split("PID")
    assert line.startswith(f"error: {before}") and after in line
    assert line.endswith("--ckpt_path last") and "To go on from the last checkpoint: " in line
    assert "Traceback" not in errors
    assert checkpoint_of(tmp_path / "run")["global_step"] == 2
