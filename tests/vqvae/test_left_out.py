"""Training of a tokenizer with a batch that is not finite: nothing of it stays, whatever the quantizer remembers."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks.update_watch import UpdateWatch
from vqvae.adversarial import AdversarialConfig
from vqvae.config import DiscreteVAEConfig
from vqvae.optim import TokenizerOptim
from vqvae.training import TokenizerSystem

VQ = {"codebook_dim": 4, "decay": 0.7, "restart_below": 0.9}
QUANTIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gumbel": ("gumbel", {}),
    "vq": ("vq", VQ),
    "vq by gradient": ("vq", VQ | {"ema": False}),
    "vq by k-means": ("vq", VQ | {"kmeans_steps": 2, "normalise": False}),
    "fsq": ("fsq", {}),
    "lfq": ("lfq", {}),
    "bsq": ("bsq", {}),
    "ibq": ("ibq", {"codebook_dim": 4}),
}
JUDGED = {"start_step": 0, "warmup_steps": 0, "head_start": 0, "width": 8, "n_layers": 1}


class States(pl.Callback):
    """Everything that a batch may have changed, after each of them."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        state = dict(pl_module.state_dict())
        for number, optimizer in enumerate(trainer.optimizers):
            for parameter, values in optimizer.state_dict()["state"].items():
                state |= {f"optimizer {number}, {parameter}, {name}": value for name, value in values.items()}
        self.after.append(copy.deepcopy(state))


def system_of(quantizer: str, options: dict[str, Any], muon_lr: float | None = None, **settings) -> TokenizerSystem:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "n_hid": 8, "n_init": 8, "n_groups": 3, "n_blk_per_group": 1, "codebook_size": 64}
    vae = DiscreteVAEConfig(**sizes, quantizer=quantizer, quantizer_options=options, pixels="signed")
    optim = TokenizerOptim(lr=1e-3, min_lr=1e-3, decay_steps=None, muon_lr=muon_lr)
    return TokenizerSystem(vae, optim, reconstruction="l1", **settings)


def fit(system: TokenizerSystem, folder: Path, bad: int | None, count: int = 4, more=(), **settings) -> States:
    """On so many batches, of which number `bad` has a NaN."""
    images = torch.rand(count, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    if bad is not None:
        images[bad, 1, 0, 5, 5] = torch.nan
    states = States()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(default_root_dir=folder, max_epochs=1, callbacks=[states, *more], **quiet, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(system, DataLoader([{"images": batch, "keys": [""] * 4} for batch in images], batch_size=None))
    return states


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in after if name not in before or not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("muon_lr", [None, 6e-3], ids=["adamw", "muon"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_nothing_of_the_batch_stays(quantizer, muon_lr, tmp_path):
    """And the batch after it is learnt from."""
    states = fit(system_of(*QUANTIZERS[quantizer], muon_lr=muon_lr), tmp_path, bad=2).after
    assert changed(states[1], states[2]) == set()
    assert len(changed(states[2], states[3])) > 10
    assert all(tensor.isfinite().all() for tensor in states[3].values())


def test_a_codebook_starts_at_the_first_batch_that_is_finite(tmp_path):
    states = fit(system_of(*QUANTIZERS["vq"]), tmp_path, bad=0).after
    assert not states[0]["model.quantizer.counts"].any()
    assert states[1]["model.quantizer.counts"].all()


def test_batches_that_are_added_up_are_left_out_together(tmp_path):
    """The codebook of the first one, which is good, is put back as well."""
    settings = {"accumulate_grad_batches": 2}
    states = fit(system_of(*QUANTIZERS["vq"]), tmp_path, bad=3, count=6, **settings).after
    assert changed(states[1], states[2]) == {
        f"model.quantizer.{name}" for name in ("counts", "sums", "standardise.running_mean", "standardise.running_var")
    }
    assert changed(states[1], states[3]) == set()
    assert len(changed(states[3], states[5])) > 10


def judged() -> TokenizerSystem:
    return system_of(*QUANTIZERS["vq"], adversarial=AdversarialConfig(**JUDGED))


def test_generator_and_discriminator_leave_out_the_same_bad_batch(tmp_path):
    states = fit(judged(), tmp_path, bad=2).after
    assert changed(states[1], states[2]) == set()
    names = changed(states[2], states[3])
    assert "adversary.average_real" in names and any(name.startswith("optimizer 1") for name in names)


@pytest.mark.parametrize("spoilt", ["adversary.discriminator", "model.decoder"])
def test_each_by_itself(spoilt, tmp_path):
    """A gradient that is not finite in the one network is nothing to the other. It is so from the generator's first
    update on, after which comes the discriminator's."""
    system = judged()
    for name, parameter in system.named_parameters():
        if name.startswith(spoilt):
            parameter.register_hook(lambda gradient: gradient * (torch.nan if system.global_step > 0 else 1.0))
    watch = UpdateWatch(tmp_path / "spikes.jsonl")
    before, after = fit(system, tmp_path, bad=None, count=2, more=[watch]).after
    stays, moves = ("adversary", "model") if spoilt.startswith("adversary") else ("model", "adversary")
    names = changed(before, after)
    assert names and {name.split(".")[0] for name in names if "optimizer" not in name} == {moves}
    assert {name[:11] for name in names if "optimizer" in name} == {f"optimizer {0 if moves == 'model' else 1}"}
    assert all(tensor.isfinite().all() for tensor in after.values()), stays
    assert watch.streaks == ([0, 2] if stays == "adversary" else [1, 0])


@pytest.mark.parametrize("muon_lr", [None, 6e-3], ids=["adamw", "muon"])
def test_the_search_for_the_scale_of_fp16_ends_no_run(muon_lr, tmp_path):
    """Nor does its skipping of steps and ours get into each other's way."""
    system, watch = system_of(*QUANTIZERS["vq"], muon_lr=muon_lr), UpdateWatch(tmp_path / "spikes.jsonl", limit=2)
    for name, parameter in system.named_parameters():
        if name.startswith("model.decoder"):
            parameter.register_hook(lambda gradient: torch.where(gradient.abs() > 300.0, torch.inf, gradient))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, backoff_factor=0.125)
    precision = pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)
    states = fit(system, tmp_path, bad=None, count=6, more=[watch], plugins=[precision]).after
    found = watch.skipped
    assert 2 <= found <= 4 and scaler.get_scale() == 2.0**16 * 0.125**found
    assert changed(states[0], states[found - 1]) == set() and len(changed(states[found - 1], states[found])) > 10
    scaler.update(1.0)  # where it no longer helps
    watch, precision = UpdateWatch(tmp_path / "spikes.jsonl", 1), pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)
    with pytest.raises(FloatingPointError, match=r"in a row were left out by step 1, .* First, step 1: reconstruct"):
        fit(system, tmp_path, bad=0, count=2, more=[watch], plugins=[precision])
