"""Two processes of a run, one of which is killed in the middle of a step: the other ends, and says why."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from tests.runs import MARKS, ROOT, arguments, checkpoint_of

pytestmark = MARKS


@pytest.mark.parametrize(
    ("strategy", "killed", "unseen", "said"),
    [
        ("ddp", 1, False, r"the process of device 1 (PID) was ended by SIGKILL, as where memory runs out: "),
        ("fsdp", 0, True, r"the process of device 0 (PID) has ended: "),
    ],
)
def test_the_other_one_ends(strategy, killed, unseen, said, tokenizer_run, tmp_path):
    planted = {"device": killed, "step": 3, "unseen": unseen}
    args = arguments(
        "prior",
        tmp_path / "run",
        f"--tokenizer={tokenizer_run}",
        "--trainer.devices=2",
        f"--trainer.strategy={strategy}",
        "--data.loading.batch_size=4",
        "--checkpoints.every_steps=1",
        "--trainer.callbacks+=tests.planted.Killed",
        *(f"--trainer.callbacks.{name}={value}" for name, value in planted.items()),
    )
    command = [sys.executable, ROOT / "train.py", "prior", "fit", *args]
    script = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = script.communicate(timeout=120)  # until both have ended
    finally:
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
    assert script.returncode == (1 if killed else -9), errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    before, after = said.split("PID")
    assert line.startswith(f"error: {before}") and after in line
    assert line.endswith("--ckpt_path last") and "To go on from the last checkpoint: " in line
    assert "Traceback" not in errors
    assert checkpoint_of(tmp_path / "run")["global_step"] == 2
