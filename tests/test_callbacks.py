"""The callbacks on a model of one weight, and with clocks, terminals and loggers that the tests hold."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks import pictures, progress
from callbacks.checkpoint import RunCheckpoint
from callbacks.event_log import EventLog
from callbacks.pictures import PictureWriter
from callbacks.progress import Progress
from checkpoint_folder import CheckpointFolder, CheckpointPolicy

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec|logging interval).*"),
    pytest.mark.filterwarnings("ignore:.*TensorBoard.*"),
]


class OneWeight(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = (self.weight - 1) ** 2
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", (self.weight - 1) ** 2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Clock:
    """time.monotonic, told by the test."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


class Ticking(pl.Callback):
    """Puts the clock forward before each step, so that it counts in the callbacks that follow."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def on_train_batch_start(self, *_) -> None:
        self.clock.now += self.seconds


def fit(
    *given: pl.Callback, steps: int = 6, batches: int = 2, loggers=False, ckpt_path: Path | None = None, **options
) -> pl.Trainer:
    if not any(isinstance(callback, Progress) for callback in given):
        options["enable_progress_bar"] = False
    options = {"num_sanity_val_steps": 1, "val_check_interval": 1} | options
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=list(given),
        max_steps=steps,
        logger=loggers,
        enable_checkpointing=any(isinstance(callback, RunCheckpoint) for callback in given),
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
    loader = DataLoader(torch.zeros(batches, 1))
    trainer.fit(OneWeight(), loader, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def solid(system: pl.LightningModule) -> Image.Image:
    return Image.new("RGB", (4, 4), (round(255 * float(system.weight.detach())), 0, 0))


# ---- pictures


def steps_drawn(folder: Path) -> list[int]:
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("*.png"))


def test_pictures_keep_their_distance_but_the_last_is_never_left_out(tmp_path, clock):
    fit(Ticking(clock, 10), PictureWriter("red", tmp_path, solid, seconds=30), steps=9)
    assert steps_drawn(tmp_path) == [1, 4, 7, 9]


def test_drawing_takes_a_small_share_of_the_time(tmp_path, clock):
    def slow(system: pl.LightningModule) -> Image.Image:
        clock.now += 5
        return solid(system)

    fit(Ticking(clock, 10), PictureWriter("red", tmp_path, slow, seconds=0), steps=24)
    assert steps_drawn(tmp_path) == [1, 11, 21, 24], "5 seconds of 100"


def test_no_picture_of_a_model_that_has_not_been_trained(tmp_path):
    drawn = []
    fit(PictureWriter("red", tmp_path, lambda system: drawn.append(1) or solid(system), seconds=0), steps=2)
    assert len(drawn) == 2, "the sanity check before the first step is none of them"


def test_pictures_show_averaged_weights(tmp_path):
    """The weight is 0.2, 0.36, ... and its average starts with the first of them."""
    averages = EMAWeightAveraging(decay=0.5)
    fit(PictureWriter("red", tmp_path, solid, seconds=0), averages, steps=2)
    reds = [Image.open(path).getpixel((0, 0))[0] for path in sorted(tmp_path.glob("*.png"))]
    assert reds == [round(255 * 0.2), round(255 * (0.2 + 0.36) / 2)]


def test_pictures_reach_tensorboard_and_whatever_has_log_image(tmp_path):
    class Images(DummyLogger):
        shown: list = []  # noqa: RUF012

        def log_image(self, key: str, images: list, step: int) -> None:
            self.shown.append((key, images[0].size, step))

    board = TensorBoardLogger(tmp_path, "board", version="")
    fit(PictureWriter("red", tmp_path, solid), loggers=[board, Images(), CSVLogger(tmp_path, "csv")], steps=1)
    assert Images.shown == [("red", (4, 4), 1)]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board")).Reload()
    (picture,) = events.Images("red")
    assert (picture.step, picture.width, picture.height) == (1, 4, 4)


def test_a_full_disk_costs_pictures_and_logs_but_not_the_run(tmp_path, clock, monkeypatch, caplog):
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    class FullAt3(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_) -> None:
            if trainer.global_step == 2:
                monkeypatch.setattr(pictures, "save_png", full)
                for name in ("add_event", "flush"):
                    monkeypatch.setattr(EventFileWriter, name, full)

    board = EventLog(tmp_path, "board", version="")
    drawn = PictureWriter("red", tmp_path, solid, seconds=0)
    fit(FullAt3(), drawn, checkpoints_in(tmp_path / "kept"), loggers=[board], steps=4)
    assert steps_drawn(tmp_path) == [1, 2]
    assert torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)["global_step"] == 4
    said = [message for message in caplog.messages if "No space left" in message]
    assert [message.split(" (")[0].split(":")[0] for message in said] == [
        f"TensorBoard's log in {board.log_dir} ends here",
        "the picture of step 3 could not be written",
        "the picture of step 4 could not be written",
    ]


# ---- checkpoints


def checkpoints_in(folder: Path, **policy) -> RunCheckpoint:
    return RunCheckpoint(CheckpointFolder(folder, CheckpointPolicy(**policy)))


def saved_steps(path: Path, monkeypatch) -> list[int]:
    steps = []
    original = pl.Trainer.save_checkpoint

    def save(self, file, *args, **kwargs):
        assert Path(file) == path
        steps.append(self.global_step)
        original(self, file, *args, **kwargs)

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", save)
    return steps


def test_a_checkpoint_every_so_often_and_after_the_last_step(tmp_path, clock, monkeypatch):
    steps = saved_steps(tmp_path / "last.ckpt", monkeypatch)
    fit(Ticking(clock, 30), checkpoints_in(tmp_path, every_minutes=2), steps=10)
    assert steps == [4, 8, 10]


def test_what_could_not_be_written_is_tried_again_within_a_minute(tmp_path, clock, monkeypatch):
    write, tried = CheckpointFolder.write, []

    def fail_twice(self, checkpoint: dict) -> None:
        tried.append(checkpoint["global_step"])
        if len(tried) < 3:
            raise OSError(28, "No space left on device")
        write(self, checkpoint)

    monkeypatch.setattr(CheckpointFolder, "write", fail_twice)
    checkpoint = checkpoints_in(tmp_path, every_minutes=2)
    fit(Ticking(clock, 30), checkpoint, steps=14)
    assert tried == [4, 6, 8, 12, 14]
    assert not checkpoint.failed


@pytest.mark.parametrize("interrupts", [False, True])
def test_a_signal_on_another_device_ends_the_run_here_too_for_one_exchange_a_step(tmp_path, monkeypatch, interrupts):
    """Another device is only played here: it is asked to stop in the third step."""
    asked = []

    def reduce(counts: torch.Tensor, reduce_op: str) -> torch.Tensor:
        asked.append(len(counts))
        elsewhere = [1, int(interrupts), 0] if len(asked) == 3 else [0] * len(counts)
        return counts + torch.tensor(elsewhere)

    class Two(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, *_) -> None:
            monkeypatch.setattr(type(trainer), "world_size", 2)
            monkeypatch.setattr(trainer.strategy, "reduce", reduce)

        def on_train_end(self, *_) -> None:
            monkeypatch.undo()

    checkpoint = checkpoints_in(tmp_path)
    trainer = fit(Two(), checkpoint, batches=9, limit_val_batches=0)
    assert (trainer.global_step, checkpoint.stopped, checkpoint.interrupted) == (3, True, interrupts)
    assert asked[:3] == [3, 3, 3]
    assert asked[3:] == [1], "whether it could be saved"


def test_the_last_checkpoint_holds_both_trained_and_averaged_weights(tmp_path):
    """Whatever the order in which they were given: Lightning puts checkpoints behind."""
    trainer = fit(checkpoints_in(tmp_path), EMAWeightAveraging(decay=0.5), steps=2)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["current_model_state"]["weight"] == pytest.approx(0.36)
    assert checkpoint["state_dict"]["weight"] == pytest.approx(0.28)
    assert trainer.lightning_module.weight.item() == pytest.approx(0.28)


def test_a_limit_of_time_ends_with_a_checkpoint(tmp_path, clock):
    fit(Ticking(clock, 10), checkpoints_in(tmp_path), steps=-1, max_time={"seconds": 25}, max_epochs=99)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_limit_of_time_lets_the_step_end(tmp_path, clock):
    """Two batches an update: the time is over after the fifth batch, the third step ends with the sixth."""
    options = {"max_time": {"seconds": 45}, "max_epochs": 99, "accumulate_grad_batches": 2}
    trainer = fit(Ticking(clock, 10), checkpoints_in(tmp_path), steps=-1, batches=8, **options)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == trainer.global_step == 3
    assert trainer.fit_loop.epoch_loop.total_batch_idx + 1 == 6


@pytest.mark.parametrize("each_epoch", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_early_stopping_ends_with_a_checkpoint(tmp_path, accumulate, each_epoch):
    """It stops at the third validation: after three batches, or three epochs of eight (where it decides later)."""
    stopping = EarlyStopping("val/loss", patience=1, min_delta=1.0)
    options = {"max_epochs": 99, "accumulate_grad_batches": accumulate, "num_sanity_val_steps": 0}
    options |= {"val_check_interval": 1.0} if each_epoch else {}
    checkpoint, averages = checkpoints_in(tmp_path), EMAWeightAveraging(decay=0.5)
    trainer = fit(stopping, checkpoint, averages, steps=-1, batches=8, **options)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == trainer.global_step > 0
    assert trainer.fit_loop.epoch_loop._accumulated_batches_reached() or each_epoch, "no step was cut"
    trained = 1 - 0.8**trainer.global_step
    assert saved["current_model_state"]["weight"] == pytest.approx(trained)
    assert saved["state_dict"]["weight"] == pytest.approx(trainer.lightning_module.weight.item()) != trained


def test_an_end_by_epochs(tmp_path, monkeypatch):
    steps = saved_steps(tmp_path / "last.ckpt", monkeypatch)
    fit(checkpoints_in(tmp_path), steps=-1, max_epochs=3)
    assert steps == [6]


# ---- progress


@pytest.fixture
def in_terminal(monkeypatch) -> Callable[[], None]:
    """To be called in the test: pytest puts another standard error in place for it."""
    return lambda: monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def test_a_line_now_and_then_where_there_is_no_terminal(clock, capsys):
    fit(Ticking(clock, 10), Progress(seconds=30), steps=8)
    said = capsys.readouterr()
    assert said.err == ""
    assert [line.split("  train/loss")[0] for line in said.out.splitlines()] == [
        "step 3 of 8, 0:50 left",
        "step 6 of 8, 0:20 left",
        "step 8 of 8, 1:20 in all",
    ]
    assert said.out.splitlines()[-1].endswith(f"train/loss {0.8**14:.4g}")


def test_the_end_of_a_resumed_run_is_estimated_from_its_own_steps(tmp_path, clock, capsys):
    fit(checkpoints_in(tmp_path), steps=4)
    given = [Ticking(clock, 10), Progress(seconds=10)]
    fit(*given, steps=8, ckpt_path=tmp_path / "last.ckpt")
    assert capsys.readouterr().out.splitlines()[0].startswith("step 5 of 8, 0:30 left")


def test_one_bar_over_the_whole_run_in_a_terminal(in_terminal, capsys):
    in_terminal()
    fit(Progress(), steps=6)
    said = capsys.readouterr()
    assert said.out == ""
    assert "6/6" in said.err
    assert "step" in said.err


def test_nothing_from_further_devices(in_terminal, clock, capsys):
    in_terminal()
    progress = Progress(seconds=0)
    progress.disable()
    fit(Ticking(clock, 10), progress, steps=4)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (36_061, "10:01:01")])
def test_clocks(seconds, shown):
    assert progress.clock(seconds) == shown
