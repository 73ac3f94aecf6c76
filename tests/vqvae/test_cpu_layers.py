"""Layers that go their own way on a CPU: the same values as PyTorch's, and only where they may."""

import pytest
import torch
import torch.nn.functional as F

from vqvae import cpu_layers
from vqvae.config import DiscreteVAEConfig
from vqvae.cpu_layers import Conv3x3, MaxPool2x2
from vqvae.model import DiscreteVAE
from vqvae.tiling import decode_tiled, encode_tiled

needs_nnpack = pytest.mark.skipif(not torch.backends.nnpack.is_available(), reason="this PyTorch has no NNPACK")


@pytest.fixture
def winograd(monkeypatch):
    """The convolutions that went through NNPACK, by the shapes of their pictures."""
    went = []
    convolve = torch.ops.aten._nnpack_spatial_convolution

    def seen(picture, *rest):
        went.append(tuple(picture.shape))
        return convolve(picture, *rest)

    monkeypatch.setattr(torch.ops.aten, "_nnpack_spatial_convolution", seen)
    return went


class Marked(torch.Tensor):
    pass


def layer_and_maps(n_in=64, n_out=64, size=(32, 32), batch=1):
    torch.manual_seed(0)
    layer = Conv3x3(n_in, n_out)
    return layer, torch.randn(batch, n_in, *size)


def exact(layer, x):
    return F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)


@needs_nnpack
@pytest.mark.parametrize(
    ("n_in", "n_out", "size", "batch"),
    [(64, 64, (32, 32), 1), (96, 70, (33, 47), 3), (64, 256, (5, 210), 2), (67, 64, (1024, 1), 1)],
)
@torch.no_grad()
def test_winograds_convolution(winograd, n_in, n_out, size, batch):
    layer, x = layer_and_maps(n_in, n_out, size, batch)
    found, expected = layer(x), exact(layer, x)
    assert winograd == [(1, n_in, *size)] * batch
    error = (found - expected).abs()
    assert error.square().mean().sqrt() < 1e-5 * expected.square().mean().sqrt()
    assert error.max() < 5e-5 * expected.abs().max()
    with torch.backends.nnpack.flags(enabled=False):
        usual = layer(x)
    assert len(winograd) == batch
    torch.testing.assert_close(usual, F.conv2d(x, layer.weight, layer.bias, padding=1))


@needs_nnpack
@torch.no_grad()
def test_a_picture_comes_out_alike_in_any_batch(winograd):
    layer, x = layer_and_maps(batch=5)
    together = layer(x)
    assert all(torch.equal(together[i], layer(x[i : i + 1])[0]) for i in range(5))


@needs_nnpack
@torch.no_grad()
def test_new_weights_count_at_once(winograd):
    layer, x = layer_and_maps()
    layer(x)
    layer.weight.data.mul_(2)
    layer.bias.zero_()
    torch.testing.assert_close(layer(x).double(), exact(layer, x), rtol=0, atol=1e-3)
    assert len(winograd) == 2


@pytest.mark.parametrize(
    "unsuited",
    {
        "narrow in": lambda: layer_and_maps(n_in=63),
        "narrow out": lambda: layer_and_maps(n_out=8),
        "small maps": lambda: layer_and_maps(size=(31, 33)),
        "large maps": lambda: layer_and_maps(size=(513, 512)),
        "a picture without its batch": lambda: (lambda layer, x: (layer, x[0]))(*layer_and_maps()),
        "of a class of its own": lambda: (lambda layer, x: (layer, x.as_subclass(Marked)))(*layer_and_maps()),
        "no pictures": lambda: layer_and_maps(batch=0),
        "channels last": lambda: [each.to(memory_format=torch.channels_last) for each in layer_and_maps()],
        "float64": lambda: [each.double() for each in layer_and_maps()],
        "bfloat16": lambda: [each.bfloat16() for each in layer_and_maps()],
        "meta": lambda: [each.to("meta") for each in layer_and_maps()],
    }.items(),
    ids=lambda item: item[0],
)
@torch.no_grad()
def test_others_go_the_usual_way(winograd, unsuited):
    layer, x = unsuited[1]()
    assert layer(x).shape == (*x.shape[:-3], layer.out_channels, *x.shape[-2:])
    assert winograd == []


def test_where_gradients_are_wanted_and_under_autocast_it_is_the_usual_way(winograd):
    layer, x = layer_and_maps()
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert winograd == []


@pytest.mark.parametrize("gone", ["library", "switch", "operator"])
@torch.no_grad()
def test_without_nnpack_it_is_the_usual_way(winograd, monkeypatch, gone):
    if gone == "library":
        monkeypatch.setattr(torch.backends.nnpack, "is_available", lambda: False)
    elif gone == "switch":
        monkeypatch.delattr(torch._C, "_get_nnpack_enabled")
    else:
        monkeypatch.setattr(cpu_layers.torch.ops, "aten", object())
    layer, x = layer_and_maps()
    torch.testing.assert_close(layer(x).double(), exact(layer, x), rtol=1e-5, atol=1e-5)
    assert winograd == []


@torch.no_grad()
def test_other_paddings_and_weights(winograd):
    layer, x = layer_and_maps()
    layer.padding_mode = "circular"
    around = F.pad(x, (1, 1, 1, 1), mode="circular")
    torch.testing.assert_close(layer(x), F.conv2d(around, layer.weight, layer.bias))
    layer, x = layer_and_maps()
    with pytest.raises(RuntimeError, match=r"should be the same|same dtype"):
        layer.bfloat16()(x)
    assert winograd == []


def wide_model():
    """Whose hidden width, a quarter of n_hid, is just enough, on maps of 32x32 and 64x64."""
    torch.manual_seed(0)
    sizes = {"image_size": 64, "n_hid": 256, "n_init": 8, "n_groups": 2, "n_blk_per_group": 1, "codebook_size": 64}
    return DiscreteVAE(DiscreteVAEConfig(**sizes)).eval()


@needs_nnpack
@torch.no_grad()
def test_encoding_and_decoding_go_this_way(winograd):
    model = wide_model()
    picture = torch.rand(1, 3, 64, 64)
    indices = model.encode(picture)
    n_encoding = len(winograd)
    image = model.decode(indices)
    assert n_encoding == len(winograd) - n_encoding == 6
    with torch.backends.nnpack.flags(enabled=False):
        torch.testing.assert_close(model.decode(indices), image, rtol=0, atol=1e-5)
    assert torch.equal(encode_tiled(model, picture[0], tile=20), indices[0])
    torch.testing.assert_close(
        decode_tiled(model, indices[0], tile=20, out=torch.empty(3, 64, 64)), image[0], rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_in_bfloat16_codes_stay_channels_last(monkeypatch):
    model, layouts = wide_model(), []
    after_input = model.decoder.after_input
    monkeypatch.setattr(model.decoder, "after_input", lambda x: layouts.append(x.is_contiguous()) or after_input(x))
    indices = torch.zeros(1, 32, 32, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        model.decode(indices)
    model.decode(indices)
    assert layouts == [False, True]


@pytest.mark.parametrize("method", ["encode", "decode", "forward"])
@torch.no_grad()
def test_compiled(winograd, method):
    model = wide_model()
    x = torch.zeros(1, 32, 32, dtype=torch.int64) if method == "decode" else torch.rand(1, 3, 64, 64)
    found = torch.compile(getattr(model, method), backend="aot_eager")(x)
    assert winograd == []
    expected = getattr(model, method)(x)
    if method == "forward":
        found, expected = found.maps, expected.maps
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_exported_for_any_batch():
    model = wide_model()
    any_batch = {"x": {0: torch.export.Dim("batch", min=2, max=9)}}
    program = torch.export.export(model.encoder, (torch.rand(3, 3, 64, 64),), dynamic_shapes=any_batch)
    x = torch.rand(5, 3, 64, 64)
    torch.testing.assert_close(program.module()(x), model.encoder(x), rtol=0, atol=1e-4)


def test_the_starting_values_are_pytorchs():
    torch.manual_seed(0)
    usual = torch.nn.Conv2d(8, 12, 3, padding=1)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(Conv3x3(8, 12).parameters(), usual.parameters(), strict=True))


@pytest.mark.parametrize("size", [(2, 2), (6, 10), (7, 9), (3, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_pooling(monkeypatch, size, layout):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    x[0, 0, 0, 0], x[1, 0, 1, 1] = torch.inf, torch.nan
    usual = []
    monkeypatch.setattr(torch.nn.MaxPool2d, "forward", lambda self, x: usual.append(x) or F.max_pool2d(x, 2))
    torch.testing.assert_close(
        MaxPool2x2()(x.to(memory_format=layout)), F.max_pool2d(x, 2), rtol=0, atol=0, equal_nan=True
    )
    assert len(usual) == (0 if layout == torch.contiguous_format else 1)


@torch.no_grad()
def test_maps_too_small_for_pooling_are_refused():
    with pytest.raises(RuntimeError, match="too small"):
        MaxPool2x2()(torch.zeros(1, 3, 1, 4))


def test_pooling_has_pytorchs_gradients():
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)  # of equal values PyTorch's takes the first
    MaxPool2x2()(x).sum().backward()
    assert x.grad[0, 0].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
