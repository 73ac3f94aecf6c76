"""Which checkpoints of a run stay, which one it goes on from, and what a death at any moment leaves."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import checkpoint_files
from checkpoint_files import check_undamaged
from checkpoint_folder import CheckpointFolder, CheckpointPolicy
from tests.test_checkpoint_files import checkpoint_at


def folder_in(path: Path, **policy) -> CheckpointFolder:
    return CheckpointFolder(path / "checkpoints", CheckpointPolicy(**policy))


def names(files: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in files.folder.iterdir())


def load(path: Path) -> dict:
    check_undamaged(path)
    return torch.load(path, weights_only=True)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def steps_kept(files: CheckpointFolder, steps: list[int]) -> list[int]:
    for step in steps:
        files.write(checkpoint_at(step))
    assert load(files.last)["global_step"] == steps[-1]
    return [load(path)["global_step"] for path in files.newest_first()]


@pytest.mark.parametrize(
    ("policy", "steps", "kept"),
    [
        ({}, [5], [5]),
        ({}, [5, 9, 12], [12, 9]),
        ({"keep_last": 1}, [5, 9, 12], [12]),
        ({"keep_last": 3}, [5, 9, 12, 13], [13, 12, 9]),
        ({"keep_every": 10}, [5, 9, 12, 15, 18, 21, 26, 29, 31], [31, 29, 21, 12, 5]),
        ({"keep_every": 10, "keep_last": 1}, [5, 12, 15, 18], [18, 12, 5]),
        ({}, [5, 9, 9, 9], [9, 5]),
    ],
)
def test_what_stays(tmp_path, policy, steps, kept):
    assert steps_kept(folder_in(tmp_path, **policy), steps) == kept


def test_a_resumed_run_prunes_as_one_that_went_through(tmp_path):
    steps = [5, 9, 12, 15, 18, 21, 26, 29, 31]
    for step in steps:
        folder_in(tmp_path / "parts", keep_every=10).write(checkpoint_at(step))
    steps_kept(folder_in(tmp_path / "whole", keep_every=10), steps)
    assert names(folder_in(tmp_path / "parts")) == names(folder_in(tmp_path / "whole"))


def test_what_has_another_name_is_not_ours(tmp_path):
    files = folder_in(tmp_path)
    steps_kept(files, [2, 5])
    others = ["step-0000002-good.ckpt", "step-best.ckpt", "step-.ckpt", "step-²3.ckpt"]
    for name in others:
        (files.folder / name).write_bytes(files.last.read_bytes())
    assert steps_kept(files, [9, 12]) == [12, 9]
    assert set(names(files)) == {"last.ckpt", "step-0000009.ckpt", *others}


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("missing")])
@pytest.mark.parametrize("name", ["last.ckpt", "step-0000002.ckpt"])
def test_what_is_no_file_is_named(tmp_path, make, name):
    """A pipe would be waited for, in place of a folder nothing could be written, once the first checkpoint is due."""
    files = folder_in(tmp_path)
    files.folder.mkdir()
    make(files.folder / name)
    for look in (files.newest_first, lambda: files.newest_good(load)):
        with pytest.raises(ValueError, match=f"{name} is no file: expected a checkpoint, or nothing of that name"):
            look()


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-500]), Path.unlink])
def test_the_one_before_is_taken_and_said(tmp_path, damage, caplog):
    files = folder_in(tmp_path)
    steps_kept(files, [5, 9])
    damage(files.last)
    path, checkpoint = folder_in(tmp_path).newest_good(load)
    assert (path.name, checkpoint["global_step"]) == ("step-0000005.ckpt", 5)
    if damage is not Path.unlink:
        first, second = caplog.messages
        assert first.startswith(f"{files.last} is damaged")
        assert second == f"going back to the one before: {path}, step 5"


def test_damaged_ones_are_set_aside_by_the_next_save(tmp_path):
    """They stay until then, so that each process of a run finds the same."""
    files = folder_in(tmp_path, keep_last=3)
    steps_kept(files, [5, 9, 12])
    flip(files.last)
    flip(files.folder / "step-0000009.ckpt")
    for again in (files, folder_in(tmp_path, keep_last=3)):
        assert again.newest_good(load)[1]["global_step"] == 5
    again.write(checkpoint_at(7))
    again.write(checkpoint_at(8))
    assert [load(path)["global_step"] for path in again.newest_first()] == [8, 7, 5]
    assert {"last.ckpt.damaged", "step-0000009.ckpt.damaged"} < set(names(again))


def test_a_checkpoint_that_is_damaged_while_the_run_goes_on_stops_nothing(tmp_path, caplog):
    files = folder_in(tmp_path)
    steps_kept(files, [5, 9])
    files.last.write_bytes(b"nothing")
    assert steps_kept(files, [12]) == [12, 5]
    assert f"{files.last} is damaged" in caplog.text


def test_where_all_are_damaged_each_is_named(tmp_path):
    files = folder_in(tmp_path)
    steps_kept(files, [5, 9])
    for path in files.newest_first():
        flip(path)
    with pytest.raises(ValueError, match=r"last.ckpt is damaged .*step-0000005.ckpt is damaged"):
        files.newest_good(load)
    with pytest.raises(ValueError, match=r"no checkpoint .*last.ckpt"):
        folder_in(tmp_path / "another").newest_good(load)


def test_only_damage_leads_to_the_one_before(tmp_path):
    """A checkpoint of another model is refused, not passed over."""
    files = folder_in(tmp_path)
    steps_kept(files, [5, 9])

    def refuse(path: Path) -> dict:
        raise ValueError(f"{path.name} is of another model")

    with pytest.raises(ValueError, match=r"last.ckpt is of another model"):
        files.newest_good(refuse)


OPERATIONS = [(os, "fsync"), (Path, "replace"), (Path, "unlink"), (checkpoint_files, "_save")]


@pytest.fixture
def killed_after() -> Callable[[Callable[[], None], int], bool]:
    """Runs a function in a process that dies right before or after its nth operation on files; whether it did."""

    def killed_after(function: Callable[[], None], moments: int) -> bool:
        child = os.fork()
        if not child:
            left = [moments]

            def tick() -> None:
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1

            def ticking(original: Callable) -> Callable:
                def operation(*args):
                    tick()
                    result = original(*args)
                    tick()
                    return result

                return operation

            try:
                for owner, name in OPERATIONS:
                    setattr(owner, name, ticking(getattr(owner, name)))
                function()
                os._exit(0)
            finally:
                os._exit(1)  # not into the tests that follow
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL)
        return os.WIFSIGNALED(status)

    return killed_after


def test_death_at_any_moment_of_a_save_loses_nothing(tmp_path, killed_after, caplog):
    moments = 0
    while True:
        files = folder_in(tmp_path / str(moments))
        steps_kept(files, [5, 9])
        died = killed_after(lambda files=files: files.write(checkpoint_at(12)), moments)
        again = folder_in(tmp_path / str(moments))
        assert again.newest_good(load)[1]["global_step"] in (9, 12)
        assert {load(path)["global_step"] for path in again.newest_first()} >= {9}, "the one before is there as well"
        again.write(checkpoint_at(13))
        assert [name for name in names(again) if name.startswith(".")] == []
        assert again.newest_good(load)[1]["global_step"] == 13
        if not died:
            break
        moments += 1
    assert moments > 10
    assert caplog.messages == [], "no good one counted as damaged"


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    files = folder_in(tmp_path)
    steps_kept(files, [5, 9])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_files.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            files.write(checkpoint_at(12))
    assert names(files) == ["last.ckpt", "step-0000005.ckpt"]
    assert steps_kept(files, [13]) == [13, 9]


@pytest.mark.parametrize("renames", [0, 1])
def test_a_rename_that_fails_leaves_no_part(tmp_path, renames, monkeypatch):
    files = folder_in(tmp_path)
    steps_kept(files, [5, 9])
    replace, done = Path.replace, []

    def fail(path: Path, target: Path) -> Path:
        if len(done) == renames:
            raise OSError(30, "Read-only file system")
        done.append(path)
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="Read-only"):
            files.write(checkpoint_at(12))
    assert names(files) == [["last.ckpt", "step-0000005.ckpt"], ["step-0000005.ckpt", "step-0000009.ckpt"]][renames]
    assert steps_kept(files, [13]) == [13, 9]


@pytest.mark.parametrize(
    "wrong",
    [{"every_minutes": -1}, {"every_minutes": float("nan")}, {"every_steps": 0}, {"keep_last": 0}, {"keep_every": -3}],
)
def test_settings_outside_their_ranges(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"checkpoints.{name} is {value}, expected at least"):
        CheckpointPolicy(**wrong)


def test_a_reader_beside_a_run_that_trains_finds_none_damaged(tmp_path, monkeypatch):
    """At each step of its reading, the run has just written another one."""
    files, model = folder_in(tmp_path, keep_last=2), nn.Linear(3, 2, bias=False)
    steps, writing = iter(range(1, 100)), False

    def beside(function: Callable) -> Callable:
        def call(*args):
            nonlocal writing
            if not writing and (step := next(steps)) <= 8:
                writing = True
                files.write(checkpoint_at(step))
                writing = False
            return function(*args)

        return call

    files.write(checkpoint_at(0))
    for name in ("_end", "_digest", "_read"):
        monkeypatch.setattr(checkpoint_files, name, beside(getattr(checkpoint_files, name)))
    reader = folder_in(tmp_path)
    path, checkpoint = reader.newest_good(lambda path: checkpoint_files.load_checkpoint(path, model))
    assert (path, checkpoint["global_step"]) == (files.last, 8)
    assert torch.equal(checkpoint["state_dict"]["weight"], checkpoint_at(8)["state_dict"]["weight"])


def test_one_that_is_replaced_for_ever_is_no_hang(tmp_path, monkeypatch):
    files = folder_in(tmp_path)
    files.write(checkpoint_at(0))
    identities = iter(range(100))
    monkeypatch.setattr(checkpoint_files, "_identity", lambda path: next(identities))
    with pytest.raises(OSError, match="replaced again and again"):
        checkpoint_files.load_checkpoint(files.last, nn.Linear(3, 2, bias=False))


def test_one_that_cannot_be_removed_is_said(tmp_path, monkeypatch, caplog):
    files = folder_in(tmp_path, keep_last=1)
    files.write(checkpoint_at(0))

    def refuse(self) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refuse)
    files.write(checkpoint_at(1))
    assert files.written and load(files.last)["global_step"] == 1
    assert "step-0000000.ckpt could not be removed: Operation not permitted" in caplog.text
