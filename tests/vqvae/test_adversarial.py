"""Training with a perceptual loss and a discriminator, in Lightning's loop."""

import copy
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from vqvae.adversarial import AdversarialConfig, Adversary, Perceptual, PerceptualConfig
from vqvae.config import DiscreteVAEConfig
from vqvae.lpips import LPIPS, file_name
from vqvae.optim import TokenizerOptim
from vqvae.training import TokenizerSystem

SIDE = 32


@pytest.fixture(scope="module")
def lpips_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    save_file(LPIPS("alex").state_dict(), folder / file_name("alex"), metadata={"kind": "lpips", "net": "alex"})
    return folder


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Smooth ground with a bright square, (24, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(0)
    ground = torch.rand(24, 3, 3, 3, generator=generator)
    pictures = torch.nn.functional.interpolate(ground, size=(SIDE, SIDE), mode="bilinear")
    for i, picture in enumerate(pictures):
        picture[:, i % 16 : i % 16 + 12, (5 * i) % 16 : (5 * i) % 16 + 12] = torch.rand(3, 1, 1, generator=generator)
    return pictures


def batches(pictures: torch.Tensor) -> DataLoader:
    parts = [{"images": part, "keys": [""] * len(part)} for part in pictures.split(6)]
    return DataLoader(parts, batch_size=None)


def small_vae(**settings) -> DiscreteVAEConfig:
    sizes = {"image_size": SIDE, "n_hid": 8, "n_init": 8, "n_groups": 3, "n_blk_per_group": 1, "codebook_size": 32}
    sizes |= {"quantizer": "vq", "quantizer_options": {"codebook_dim": 4, "decay": 0.9}, "post_gain": 1.0}
    return DiscreteVAEConfig(**sizes | {"pixels": "signed"} | settings)


ADVERSARIAL = {"start_step": 4, "warmup_steps": 4, "head_start": 2, "width": 8, "n_layers": 1, "lr": 1e-3}


def make_system(adversarial: dict | None, perceptual: PerceptualConfig | None = None, **settings) -> TokenizerSystem:
    torch.manual_seed(0)
    settings = {"reconstruction": "l1"} | settings
    vae = settings.pop("vae", small_vae())
    optim = settings.pop("optim", TokenizerOptim(lr=3e-3, min_lr=3e-3, decay_steps=None))
    config = None if adversarial is None else AdversarialConfig(**ADVERSARIAL | adversarial)
    return TokenizerSystem(vae, optim, perceptual=perceptual, adversarial=config, **settings)


class History(pl.Callback):
    """What was logged at each batch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        names = {name for name in trainer.callback_metrics if name.startswith("train/") or name == "lr"}
        self.rows.append({name: trainer.callback_metrics[name].item() for name in names})


def fit(system: TokenizerSystem, pictures: torch.Tensor, folder: Path, ckpt_path: Path | None = None, **settings):
    """Returns the trainer and the history."""
    history = History()
    callbacks = [history, *settings.pop("callbacks", [])]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(default_root_dir=folder, callbacks=callbacks, **(quiet | settings))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(system, batches(pictures), batches(pictures), ckpt_path=ckpt_path)
    return trainer, history.rows


def test_the_schedule_by_hand():
    config = AdversarialConfig(start_step=10, warmup_steps=4, head_start=3, weight=0.8)
    assert [config.weight_at(step) for step in (0, 9, 10, 11, 13, 14, 99)] == pytest.approx(
        [0.0, 0.0, 0.2, 0.4, 0.8, 0.8, 0.8]
    )
    assert [config.trains_at(step) for step in (6, 7, 10)] == [False, True, True]
    assert AdversarialConfig(start_step=0, warmup_steps=0).weight_at(0) == 0.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"start_step": -1}, "start_step is -1, expected at least 0"),
        ({"weight": 0}, "weight is 0, expected more than 0"),
        ({"lecam_decay": 1.0}, "lecam_decay is 1.0"),
        ({"gradient_clip_val": 0.0}, "gradient_clip_val is 0.0"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(ValueError, match=said):
        AdversarialConfig(**settings)


def test_losses_that_do_not_fit_the_model(lpips_folder, tmp_path):
    with pytest.raises(ValueError, match="reconstruction is 'logit_laplace', which needs pixels 'logit_laplace'"):
        make_system(None, reconstruction="logit_laplace")
    with pytest.raises(ValueError, match="image_size is 16, the perceptual loss needs at least 32"):
        make_system(None, PerceptualConfig(weights=str(lpips_folder), net="alex"), vae=small_vae(image_size=16))
    with pytest.raises(ValueError, match="image_size is 16, the discriminator needs at least 24"):
        make_system({"n_layers": 3}, vae=small_vae(image_size=16))
    with pytest.raises(ValueError, match=r"no file .*lpips-vgg.safetensors"):
        make_system(None, PerceptualConfig(weights=str(tmp_path)))
    with pytest.raises(ValueError, match="perceptual weight is 0"):
        PerceptualConfig(weights="x", weight=0)


def test_the_perceptual_loss_may_come_to_its_device_in_a_validation(lpips_folder, monkeypatch):
    """To another dtype and back is as good as to another device: the weights are new ones."""
    perceptual = Perceptual(PerceptualConfig(weights=str(lpips_folder), net="alex"))
    monkeypatch.setattr(perceptual._lpips, "to", lambda device: perceptual._lpips.double().float())
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        perceptual(images, images)
    perceptual(images, images.flip(3).requires_grad_()).backward()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("pixels", ["signed", "logit_laplace"])
def test_what_is_trained_and_logged(pictures, lpips_folder, tmp_path, precision, pixels):
    perceptual = PerceptualConfig(weights=str(lpips_folder), weight=0.5, net="alex")
    reconstruction = "l1" if pixels == "signed" else "squared_error"
    system = make_system({}, perceptual, vae=small_vae(pixels=pixels), reconstruction=reconstruction)
    judge = copy.deepcopy(system.adversary.discriminator.state_dict())
    trainer, rows = fit(system, pictures, tmp_path, max_epochs=2, precision=precision)
    assert trainer.global_step == len(rows) == 8  # the generator's updates alone
    assert {"train/perceptual", "train/reconstruction", "train/psnr"} <= rows[0].keys()
    assert ["train/discriminator" in row for row in rows] == [False, False] + [True] * 6
    assert ["train/adversarial_weight" in row for row in rows] == [False] * 4 + [True] * 4
    assert all(math.isfinite(value) for row in rows for value in row.values())
    parts = rows[0]["train/reconstruction"] + 0.5 * rows[0]["train/perceptual"]
    assert rows[0]["train/loss"] == pytest.approx(parts + 0.25 * rows[0]["train/commitment"], rel=1e-3)
    assert trainer.callback_metrics["val/perceptual"] > 0
    after = system.adversary.discriminator.state_dict()
    # The last bias gets no gradient while the hinge is open on both sides.
    assert all(not torch.equal(judge[name], after[name]) for name in judge if judge[name].ndim > 1)
    assert not any("lpips" in name or "perceptual" in name for name in system.state_dict())


def test_the_perceptual_loss_alone_is_stepped_by_lightning(pictures, lpips_folder, tmp_path):
    system = make_system(None, PerceptualConfig(weights=str(lpips_folder), net="alex"))
    trainer, rows = fit(system, pictures, tmp_path, max_epochs=1, gradient_clip_val=1.0, accumulate_grad_batches=2)
    assert trainer.global_step == 2
    assert "train/perceptual" in rows[-1]


@pytest.mark.parametrize(
    ("strategy", "scaler", "said"),
    [
        (DDPStrategy(), None, "needs strategy ddp_find_unused_parameters_true"),
        (SingleDeviceStrategy("cpu"), object(), "not 16-mixed"),
    ],
)
def test_what_it_cannot_be_trained_with(strategy, scaler, said):
    system = make_system({})
    system._trainer = SimpleNamespace(strategy=strategy, precision_plugin=SimpleNamespace(scaler=scaler))
    with pytest.raises(ValueError, match=said):
        system.on_fit_start()


def test_who_gets_gradients(pictures):
    system = make_system({})
    adversary, images = system.adversary, pictures[:2]
    recon = torch.rand_like(images).requires_grad_()
    adversary.judge(recon).backward()
    assert recon.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in adversary.discriminator.parameters())
    recon.grad = None
    loss, _ = adversary.loss(images, recon)
    loss.backward()
    assert recon.grad is None
    assert all(p.grad is not None for p in adversary.discriminator.parameters())


def test_the_averages_of_lecam():
    adversary = Adversary(AdversarialConfig(**ADVERSARIAL | {"lecam_decay": 0.75}))
    for i, (real, fake) in enumerate([(1.0, 10.0), (2.0, 20.0), (3.0, 30.0), (4.0, 40.0), (8.0, 80.0)]):
        adversary._remember(torch.tensor(real), torch.tensor(fake))
        if i == 3:
            assert adversary.average_real.item() == pytest.approx(2.5)  # the plain mean at first
    assert adversary.average_real.item() == pytest.approx(0.75 * 2.5 + 0.25 * 8)
    assert adversary.average_fake.item() == pytest.approx(0.75 * 25 + 0.25 * 80)


def gradient_of_the_first_update(pictures: torch.Tensor, folder: Path, weight: float) -> torch.Tensor:
    """At the decoder's last layer."""
    settings = {"start_step": 0, "warmup_steps": 0, "gradient_clip_val": None, "weight": weight}
    system, gradients = make_system(settings), []
    layer = system.model.decoder.output_conv.weight
    layer.register_post_accumulate_grad_hook(lambda parameter: gradients.append(parameter.grad.clone()))
    fit(system, pictures[:6], folder, max_epochs=1, limit_val_batches=0)
    return gradients[0]


def test_the_judgement_pulls_as_strongly_as_the_pixels(pictures, tmp_path):
    """What it adds to the update's gradient is `weight` times as long as all else: the adaptive weight's purpose."""
    pixels = gradient_of_the_first_update(pictures, tmp_path, 1e-12)
    added = gradient_of_the_first_update(pictures, tmp_path, 0.7) - pixels
    assert added.norm().item() == pytest.approx(0.7 * pixels.norm().item(), rel=0.02)


def test_resuming_gives_the_uninterrupted_run(pictures, tmp_path):
    """The discriminator, its optimiser and the averages included."""
    whole, first, second = (make_system({"start_step": 2, "head_start": 1}) for _ in range(3))
    _, rows = fit(whole, pictures, tmp_path, max_epochs=3)
    trainer, _ = fit(first, pictures, tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    torch.manual_seed(99)
    _, resumed = fit(second, pictures, tmp_path, ckpt_path=tmp_path / "one.ckpt", max_epochs=3)
    names = [name for name in rows[-1] if name != "train/images_per_s"]
    assert [[row[name] for name in names] for row in resumed] == [[row[name] for name in names] for row in rows[4:]]
    for (name, left), right in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, atol=0, rtol=0, msg=name)


def test_a_weight_average_is_of_the_generators_updates(pictures, tmp_path):
    system = make_system({"start_step": 0, "head_start": 0})
    average = EMAWeightAveraging(decay=0.5)
    fit(system, pictures, tmp_path, max_epochs=1, limit_val_batches=0, callbacks=[average])
    assert average._average_model.n_averaged == 4
    assert average._average_model.module.perceptual is system.perceptual


def psnr_across_the_switch(pictures: torch.Tensor, folder: Path, **adversarial) -> tuple[float, float]:
    """Mean train/psnr of the 20 updates before the generator is judged, and the least of the 40 after (mean of 5)."""
    system = make_system({"start_step": 100, "lr": 2e-3, "n_layers": 2} | adversarial)
    _, rows = fit(system, pictures, folder, max_epochs=35, limit_val_batches=0)
    psnr = torch.tensor([row["train/psnr"] for row in rows])
    return psnr[80:100].mean().item(), psnr[100:140].unfold(0, 5, 1).mean(dim=1).min().item()


def test_the_reconstructions_survive_the_switch(pictures, tmp_path):
    before, after = psnr_across_the_switch(pictures, tmp_path, warmup_steps=40, head_start=40, weight=0.5)
    assert before > 15
    assert after > before - 1.0
    # Without a head start and a rise, at a weight that the discriminator has not earned, they are lost.
    _, wrecked = psnr_across_the_switch(pictures, tmp_path, warmup_steps=0, head_start=0, weight=8.0)
    assert wrecked < before - 2.0
