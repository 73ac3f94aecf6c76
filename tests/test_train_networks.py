"""Training with the network that is not the default."""

import pytest

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
