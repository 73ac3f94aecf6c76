"""Training with the network that is not the default."""

import logging

import pytest

import train
from tests.runs import MARKS, fit
from vqvae.model import DiscreteVAE

pytestmark = MARKS


def test_conv_with_its_widths(tmp_path):
    settings = ["--model.vae.network=conv", "--model.vae.pixels=signed", "--model.reconstruction=l2"]
    run = fit("tokenizer", tmp_path / "run", *settings, "--model.vae.width_multipliers", "[1,1,2]")
    config = DiscreteVAE.from_pretrained(run / "model").config
    assert (config.network, config.width_multipliers) == ("conv", (1, 1, 2))
    again = fit("tokenizer", tmp_path / "again", f"--config={run / 'config.yaml'}", f"--run={tmp_path / 'again'}")
    assert DiscreteVAE.from_pretrained(again / "model").config == config


def test_widths_of_another_network_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"width_multipliers is .*1, 1, 2.*, but network 'dalle' has none"):
        fit("tokenizer", tmp_path / "run", "--model.vae.width_multipliers=[1,1,2]")


TINY = ("--config=tiny", "--data.image_size=16", "--model.vae.n_groups=2", "--ema.decay=0.9")


def fit_tiny(tmp_path, *settings):
    """The shipped config, with the little that makes it last a second."""
    small = ["--data.drawings={size: 16, count: 32}", "--data.loading={batch_size: 8, workers: 0, val_fraction: 0.3}"]
    run = [f"--run={tmp_path / 'run'}", "--trainer.accelerator=cpu", "--trainer.max_steps=1", "--model.vae.n_hid=8"]
    train.train("tokenizer", ["fit", *TINY, *small, *run, *settings])
    return DiscreteVAE.from_pretrained(tmp_path / "run" / "model").config


@pytest.mark.usefixtures("precision_restored")
@pytest.mark.parametrize("quantizer", ["gumbel", "fsq", "lfq", "bsq", "ibq"])
def test_another_quantizer_is_one_line(tmp_path, caplog, quantizer):
    caplog.set_level(logging.INFO)
    config = fit_tiny(tmp_path, f"--model.vae.quantizer={quantizer}")
    assert (config.quantizer, config.quantizer_options) == (quantizer, {})
    assert f"quantizer {quantizer}: the config's quantizer_options, meant for vq, is left out" in caplog.text


@pytest.mark.usefixtures("precision_restored")
def test_the_same_quantizer_keeps_its_options(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert fit_tiny(tmp_path, "--model.vae.quantizer", "vq").quantizer_options["codebook_dim"] == 4
    assert "left out" not in caplog.text


@pytest.mark.usefixtures("precision_restored")
def test_options_said_beside_another_quantizer_count(tmp_path):
    config = fit_tiny(tmp_path, "--model.vae.quantizer", "lfq", "--model.vae.quantizer_options", "{commitment: 0.5}")
    assert config.quantizer_options == {"commitment": 0.5}


@pytest.mark.usefixtures("precision_restored")
def test_another_network_is_one_line(tmp_path):
    config = fit_tiny(tmp_path, "--model.vae.network=conv")
    assert (config.network, config.post_gain) == ("conv", None)
