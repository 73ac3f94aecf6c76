"""What a run of train.py leaves behind, and what it says of itself."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import train
from callbacks.run_config import REJECTS
from config_files import CONFIGS
from pipeline import TextToImage, fingerprint
from precision import default_precision
from run_cli import CHECKPOINT
from tests.runs import (
    BUNDLE_FILES,
    MARKS,
    MODEL_FILES,
    ROOT,
    RUN_FILES,
    STEPS_AN_EPOCH,
    arguments,
    assert_equal,
    checkpoint_of,
    files_in,
    fit,
    write_codes,
)
from vqvae.folders import load_image_tokenizer

pytestmark = MARKS


def test_files_of_a_run(tokenizer_run, prior_run):
    assert files_in(tokenizer_run) == RUN_FILES | MODEL_FILES
    assert files_in(prior_run) == RUN_FILES | MODEL_FILES | BUNDLE_FILES


def test_the_exported_tokenizer_has_the_averaged_weights(tokenizer_run):
    checkpoint = checkpoint_of(tokenizer_run)
    exported = load_image_tokenizer(tokenizer_run / "model").state_dict()
    averaged = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
    trained = {name.removeprefix("model."): tensor for name, tensor in checkpoint["current_model_state"].items()}
    assert all(torch.equal(exported[name], averaged[name]) for name in exported)
    assert not all(torch.equal(exported[name], trained[name]) for name in exported)


def test_the_exported_prior_is_a_complete_bundle(tokenizer_run, prior_run):
    pipeline = TextToImage.from_pretrained(prior_run / "model")
    averaged = checkpoint_of(prior_run)["state_dict"]
    assert all(torch.equal(tensor, averaged[f"prior.{name}"]) for name, tensor in pipeline.prior.state_dict().items())
    assert fingerprint(pipeline.image_tokenizer) == fingerprint(load_image_tokenizer(tokenizer_run / "model"))
    bundle = json.loads((prior_run / "model" / "bundle.json").read_text())
    assert re.fullmatch("[0-9a-f]{16}", bundle["data"])
    (picture,) = pipeline("a red circle")
    assert picture.size == (32, 32)


def test_sizes_that_others_fix_are_taken_from_them(prior_run):
    config = TextToImage.from_pretrained(prior_run / "model").prior.config
    assert (config.codebook_size, config.grid_size, config.text_len, config.text_vocab_size) == (16, (8, 8), 24, 300)


def test_the_saved_config_says_how_it_was_trained_and_repeats_it(tokenizer_run, tmp_path):
    saved = yaml.safe_load((tokenizer_run / "config.yaml").read_text())
    assert saved["trainer"]["max_steps"] == 4
    assert saved["trainer"]["precision"] == default_precision("cpu")
    assert saved["model"]["vae"]["quantizer"] == "vq"
    assert saved["ckpt_path"] is None
    train.train("tokenizer", ["fit", "--config", str(tokenizer_run / "config.yaml"), "--run", str(tmp_path / "again")])
    ours, theirs = checkpoint_of(tokenizer_run), checkpoint_of(tmp_path / "again")
    assert_equal(ours["state_dict"], theirs["state_dict"])


def test_the_saved_config_of_a_resumed_run_repeats_it_from_the_start(tokenizer_run, tmp_path):
    run = shutil.copytree(tokenizer_run, tmp_path / "run")
    fit("tokenizer", run, "--ckpt_path=last", "--trainer.max_steps=5")
    assert yaml.safe_load((run / "config.yaml").read_text())["ckpt_path"] is None
    train.train("tokenizer", ["fit", "--config", str(run / "config.yaml"), "--run", str(tmp_path / "again")])
    assert checkpoint_of(tmp_path / "again")["global_step"] == 5


def test_the_config_of_an_earlier_version_goes_on(tokenizer_run, tmp_path):
    """Its average had a setting that was never used, and would have done harm."""
    run = shutil.copytree(tokenizer_run, tmp_path / "run")
    old = yaml.safe_load((run / "config.yaml").read_text())
    args = ["fit", "--config", str(run / "config.yaml"), "--run", str(run), "--ckpt_path=last"]
    old["ema"]["update_starting_at_epoch"] = None
    (run / "config.yaml").write_text(yaml.safe_dump(old))
    train.train("tokenizer", args)
    assert "update_starting_at_epoch" not in (run / "config.yaml").read_text()
    old["ema"]["update_starting_at_epoch"] = 3
    (run / "config.yaml").write_text(yaml.safe_dump(old))
    with pytest.raises(ValueError, match=r"ema\.update_starting_at_epoch is 3, .*lost where the run is killed"):
        train.train("tokenizer", args)


def test_the_command_line_outdoes_the_config_and_its_precision_stays(tokenizer_run, tmp_path):
    config = ["--config", str(tokenizer_run / "config.yaml"), "--run", str(tmp_path / "run")]
    (other,) = {"32-true", "bf16-mixed"} - {default_precision("cpu")}
    train.train("tokenizer", ["fit", *config, "--trainer.max_steps=1", f"--trainer.precision={other}"])
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (saved["trainer"]["max_steps"], saved["trainer"]["precision"]) == (1, other)
    assert checkpoint_of(tmp_path / "run")["global_step"] == 1


def test_none_in_a_saved_config_stays_none(tmp_path):
    """A null that takes the place of a default must not be left out, or the repeated run is another one."""
    fit("tokenizer", tmp_path / "run", "--model.optim.decay_steps=null")
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["model"]["optim"]["decay_steps"] is None


@pytest.mark.parametrize("kind", ["tokenizer", "prior"])
def test_pictures_are_drawn_with_the_averaged_weights(kind, tmp_path, extra, monkeypatch):
    """At a validation in the middle, when other weights are being trained."""
    seen = {}

    def draw(self, system):
        seen[system.global_step] = {name: tensor.clone() for name, tensor in system.state_dict().items()}
        assert not system.training
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr({"tokenizer": train.TokenizerCLI, "prior": train.PriorCLI}[kind], "draw", draw)
    steps = f"--trainer.max_steps={STEPS_AN_EPOCH}"
    fit(kind, tmp_path / "run", *extra[kind], steps)
    assert_equal(seen[STEPS_AN_EPOCH], checkpoint_of(tmp_path / "run")["state_dict"])


@pytest.mark.parametrize(("kind", "name"), [("tokenizer", "reconstructions"), ("prior", "samples")])
def test_pictures_of_the_training(kind, name, tmp_path, extra):
    run = fit(kind, tmp_path / "run", *extra[kind], f"--trainer.max_steps={2 * STEPS_AN_EPOCH}")
    drawn = sorted(path.name for path in (run / "pictures").iterdir())
    assert drawn == [f"{name}-0000006.png", f"{name}-0000012.png"], "the first, and after the last step"


def test_a_run_shorter_than_the_interval_is_validated_at_its_end(tmp_path):
    interval = ("--trainer.val_check_interval=500", "--trainer.check_val_every_n_epoch=null")
    run = tmp_path / "run"
    metrics = train.train("tokenizer", ["fit", *arguments("tokenizer", run, "--trainer.max_steps=8", *interval)])
    assert "val/psnr" in metrics
    given = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["val_check_interval"]
    assert given == 500, "made longer, it is validated as was asked for"
    assert [path.name for path in (run / "pictures").iterdir()] == ["reconstructions-0000008.png"]


def test_unusable_pictures_are_listed_in_the_run(tmp_path):
    """And a run that is repeated from its config lists its own in its own folder."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(12):
        Image.new("RGB", (40, 40), (20 * i, 0, 0)).save(pictures / f"{i}.png")
    (pictures / "broken.png").write_bytes(b"no picture")
    folder = (f"--data.folder={pictures}", "--data.drawings=null", "--data.loading.max_rejected=0.5")
    run = fit("tokenizer", tmp_path / "run", *folder, "--data.loading.val_fraction=0.4")
    assert "broken.png" in (run / REJECTS).read_text()
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["loading"]["report"] is None


def test_a_trial_run_leaves_nothing(tmp_path):
    fit("tokenizer", tmp_path / "run", "--trainer.fast_dev_run=true")
    assert not (tmp_path / "run").exists()


def test_the_last_values_come_back(tmp_path):
    metrics = train.train("tokenizer", ["fit", *arguments("tokenizer", tmp_path / "run", "--trainer.max_steps=6")])
    assert {"train/loss", "val/psnr"} <= metrics.keys()
    assert all(isinstance(value, float) for value in metrics.values())


def test_validate_measures_the_last_checkpoint(tokenizer_run, capsys):
    metrics = train.train("tokenizer", ["validate", *arguments("tokenizer", tokenizer_run)])
    assert {"val/loss", "val/psnr", "val/codes_used"} <= metrics.keys()
    named = ["validate", f"--config={tokenizer_run / 'config.yaml'}", f"--ckpt_path={tokenizer_run / CHECKPOINT}"]
    assert train.train("tokenizer", named) == metrics
    assert files_in(tokenizer_run) == RUN_FILES | MODEL_FILES, "it writes nothing"


def test_validate_needs_only_the_weights(tokenizer_run, tmp_path):
    checkpoint = checkpoint_of(tokenizer_run)
    kept = {name: checkpoint[name] for name in ("state_dict", "pytorch-lightning_version", "global_step")}
    torch.save(kept, tmp_path / "weights.ckpt")
    named = arguments("tokenizer", tmp_path / "run", f"--ckpt_path={tmp_path / 'weights.ckpt'}")
    assert train.train("tokenizer", ["validate", *named]).keys() >= {"val/loss", "val/psnr"}


def test_validate_of_a_prior(prior_run, extra):
    assert "val/loss_image" in train.train("prior", ["validate", *arguments("prior", prior_run, *extra["prior"])])


def test_a_prior_trains_on_codes(tokenizer_run, prior_run, tmp_path):
    codes = write_codes(tmp_path / "codes", fingerprint(load_image_tokenizer(tokenizer_run / "model")))
    run = fit(
        "prior", tmp_path / "run", f"--tokenizer={tokenizer_run}", "--data.drawings=null", f"--data.codes={codes}"
    )
    assert files_in(run) == RUN_FILES | MODEL_FILES | BUNDLE_FILES


def test_help_and_print_config(capsys):
    for args in (["tokenizer", "fit", "--help"], ["prior", "fit", "--help"], ["prior", "--help"]):
        with pytest.raises(SystemExit) as stop:
            train.train(args[0], args[1:])
        assert stop.value.code == 0
    assert "usage: train.py prior" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        train.train("tokenizer", ["fit", *arguments("tokenizer", Path("run")), "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["vae"]["codebook_size"] == 16


def test_a_config_by_name(capsys):
    (name, *_) = sorted(path.stem for path in (CONFIGS / "tokenizer").glob("*.yaml"))
    for config in (["--config", name], [f"--config={name}"], ["-c", name]):
        with pytest.raises(SystemExit):
            train.train("tokenizer", ["fit", *config, "--data.folder", "pictures", "--print_config"])
        expected = yaml.safe_load((CONFIGS / "tokenizer" / f"{name}.yaml").read_text())
        assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_steps"] == expected["trainer"]["max_steps"]


def test_two_devices(tokenizer_run, tmp_path):
    devices = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=3"]
    watched = "--trainer.callbacks+=tests.same_weights.SameWeights"
    args = arguments("prior", tmp_path / "run", f"--tokenizer={tokenizer_run}", *devices, watched)
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "prior", "fit", *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tensors are alike on 2 devices" in done.stdout
    assert done.stdout.count("model: ") == 1, "the first device alone exports"
    assert files_in(tmp_path / "run") >= RUN_FILES | MODEL_FILES | BUNDLE_FILES
    TextToImage.from_pretrained(tmp_path / "run" / "model")
