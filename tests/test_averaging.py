"""The average is Lightning's; how it goes with spread weights is in test_sharding.py."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from averaging import Average, WeightAveraging

pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec|logging interval).*")


class Model(pl.LightningModule):
    """Two weights that are learnt, a buffer of numbers, one of counts, and one that no checkpoint has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        with torch.no_grad():
            for i, parameter in enumerate(self.linear.parameters()):
                parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape) + i)
        self.register_buffer("moving", torch.zeros(3))
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.validated: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.moving += 1
        self.scratch += 1
        return self.linear(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(torch.cat([tensor.detach().flatten() for tensor in self.state_dict().values()]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(average: pl.Callback, steps: int = 6, ckpt_path: Path | None = None) -> tuple[Model, pl.Trainer]:
    loader = DataLoader(torch.arange(4.0).view(2, 2), batch_size=1)
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, max_steps=steps, val_check_interval=2, callbacks=[average], **options
    )
    model = Model()
    trainer.fit(model, loader, loader, ckpt_path=ckpt_path, weights_only=True)
    return model, trainer


SETTINGS = [{}, {"use_buffers": False}, {"update_every_n_steps": 2}, {"update_starting_at_step": 3}, {"device": "cpu"}]


@pytest.mark.parametrize("settings", SETTINGS)
def test_equals_lightnings(settings, tmp_path):
    models, checkpoints = [], []
    for kind in (WeightAveraging, EMAWeightAveraging):
        model, trainer = fit(kind(decay=0.7, **settings))
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        models.append(model)
        checkpoints.append(torch.load(tmp_path / "last.ckpt", weights_only=True))
    ours, theirs = models
    for mine, reference in zip(ours.validated, theirs.validated, strict=True):
        torch.testing.assert_close(mine, reference)
    for part in ("state_dict", "current_model_state", "averaging_state"):
        torch.testing.assert_close(checkpoints[0][part], checkpoints[1][part])
    assert checkpoints[0]["callbacks"] == checkpoints[1]["callbacks"]
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert not torch.allclose(ours.state_dict()["linear.weight"], Model().state_dict()["linear.weight"])


class Save(WeightAveraging):
    """Saves after an update, as RunCheckpoint does."""

    def __init__(self, path: Path, step: int) -> None:
        super().__init__(decay=0.7)
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *args) -> None:
        super().on_train_batch_end(trainer, *args)
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("kind", [WeightAveraging, EMAWeightAveraging])
def test_goes_on_from_a_checkpoint(kind, tmp_path):
    """One of Lightning's too: runs begun before this class go on."""
    saver = Save(tmp_path / "four.ckpt", 4)
    whole, _ = fit(saver)
    if kind is EMAWeightAveraging:
        saver = EMAWeightAveraging(decay=0.7)
        fit(saver, steps=4)[1].save_checkpoint(tmp_path / "end.ckpt")
        checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
        ours = torch.load(tmp_path / "four.ckpt", weights_only=True)
        checkpoint["current_model_state"] = ours["current_model_state"]  # where a fit's end leaves the average
        torch.save(checkpoint, tmp_path / "four.ckpt")
    resumed, _ = fit(WeightAveraging(decay=0.7), ckpt_path=tmp_path / "four.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict())


def test_a_checkpoint_without_an_average_begins_one(tmp_path):
    fit(pl.Callback(), steps=4)[1].save_checkpoint(tmp_path / "four.ckpt")
    last = torch.load(tmp_path / "four.ckpt", weights_only=True)["state_dict"]
    resumed, _ = fit(WeightAveraging(decay=1.0), steps=6, ckpt_path=tmp_path / "four.ckpt")
    average = resumed.state_dict()["moving"]  # the first update takes the weights as they are, the second nothing
    torch.testing.assert_close(average, last["moving"] + 1)


def test_whole_numbers_are_never_averaged():
    model = Model()
    average = Average(model, 0.9, None, buffers=True)
    for count in (7, 8, 8):
        model.count.fill_(count)
        average.update_parameters(model)
    assert average.shares["count"] == 8


class Reads(TorchDispatchMode):
    """How often a number is read from a tensor."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "_local_scalar_dense" in func.__name__
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [WeightAveraging, EMAWeightAveraging])
def test_an_update_reads_no_number(kind):
    """As Lightning's does, which has the host wait for a GPU at each."""
    average = kind(decay=0.7)
    model, _ = fit(average)
    with Reads() as reads:
        average._average_model.update_parameters(model)
    assert (reads.count > 0) == (kind is EMAWeightAveraging)


def test_an_impossible_decay_is_refused():
    with pytest.raises(ValueError, match=r"ema\.decay is 1\.5, expected 0 to 1"):
        WeightAveraging(decay=1.5)
