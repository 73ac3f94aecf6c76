import pytest

from muon import MuonAdamW
from vqvae.config import DiscreteVAEConfig
from vqvae.model import DiscreteVAE
from vqvae.optim import TokenizerOptim, make_optimizer


@pytest.mark.parametrize(
    ("settings", "encoders_last"),
    [({}, "output.conv"), ({"network": "conv", "pixels": "signed"}, "output")],
    ids=["dalle", "conv"],
)
def test_muon_takes_the_convolutions_in_the_middle(settings, encoders_last):
    """Not those that touch pixels or codes; what it does not take, AdamW does."""
    sizes = {"image_size": 16, "n_hid": 8, "n_init": 8, "n_groups": 2, "n_blk_per_group": 1, "codebook_size": 32}
    model = DiscreteVAE(DiscreteVAEConfig(**sizes, quantizer="vq", quantizer_options={"ema": False}, **settings))
    optimizer = make_optimizer(model, TokenizerOptim(lr=1e-3, muon_lr=3e-3, weight_decay=0.1, betas=(0.8, 0.9)))
    assert isinstance(optimizer, MuonAdamW)
    by_muon, by_adamw = optimizer.param_groups
    assert (by_muon["lr"], by_adamw["lr"]) == (3e-3, 1e-3)
    assert (by_muon["weight_decay"], by_adamw["weight_decay"], by_adamw["betas"]) == (0.1, 0.1, (0.8, 0.9))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    taken, left = ({names[id(parameter)] for parameter in group["params"]} for group in (by_muon, by_adamw))
    kernels = {name for name, parameter in model.named_parameters() if parameter.ndim == 4}
    ends = (
        "encoder.blocks.input",
        f"encoder.blocks.{encoders_last}",
        "decoder.blocks.input",
        "decoder.blocks.output.conv",
    )
    assert taken == kernels - {f"{name}.weight" for name in ends}
    assert left == set(names.values()) - taken
    assert "quantizer.embedding" in left


def test_refuses_a_step_size_of_nothing():
    with pytest.raises(ValueError, match=r"muon_lr is 0, expected more than 0"):
        TokenizerOptim(muon_lr=0)
