import math
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader
from torchmetrics.functional.image import peak_signal_noise_ratio

from vqvae.optim import TokenizerOptim
from vqvae.training import TokenizerSystem, _ssim

VQ = {"quantizer": "vq", "quantizer_options": {"codebook_dim": 4, "decay": 0.9, "restart_below": 0.3}}
GUMBEL = {"quantizer": "gumbel", "quantizer_options": {"tau_steps": 10, "beta": 0.1, "beta_steps": 4}}
BOTH = pytest.mark.parametrize("quantizer", [GUMBEL, VQ], ids=["gumbel", "vq"])


def batches(images: torch.Tensor, size: int = 2) -> DataLoader:
    """As the datamodule yields them."""
    parts = [{"images": part, "keys": [""] * len(part)} for part in images.split(size)]
    return DataLoader(parts, batch_size=None)


@pytest.fixture
def trainer(tmp_path):
    """A Lightning trainer without its tables and bars."""

    def make(**settings) -> pl.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        quiet |= {"enable_checkpointing": False, "log_every_n_steps": 1, "accelerator": "cpu"}
        return pl.Trainer(default_root_dir=tmp_path, **(quiet | settings))

    return make


@pytest.fixture
def fit(trainer, images):
    """Runs Lightning's loop, three batches an epoch, and returns the trainer."""

    def run(system: TokenizerSystem, ckpt_path: Path | None = None, **settings) -> pl.Trainer:
        runner = trainer(**settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the number of workers, which is none on purpose
            runner.fit(system, batches(images), batches(images), ckpt_path=ckpt_path)
        return runner

    return run


@pytest.fixture
def make_system(make_config):
    def make(quantizer: dict = GUMBEL, optim: TokenizerOptim | None = None, **settings) -> TokenizerSystem:
        torch.manual_seed(0)
        vae = make_config(**quantizer, post_gain=1.0)
        return TokenizerSystem(vae, optim or TokenizerOptim(lr=1e-3, min_lr=1e-4, decay_steps=None), **settings)

    return make


LOGGED = {
    "train/loss",
    "train/reconstruction",
    "train/psnr",
    "train/perplexity",
    "train/images_per_s",
    "lr",
    "val/loss",
    "val/reconstruction",
    "val/psnr",
    "val/ssim",
    "val/relaxation_gap",
    "val/codebook_perplexity",
    "val/codes_used",
    "val/codebook_usage",
}
OF_THE_QUANTIZER = {
    "gumbel": {"train/tau", "train/beta", "train/kl", "val/kl"},
    "vq": {"train/commitment", "val/commitment"},
}


@BOTH
@pytest.mark.parametrize("reconstruction", ["logit_laplace", "squared_error"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_is_logged(make_system, fit, quantizer, reconstruction, precision):
    system = make_system(quantizer, reconstruction=reconstruction)
    before = {name: tensor.clone() for name, tensor in system.state_dict().items()}
    values = fit(system, max_epochs=2, precision=precision).callback_metrics
    assert values.keys() == LOGGED | OF_THE_QUANTIZER[quantizer["quantizer"]]
    assert all(math.isfinite(value) for value in values.values())
    assert 1 <= values["val/codebook_perplexity"] <= values["val/codes_used"] <= 32
    assert values["val/codebook_usage"] == values["val/codes_used"] / 32
    part = "commitment" if quantizer is VQ else "kl"
    weight = 0.25 if quantizer is VQ else system.model.quantizer.beta / 48
    for stage in ("train", "val"):
        parts = values[f"{stage}/reconstruction"] + weight * values[f"{stage}/{part}"]
        assert values[f"{stage}/loss"].item() == pytest.approx(parts.item(), rel=1e-4)
    after = system.state_dict()
    assert not [name for name, tensor in before.items() if torch.equal(after[name], tensor)]


@pytest.mark.parametrize(
    ("quantizer", "reconstruction", "gain"),
    [
        ({"quantizer_options": {"tau_steps": 150, "beta": 0.0}}, "logit_laplace", 2.5),
        ({"quantizer_options": {"tau_steps": 150, "beta": 0.0}}, "squared_error", 6.0),
        (VQ, "squared_error", 6.0),
    ],
)
def test_overfits_one_batch(make_system, trainer, images, quantizer, reconstruction, gain):
    """Hard codes tell the pictures apart: `gain` dB more than the best that a decoder could do without them."""
    optim = TokenizerOptim(lr=1e-2, min_lr=5e-4, decay_steps=None, betas=(0.9, 0.99))
    system = make_system(quantizer | {"codebook_size": 64}, optim, reconstruction=reconstruction)
    runner = trainer(max_steps=200, gradient_clip_val=1.0)
    loader = batches(images.repeat(200, 1, 1, 1), len(images))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner.fit(system, loader)
    model = system.model.eval()
    without_codes = peak_signal_noise_ratio(images.mean(dim=0).expand_as(images), images, data_range=1.0)
    reached = peak_signal_noise_ratio(model.decode(model.encode(images)), images, data_range=1.0)
    assert reached > without_codes + gain


class Watch(pl.Callback):
    """Step size, temperature and beta of every update."""

    def __init__(self) -> None:
        self.lr: list[float] = []
        self.tau: list[float] = []
        self.beta: list[float] = []
        self.logged: list[float] = []

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        self.lr.append(optimizer.param_groups[0]["lr"])
        self.logged.append(trainer.callback_metrics["lr"].item())
        self.tau.append(module.model.quantizer.tau)
        self.beta.append(module.model.quantizer.beta)


def test_schedules_reach_the_optimiser_and_the_quantizer(make_system, fit):
    watch = Watch()
    options = {"tau_start": 1.0, "tau_end": 0.5, "tau_steps": 4, "beta": 2.0, "beta_steps": 2}
    system = make_system({"quantizer_options": options}, TokenizerOptim(lr=3e-3, min_lr=1e-3, decay_steps=4))
    fit(system, max_epochs=2, callbacks=[watch])
    half = math.sqrt(0.5)
    assert watch.lr == pytest.approx([3e-3, 2e-3 + 1e-3 * half, 2e-3, 2e-3 - 1e-3 * half, 1e-3, 1e-3])
    assert watch.logged == pytest.approx(watch.lr)
    assert watch.tau == pytest.approx([1.0, 0.75 + 0.25 * half, 0.75, 0.75 - 0.25 * half, 0.5, 0.5])
    assert watch.beta == pytest.approx([0.0, 1.0, 2.0, 2.0, 2.0, 2.0])


def test_schedules_count_updates_not_batches(make_system, fit):
    watch = Watch()
    options = {"tau_start": 1.0, "tau_end": 0.5, "tau_steps": 2}
    system = make_system({"quantizer_options": options}, TokenizerOptim(lr=3e-3, min_lr=1e-3, decay_steps=2))
    fit(system, max_epochs=1, accumulate_grad_batches=2, callbacks=[watch])
    assert watch.tau == pytest.approx([1.0, 0.75])
    assert watch.lr == pytest.approx([3e-3, 2e-3])


def test_muons_step_size_follows_the_schedule_in_proportion(make_system, fit):
    system = make_system(optim=TokenizerOptim(lr=1e-3, muon_lr=4e-3, min_lr=5e-4, decay_steps=2))
    by_muon, by_adamw = fit(system, max_epochs=1).optimizers[0].param_groups
    assert (by_muon["lr"], by_adamw["lr"]) == pytest.approx((2e-3, 5e-4))


def test_the_papers_optimiser_is_the_default(make_config, fit):
    system = TokenizerSystem(make_config())
    group = fit(system, max_steps=1).optimizers[0].param_groups[0]
    assert isinstance(system.trainer.optimizers[0], torch.optim.AdamW)
    values = [group[name] for name in ("initial_lr", "betas", "eps", "weight_decay")]
    assert values == [1e-4, (0.9, 0.999), 1e-8, 1e-4]
    assert sum(parameter.numel() for parameter in group["params"]) == sum(p.numel() for p in system.parameters())
    assert system.optim.lr_at(1_200_000, run_steps=3_000_000) == 1.25e-6


@BOTH
@pytest.mark.parametrize("muon_lr", [None, 3e-3])
def test_resuming_gives_the_uninterrupted_run(make_system, fit, tmp_path, quantizer, muon_lr):
    """Noise, restarts and schedules included, although other random numbers are drawn in between."""
    optim = TokenizerOptim(lr=1e-3, muon_lr=muon_lr, min_lr=1e-4, decay_steps=9)
    whole, first, second = (make_system(quantizer, optim) for _ in range(3))
    fit(whole, max_epochs=3)
    fit(first, max_epochs=1).save_checkpoint(tmp_path / "one.ckpt")
    torch.manual_seed(99)
    fit(second, ckpt_path=tmp_path / "one.ckpt", max_epochs=3)
    for (name, left), right in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, atol=0, rtol=0, msg=name)


def test_the_seed_makes_the_noise(make_system, fit):
    weights = []
    for seed in (0, 0, 1):
        system = make_system(seed=seed)
        fit(system, max_epochs=1)
        weights.append(system.model.encoder.blocks.input.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_training_leaves_the_random_numbers_of_others_alone(make_system, images):
    system = make_system()
    system.log = system.log_dict = lambda *args, **kwargs: None
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    system.training_step({"images": images}, 0)
    assert torch.equal(torch.rand(3), expected)


def test_validation_of_a_checkpoint_is_at_its_temperature(make_system, fit, trainer, images, tmp_path):
    fit(make_system(), max_epochs=2).save_checkpoint(tmp_path / "two.ckpt")
    system = make_system()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner = trainer()
        runner.validate(system, batches(images), ckpt_path=tmp_path / "two.ckpt", verbose=False)
    assert system.model.quantizer.tau == system.model.quantizer.anneal(6)["tau"]
    assert system.model.quantizer.beta == pytest.approx(0.1)
    metrics = runner.callback_metrics
    expected = metrics["val/reconstruction"] + 0.1 / 48 * metrics["val/kl"]
    assert metrics["val/loss"].item() == pytest.approx(expected.item(), rel=1e-5)


@BOTH
def test_validation_by_hand_and_whatever_the_batch_size(make_system, trainer, images, quantizer):
    system, results = make_system(quantizer), []
    with torch.no_grad():
        system.model.train()(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer().validate(system, batches(1 - images), verbose=False)  # of which nothing may stay
        for size in (1, 4, 6):
            results.append(trainer().validate(system, batches(images, size), verbose=False)[0])
    model = system.model.eval()
    indices = model.encode(images)
    error = (model.decode(indices) - images).double().square().mean().item()
    for result in results:
        assert result["val/psnr"] == pytest.approx(-10 * math.log10(error), rel=1e-4)
        assert result["val/codes_used"] == len(indices.unique())
        assert result["val/ssim"] == pytest.approx(results[0]["val/ssim"], rel=1e-4)
        assert result["val/loss"] == pytest.approx(results[0]["val/loss"], rel=1e-4)


def test_similarity_of_pictures_is_not_computed_in_bf16(images):
    smooth = 0.8 + 0.05 * torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    recon = (smooth + 0.01 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    expected = _ssim(recon, smooth)
    with torch.autocast("cpu", torch.bfloat16):
        assert _ssim(recon, smooth) == expected
    assert 0.3 < expected < 1


def test_relaxation_gap(make_system, trainer, images):
    """How much better the relaxed codes do: nothing for the vector quantizer, whose codes are hard in training."""
    gaps = {}
    for name, quantizer in {"vq": VQ, "gumbel": GUMBEL}.items():
        system = make_system(quantizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gaps[name] = trainer().validate(system, batches(images), verbose=False)[0]["val/relaxation_gap"]
    assert gaps["vq"] == pytest.approx(0.0, abs=1e-4)
    assert abs(gaps["gumbel"]) > 1e-3


def test_validation_does_not_move_the_codebook(make_system, trainer, images):
    system = make_system(VQ)
    before = {name: tensor.clone() for name, tensor in system.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer().validate(system, batches(images), verbose=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in system.state_dict().items())


@BOTH
def test_averaged_weights_make_a_whole_model(make_system, fit, images, quantizer, tmp_path):
    """The callback averages buffers too; the codebook must still be one, and what is saved what is used.

    Averages of averages may shrink, but a sum of zero or none at all has no direction.
    """
    system = make_system(quantizer)
    fit(system, max_epochs=4, callbacks=[EMAWeightAveraging(decay=0.5)])
    model = system.model.eval()
    if quantizer is VQ:
        sums = model.quantizer.sums
        assert sums.isfinite().all()
        assert sums.norm(dim=1).min() > 1e-3
        state, z_e = model.quantizer.standardise, model.encode_vectors(images).detach()
        vectors = (z_e.movedim(1, -1) - state.running_mean) / (state.running_var + state.eps).sqrt()
        codes = sums / sums.norm(dim=1, keepdim=True)
        apart = (vectors / vectors.norm(dim=-1, keepdim=True))[..., None, :] - codes  # (B, h, w, K, D)
        assert torch.equal(model.encode(images), apart.square().sum(dim=-1).argmin(dim=-1))
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path).encode(images), model.encode(images))


def test_a_run_without_end_has_no_cosine(make_system, fit):
    with pytest.raises(ValueError, match="decay_steps is none and the run has no end"):
        fit(make_system(), max_epochs=-1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0, "min_lr": 0.0}, r"lr is 0.0, expected more than 0"),
        ({"lr": 1e-4, "min_lr": 2e-4}, "min_lr is 0.0002 and lr 0.0001, expected 0 <= min_lr <= lr"),
        ({"min_lr": -1.0}, r"min_lr is -1.0"),
        ({"decay_steps": 0}, "decay_steps is 0, expected at least 1"),
        ({"warmup_steps": -1}, "warmup_steps is -1, expected at least 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TokenizerOptim(**settings)


def test_unknown_reconstruction_and_seed_are_refused(make_config):
    with pytest.raises(ValueError, match="reconstruction is 'mse', expected one of logit_laplace, squared_error"):
        TokenizerSystem(make_config(), reconstruction="mse")
    with pytest.raises(ValueError, match="seed is -1, expected at least 0"):
        TokenizerSystem(make_config(), seed=-1)
