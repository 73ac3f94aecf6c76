import pytest

from vqvae.fsq import FSQ
from vqvae.gumbel import Gumbel
from vqvae.quantizers import build_quantizer
from vqvae.vector_quantizer import VectorQuantizer


def test_by_name_with_options():
    gumbel = build_quantizer("gumbel", 64, 48, {"beta": 2.0})
    assert isinstance(gumbel, Gumbel)
    assert (gumbel.codebook_size, gumbel.values_per_code, gumbel.beta_end) == (64, 48, 2.0)
    assert gumbel.in_channels == gumbel.out_channels == 64
    vq = build_quantizer("vq", 64, 48, {"codebook_dim": 8})
    assert isinstance(vq, VectorQuantizer)
    assert vq.in_channels == vq.out_channels == 8


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown quantizer 'rvq', expected one of gumbel, vq, fsq, lfq, bsq, ibq"):
        build_quantizer("rvq", 64, 48, {})


def test_unknown_option_is_refused():
    with pytest.raises(ValueError, match="'vq' has no option 'tau_start', expected one of codebook_dim, commitment"):
        build_quantizer("vq", 64, 48, {"tau_start": 1.0})
    with pytest.raises(ValueError, match="'gumbel' has no option 'values_per_code'"):
        build_quantizer("gumbel", 64, 48, {"values_per_code": 1})


def test_levels_may_be_a_list_or_a_tuple():
    """JSON and YAML have lists only."""
    for levels in ([8, 4], (8, 4)):
        quantizer = build_quantizer("fsq", 32, 48, {"levels": levels})
        assert isinstance(quantizer, FSQ)
        assert quantizer.levels == (8, 4)


@pytest.mark.parametrize("levels", [32, "84", [8, 4.0], [8, True], {8: 4}, None])
def test_levels_are_a_list_of_whole_numbers(levels):
    with pytest.raises(ValueError, match=r"option levels of quantizer 'fsq' is .*, expected a list of whole numbers"):
        build_quantizer("fsq", 32, 48, {"levels": levels})


def test_options_are_numbers():
    with pytest.raises(ValueError, match=r"option decay of quantizer 'vq' is \[1\], expected a number"):
        build_quantizer("vq", 64, 48, {"decay": [1]})
    with pytest.raises(ValueError, match="option decay of quantizer 'vq' is 'slow', expected a number"):
        build_quantizer("vq", 64, 48, {"decay": "slow"})
