import pytest
import torch
from torch import Tensor

from vqvae.config import DiscreteVAEConfig
from vqvae.model import DiscreteVAE
from vqvae.output_conv import OutputConv
from vqvae.tiling import decode_tiled, encode_tiled

SIZES = {"image_size": 24, "n_hid": 16, "n_init": 16, "n_groups": 3, "n_blk_per_group": 1, "codebook_size": 32}


def distinct(images: Tensor) -> int:
    return len(images.unique())


@pytest.fixture(params=["dalle", "conv"])
def decoded(request):
    """From a dtype, and whether by autocast or weights, to the pictures that random codes give."""
    indices = torch.randint(32, (2, 6, 6), generator=torch.Generator().manual_seed(0))

    def decode(dtype: torch.dtype | None, autocast: bool = False) -> Tensor:
        torch.manual_seed(0)
        model = DiscreteVAE(DiscreteVAEConfig(**SIZES, network=request.param)).eval()
        if dtype is None or autocast:
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=autocast):
                return model.decode(indices)
        return model.to(dtype).decode(indices)

    return decode


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_no_bands(decoded, dtype, autocast):
    exact, half = decoded(None), decoded(dtype, autocast)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.03, rtol=0)
    # Nearly as many different values as pixels; maps in bfloat16 leave a few hundred.
    assert distinct(half) > 0.5 * distinct(exact)
    assert distinct(exact.to(dtype)) < 0.5 * distinct(exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_does_all_that_it_did(make_config, quantizer_settings, images, dtype):
    """Whatever the quantizer, whose codes are in float32."""
    torch.manual_seed(0)
    model = DiscreteVAE(make_config(**quantizer_settings)).eval().to(dtype)
    indices = model.encode(images.to(dtype))
    decoded = model.decode(indices)
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(model.reconstruction(model(images.to(dtype)).maps), decoded, atol=0.05, rtol=0)
    assert torch.equal(encode_tiled(model, images[0]), indices[0])
    torch.testing.assert_close(decode_tiled(model, indices[0], out=torch.zeros(3, 16, 16)), decoded[0])


def test_in_training_it_is_a_convolution_like_any_other():
    layer, x = OutputConv(4, 6, 3, padding=1), torch.randn(1, 4, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert layer.eval()(x).dtype == torch.float32
    plain = torch.nn.Conv2d(4, 6, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer.train()(x), plain(x))
