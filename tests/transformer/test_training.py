import math
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import DummyLogger
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader

from transformer.training import OptimConfig, PriorSystem, drop_captions, parameter_groups, step_key


@pytest.fixture
def loader(make_batch):
    """Batches as the datamodule yields them."""
    batches = []
    for seed in range(4):
        text_tokens, image_tokens = make_batch(3, seed)
        batches.append({"text_tokens": text_tokens, "image_tokens": image_tokens, "captions": ["", "", ""]})
    return DataLoader(batches, batch_size=None)


@pytest.fixture
def fit(tmp_path, loader):
    """Runs Lightning's loop on the batches without its tables and bars and returns the trainer."""

    def run(system: PriorSystem, ckpt_path: Path | None = None, **settings) -> pl.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        quiet |= {"enable_checkpointing": False, "log_every_n_steps": 1}
        if settings.get("barebones"):
            quiet.clear()  # Lightning sets them itself, and takes no others
        trainer = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", **(quiet | settings))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the number of workers, which is none on purpose
            trainer.fit(system, loader, loader, ckpt_path=ckpt_path)
        return trainer

    return run


def optim(**overrides) -> OptimConfig:
    return OptimConfig(**({"lr": 1e-2, "warmup_steps": 2, "decay": "cosine"} | overrides))


KEYS = {
    "train/loss",
    "train/loss_text",
    "train/loss_image",
    "train/grad_norm",
    "train/tokens_per_s",
    "train/mfu",
    "val/loss",
    "val/loss_text",
    "val/loss_image",
    "lr",
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fit_learns_and_logs(make_config, fit, precision):
    torch.manual_seed(0)
    system = PriorSystem(make_config(), optim())
    before = {name: tensor.clone() for name, tensor in system.state_dict().items()}
    trainer = fit(system, max_epochs=3, precision=precision, gradient_clip_val=4.0)
    assert trainer.callback_metrics.keys() >= KEYS
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert all(math.isfinite(value) for value in values.values())
    assert values["val/loss_image"] < math.log(13)
    assert values["val/loss"] == pytest.approx(values["val/loss_text"] / 8 + 7 * values["val/loss_image"] / 8, rel=1e-4)
    assert values["lr"] == pytest.approx(1e-3)  # the cosine's end, a tenth of the peak
    after = system.state_dict()
    assert not [name for name, tensor in before.items() if torch.equal(after[name], tensor)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_loggers_read_all_of_every_third_step(make_config, fit, accumulate):
    read = {}

    class Recorder(DummyLogger):
        def log_metrics(self, metrics, step) -> None:
            read.setdefault(step, set()).update(metrics)

    settings = {"log_every_n_steps": 3, "accumulate_grad_batches": accumulate, "limit_val_batches": 0}
    fit(PriorSystem(make_config(), optim()), max_steps=8, max_epochs=-1, logger=Recorder(), **settings)
    assert sorted(read) == [2, 5]
    for names in read.values():
        assert names >= {name for name in KEYS if not name.startswith("val/")}


@pytest.mark.parametrize("settings", [{"log_every_n_steps": 0}, {"barebones": True}])
def test_a_run_whose_values_nobody_reads(make_config, fit, settings):
    system = PriorSystem(make_config(), optim())
    assert fit(system, max_steps=3, max_epochs=-1, gradient_clip_val=4.0, **settings).global_step == 3


def test_a_plateau_wants_a_trainer_that_keeps_the_loss(make_config, fit):
    with pytest.raises(ValueError, match=r"decay is plateau, .*: a Trainer\(barebones=True\) keeps no"):
        fit(PriorSystem(make_config(), optim(decay="plateau")), barebones=True, max_steps=1)


def test_gradients_are_clipped_by_norm(make_config, fit):
    torch.manual_seed(0)
    clipped = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, *batch):
            clipped.append(float(torch.stack([p.grad.norm() for p in module.parameters()]).norm()))

    trainer = fit(PriorSystem(make_config(), optim()), max_steps=2, gradient_clip_val=0.01, callbacks=[Watch()])
    assert clipped == pytest.approx([0.01, 0.01], rel=1e-3)
    assert trainer.callback_metrics["train/grad_norm"] > 0.1  # as it was before


def test_clipping_by_value_is_refused(make_config, fit):
    with pytest.raises(ValueError, match="VALUE; expected bf16-mixed or 32-true, and norm"):
        fit(PriorSystem(make_config(), optim()), max_steps=1, gradient_clip_val=1.0, gradient_clip_algorithm="value")


class StepSizes(pl.Callback):
    """The step size of every update."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def test_step_sizes_of_a_cosine_run(make_config, fit):
    sizes = StepSizes()
    fit(PriorSystem(make_config(), optim(lr=1.0, min_ratio=0.0)), max_epochs=1, max_steps=4, callbacks=[sizes])
    assert sizes.seen == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_cosine_over_a_given_number_of_steps(make_config, fit):
    sizes = StepSizes()
    settings = optim(lr=1.0, min_ratio=0.0, warmup_steps=0, total_steps=2)
    fit(PriorSystem(make_config(), settings), max_epochs=1, callbacks=[sizes])
    assert sizes.seen == pytest.approx([1.0, 0.5, 0.0, 0.0])


def test_step_sizes_without_decay(make_config, fit):
    sizes = StepSizes()
    fit(PriorSystem(make_config(), optim(lr=1.0, decay="none")), max_epochs=1, callbacks=[sizes])
    assert sizes.seen == pytest.approx([0.5, 1.0, 1.0, 1.0])


class Stuck(PriorSystem):
    """A run whose validation never gets better."""

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", 1.0)


def test_plateau_halves_after_the_warmup(make_config, fit):
    sizes = StepSizes()
    system = Stuck(make_config(), optim(lr=1.0, decay="plateau", patience=0, warmup_steps=4))
    fit(system, max_epochs=4, callbacks=[sizes])
    assert sizes.seen[:8] == pytest.approx([0.25, 0.5, 0.75, 1.0] + [1.0] * 4)
    assert sizes.seen[8:] == pytest.approx([0.5] * 4 + [0.25] * 4)


def test_plateau_looks_at_each_validation(make_config, fit):
    """Two in an epoch of four steps; the sanity check before the first step is none."""
    sizes = StepSizes()
    system = Stuck(make_config(), optim(lr=1.0, decay="plateau", patience=0, warmup_steps=0))
    fit(system, max_steps=8, val_check_interval=2, num_sanity_val_steps=1, callbacks=[sizes])
    assert sizes.seen == pytest.approx([1.0] * 4 + [0.5] * 2 + [0.25] * 2)


def test_plateau_looks_at_the_mean_over_a_validation(make_config, fit):
    class Uneven(PriorSystem):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", float(batch_idx), batch_size=1)

    system = Uneven(make_config(), optim(decay="plateau"))
    fit(system, max_epochs=1)
    assert system.lr_schedulers()[0].best == pytest.approx((0 + 1 + 2 + 3) / 4)


@pytest.mark.parametrize("stop", [3, 6])
def test_a_resumed_plateau_run_equals_one_that_was_not_interrupted(make_config, fit, tmp_path, stop):
    def system() -> PriorSystem:
        torch.manual_seed(0)
        return Stuck(make_config(), optim(decay="plateau", patience=0, warmup_steps=2))

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, module, *batch):
            if trainer.global_step == stop:
                trainer.save_checkpoint(tmp_path / "stop.ckpt")

    whole, resumed = StepSizes(), StepSizes()
    fit(system(), max_epochs=4, callbacks=[whole, Save()])
    fit(system(), ckpt_path=tmp_path / "stop.ckpt", max_epochs=4, callbacks=[resumed])
    assert whole.seen[-1] < max(whole.seen) / 2, "it is to be halved, or the test shows nothing"
    assert resumed.seen == whole.seen[stop:]


def test_a_run_without_end_has_no_cosine(make_config, fit):
    with pytest.raises(ValueError, match="the run has no end"):
        fit(PriorSystem(make_config(), optim()), max_epochs=-1)


@pytest.mark.parametrize("muon_lr", [None, 3e-2])
def test_resuming_gives_the_uninterrupted_run(make_config, fit, tmp_path, muon_lr):
    def system() -> PriorSystem:
        torch.manual_seed(0)
        return PriorSystem(make_config(), optim(total_steps=12, muon_lr=muon_lr), caption_dropout=0.5)

    whole, first, second = system(), system(), system()
    fit(whole, max_epochs=3)
    trainer = fit(first, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    fit(second, ckpt_path=tmp_path / "two.ckpt", max_epochs=3)
    for (name, left), right in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, atol=0, rtol=0, msg=name)


def test_dropped_captions_are_null_captions(make_batch):
    text_tokens, _ = make_batch(2)
    text_tokens = text_tokens.repeat(500, 1)
    dropped = drop_captions(text_tokens, 0.3, key=0)
    null = (dropped == -1).all(dim=1)
    assert 0.25 < null.double().mean() < 0.35
    assert torch.equal(dropped[~null], text_tokens[~null])
    assert torch.equal(drop_captions(text_tokens, 0.0, key=0), text_tokens)
    assert (drop_captions(text_tokens, 1.0, key=0) == -1).all()


def test_dropout_is_a_function_of_seed_and_step():
    def draw(*place: int) -> tuple:
        return tuple(drop_captions(torch.zeros(64, 1).long(), 0.5, step_key(*place)).flatten().tolist())

    assert draw(0, 5, 5) == draw(0, 5, 5)
    places = [(seed, step, batch) for seed in range(3) for step in range(20) for batch in range(2)]
    assert len({draw(*place) for place in places}) == len(places)


def test_devices_drop_what_one_would():
    text_tokens, key = torch.zeros(12, 1).long(), step_key(0, 7)
    alone = drop_captions(text_tokens, 0.5, key)
    shares = [drop_captions(text_tokens[rank::3], 0.5, key, rank, 3) for rank in range(3)]
    assert torch.equal(torch.stack(shares, dim=1).flatten(), alone.flatten())


def test_training_sees_dropped_captions_and_validation_does_not(make_config, fit, monkeypatch):
    system = PriorSystem(make_config(), optim(), caption_dropout=1.0)
    seen = {True: [], False: []}
    embed = system.prior.embedding.forward

    def watched(text_tokens, image_tokens):
        seen[system.training].append(bool((text_tokens == -1).all()))
        return embed(text_tokens, image_tokens)

    monkeypatch.setattr(system.prior.embedding, "forward", watched)
    fit(system, max_epochs=1, num_sanity_val_steps=0)
    assert seen[True] == [True] * 4
    assert seen[False] == [False] * 4


@pytest.mark.parametrize("block", ["paper", "modern"])
def test_only_linear_weights_decay(make_prior, block):
    prior = make_prior(block=block)
    names = {id(parameter): name for name, parameter in prior.named_parameters()}
    groups = parameter_groups(prior, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    decayed, others = ({names[id(parameter)] for parameter in group["params"]} for group in groups)
    assert decayed | others == set(names.values())
    assert not decayed & others
    assert {name.split(".")[-1] for name in decayed} == {"weight"}
    assert {"text_head.weight", "image_head.weight", "blocks.0.attention.qkv.weight"} <= decayed
    assert {"embedding.text_token.weight", "embedding.pads", "embedding.bos", "norm.weight"} <= others
    assert not [name for name in decayed if "norm" in name or "embedding" in name]


def test_compiled_training_equals_eager(make_config, fit):
    """The loop runs in one graph, the weights end up the same up to rounding, and their names stay."""
    counters.clear()
    systems = []
    for compiled in (False, True):
        torch.manual_seed(0)
        systems.append(PriorSystem(make_config(n_layer=1), optim(lr=1e-3), compile=compiled))
        fit(systems[-1], max_steps=2, limit_val_batches=0)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    eager, compiled = (system.state_dict() for system in systems)
    assert eager.keys() == compiled.keys()
    for name, tensor in eager.items():
        torch.testing.assert_close(compiled[name], tensor, atol=1e-4, rtol=1e-4, msg=name)


def test_compiled_weights_are_not_spread(make_config):
    system = PriorSystem(make_config(n_layer=1), optim(), compile=True)
    system._device_mesh = object()  # as a strategy would set it
    with pytest.raises(ValueError, match=r"model\.compile is true, which weights that are spread .* do not take"):
        system.configure_model()


def test_a_compiled_prior_saves_and_loads(make_config, tmp_path):
    system = PriorSystem(make_config(n_layer=1), optim(), compile=True)
    system.prior.save_pretrained(tmp_path)
    loaded = type(system.prior).from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == system.prior.state_dict().keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, r"lr is 0\.0, expected more than 0"),
        ({"muon_lr": 0.0}, r"muon_lr is 0\.0, expected more than 0"),
        ({"eps": -1.0}, r"eps is -1\.0, expected more than 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1, expected at least 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"patience": -1}, "patience is -1"),
        ({"min_ratio": 2.0}, r"min_ratio is 2\.0, expected 0 to 1"),
        ({"decay": "linear"}, "decay is 'linear', expected cosine, plateau or none"),
        ({"total_steps": 10, "warmup_steps": 10}, "total_steps is 10, expected more than warmup_steps, 10"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**settings)


def test_impossible_dropout_is_refused(make_config):
    with pytest.raises(ValueError, match=r"caption_dropout is 1\.5, expected 0 to 1"):
        PriorSystem(make_config(), optim(), caption_dropout=1.5)


def test_papers_optimiser_is_the_default():
    config = OptimConfig()
    assert (config.lr, config.betas, config.eps, config.weight_decay) == (4.5e-4, (0.9, 0.96), 1e-8, 4.5e-2)
    assert (config.warmup_steps, config.decay) == (5000, "plateau")
