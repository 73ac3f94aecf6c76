"""The devices of a run go on from one checkpoint: the first one's choice, or none goes on."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from pytorch_lightning.utilities.rank_zero import rank_zero_only

import run_cli
from callbacks.same_checkpoint import Resumed, SameCheckpoint
from checkpoint_folder import CheckpointFolder, CheckpointPolicy
from run_cli import CHOSEN, RunCLI
from tests.test_checkpoint_files import checkpoint_at
from tests.test_checkpoint_folder import flip, load


@pytest.fixture
def run(tmp_path, monkeypatch) -> SimpleNamespace:
    """What choosing needs of a RunCLI; its folder has the checkpoints of steps 5 and 9."""
    files = CheckpointFolder(tmp_path, CheckpointPolicy())
    for step in (5, 9):
        files.write(checkpoint_at(step))
    monkeypatch.setattr(run_cli, "load_checkpoint", lambda path, model, keys: load(Path(path)))
    monkeypatch.setenv(CHOSEN, "the one of another run in this process")
    return SimpleNamespace(files=files, model=None)


def chosen_by(device: int, run: SimpleNamespace, monkeypatch) -> tuple[Path, int]:
    monkeypatch.setattr(rank_zero_only, "rank", device)
    path, checkpoint = RunCLI._existing_checkpoint(run, "last")
    return path, checkpoint["global_step"]


def test_the_first_process_chooses_for_those_that_it_starts(run, monkeypatch):
    flip(run.files.last)
    assert chosen_by(0, run, monkeypatch) == (run.files.folder / "step-0000005.ckpt", 5)
    run.files.write(checkpoint_at(12))
    assert chosen_by(1, run, monkeypatch) == (run.files.folder / "step-0000005.ckpt", 5)
    flip(run.files.folder / "step-0000005.ckpt")
    with pytest.raises(ValueError, match=r"step-0000005\.ckpt is damaged"):
        chosen_by(1, run, monkeypatch)
    assert chosen_by(0, run, monkeypatch)[1] == 12


def test_processes_that_a_cluster_has_started_choose_by_themselves(run, monkeypatch):
    monkeypatch.delenv(CHOSEN)
    assert chosen_by(1, run, monkeypatch) == (run.files.last, 9)


def meet(monkeypatch, device: int, *everywhere: Resumed | None, stage: str = "fit") -> None:
    """On one device of several."""

    def gather(found: list, sent: Resumed | None) -> None:
        assert sent is everywhere[device]
        found[:] = everywhere

    monkeypatch.setattr(dist, "all_gather_object", gather)
    same = SameCheckpoint()
    same.resumed = everywhere[device]
    same.setup(SimpleNamespace(world_size=len(everywhere)), None, stage)


def resumed(files: CheckpointFolder, step: int) -> Resumed:
    files.write(checkpoint_at(step))
    return Resumed.of(files.last, load(files.last))


def test_other_checkpoints_on_other_devices_are_refused_everywhere(run, tmp_path, monkeypatch):
    one, two = (resumed(CheckpointFolder(tmp_path / name, CheckpointPolicy()), 9) for name in ("one", "two"))
    meet(monkeypatch, 0, one, two)  # copies, each on its own machine
    meet(monkeypatch, 1, None, None)
    later = resumed(run.files, 12)
    for devices, said in [
        ((one, two, later), r"device 0 .*one/last\.ckpt, step 9 \(.*, device 2 goes on from .*last\.ckpt, step 12 \("),
        ((later, None), r"last\.ckpt, step 12 \(.*, device 1 goes on from no checkpoint: "),
        ((None, later), r"device 0 goes on from no checkpoint, device 1 goes on from .*, step 12 \("),
    ]:
        for device in range(len(devices)):
            with pytest.raises(ValueError, match=said):
                meet(monkeypatch, device, *devices)


def test_what_is_only_measured_is_not_gone_on_from(run, tmp_path, monkeypatch):
    one, two = resumed(CheckpointFolder(tmp_path / "one", CheckpointPolicy()), 9), resumed(run.files, 12)
    with pytest.raises(ValueError, match=r"^device 0 measures .*, step 9 \(.*, device 1 measures .*, step 12 \("):
        meet(monkeypatch, 1, one, two, stage="validate")


def test_weights_of_the_same_step_from_another_run_are_others(tmp_path, monkeypatch):
    files = CheckpointFolder(tmp_path, CheckpointPolicy())
    one = resumed(files, 9)
    other = checkpoint_at(9)
    next(iter(other["state_dict"].values())).add_(1)
    files.write(other)
    with pytest.raises(ValueError, match=r"expected the same file everywhere"):
        meet(monkeypatch, 0, one, Resumed.of(files.last, load(files.last)))
