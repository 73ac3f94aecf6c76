"""A training step never reads a number back from the device, which would have the host wait for it.

Tensors on the meta device have no numbers to read, and the code takes the ways there that it takes on a GPU; only the
attention's kernels are for GPUs alone, and their forward pass is tried on fake tensors that say they are on one. What
Lightning adds is watched on a CPU.
"""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader

from callbacks.update_watch import UpdateWatch
from kernels import limits
from tests.no_reading import Watch
from transformer.throughput import Throughput
from transformer.training import OptimConfig, PriorSystem

OPTIM = OptimConfig(lr=1e-2, warmup_steps=2, decay="cosine")


def system_of(config, monkeypatch) -> PriorSystem:
    """With the least of a Trainer that a step needs."""
    system = PriorSystem(config, OptimConfig(muon_lr=1e-2)).train()
    settings = {"world_size": 1, "global_rank": 0, "global_step": 3, "precision": "32-true"}
    settings |= {"log_every_n_steps": 2, "barebones": False}
    monkeypatch.setattr(PriorSystem, "trainer", SimpleNamespace(**settings))
    for name in ("log", "log_dict"):
        monkeypatch.setattr(PriorSystem, name, lambda *args, **kwargs: None)
    system.throughput = Throughput(config.seq_len, None, 1.0)
    return system


def batch_of(config, count: int = 3) -> dict[str, torch.Tensor]:
    text_tokens = torch.zeros(count, config.text_len - 1, dtype=torch.long)
    return {"text_tokens": text_tokens, "image_tokens": torch.zeros(count, *config.grid_size, dtype=torch.long)}


@pytest.mark.parametrize("settings", [{}, {"block": "paper"}, {"attend_pads": False, "checkpoint_activations": True}])
def test_a_step_on_a_device_without_numbers(make_config, monkeypatch, settings):
    """But for AdamW's fused kernel, which is not there."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)  # it does not know the device
    config = make_config(**settings)
    with torch.device("meta"):
        system = system_of(config, monkeypatch)
        batch = batch_of(config)
    optimizer = system.configure_optimizers()[0][0]
    for batch_idx in range(2):
        system.training_step(batch, batch_idx).backward()
        system.configure_gradient_clipping(optimizer, 1.0, "norm")
        optimizer.muon.step(optimizer.found_inf)
        optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="meta"):
        system.throughput.report()


@pytest.mark.parametrize("attend_pads", [True, False])
def test_the_forward_pass_as_on_a_gpu(make_config, monkeypatch, attend_pads):
    pytest.importorskip("triton", reason="Triton is for Linux")
    monkeypatch.setattr(limits, "is_capable", lambda device: True)
    config = make_config(attend_pads=attend_pads)
    with FakeTensorMode(), torch.device("cuda"):
        loss = system_of(config, monkeypatch).training_step(batch_of(config), 0)
        assert loss.is_cuda
        with pytest.raises(Exception, match="_local_scalar_dense"):
            loss.item()


class Reading(PriorSystem):
    """Looks at its loss, as one might to skip what is not finite."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss if float(loss.detach()) > 0 else None


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*", "ignore:.*LeafSpec.*")
@pytest.mark.parametrize("system", [PriorSystem, Reading])
def test_what_lightning_adds(make_config, tmp_path, system):
    """And what looks for updates that are not finite."""
    config, watch, guard = make_config(), Watch(), UpdateWatch(tmp_path / "spikes.jsonl")
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        max_steps=4,
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[guard, watch],
    )
    loader = DataLoader([batch_of(config)] * 4, batch_size=None)
    if system is Reading:
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            trainer.fit(system(config, OPTIM), loader)
    else:
        trainer.fit(system(config, OPTIM), loader)
        assert watch.steps == 3 and len(guard.spikes.losses) == 4
