import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from vqvae.config import DiscreteVAEConfig
from vqvae.model import DiscreteVAE
from vqvae.palette import Palette, PaletteConfig
from vqvae.pixels import map_pixels


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20), (4, 28)])
def test_there_and_back(make_model, quantizer_settings, height, width):
    model = make_model(**quantizer_settings)
    indices = model.encode(torch.rand(2, 3, height, width))
    assert indices.shape == (2, height // 4, width // 4)
    assert indices.dtype == torch.int64
    assert 0 <= indices.min() <= indices.max() < 32
    recon = model.decode(indices)
    assert recon.shape == (2, 3, height, width)
    assert 0 <= recon.min() <= recon.max() <= 1
    assert not recon.requires_grad


def test_the_paper_weighs_the_kl_by_192():
    with torch.device("meta"):
        assert DiscreteVAE(DiscreteVAEConfig()).quantizer.values_per_code == 192


def test_the_encoder_sees_mapped_pixels(make_model, images):
    model = make_model()
    torch.testing.assert_close(model.encode_vectors(images), model.encoder(0.8 * images + 0.1))


def test_the_picture_stays_in_the_pixel_range(make_model):
    maps = torch.full((1, 6, 2, 2), 9.0)
    assert (make_model().reconstruction(maps) == 1).all()
    assert (make_model().reconstruction(-maps) == 0).all()
    assert (make_model(pixels="signed").reconstruction(maps[:, :3]) == 1).all()


def test_signed_pixels(make_model, images):
    model = make_model(pixels="signed")
    torch.testing.assert_close(model.encode_vectors(images), model.encoder(2 * images - 1))
    maps = model(images).maps
    assert maps.shape == (6, 3, 16, 16)
    torch.testing.assert_close(model.reconstruction(maps), ((maps + 1) / 2).clamp(0, 1))


def test_eval_mode_is_decode_of_encode(make_model, quantizer_settings, images):
    model = make_model(**quantizer_settings)
    maps, quantized = model(images)
    assert torch.equal(quantized.indices, model.encode(images))
    torch.testing.assert_close(model.reconstruction(maps), model.decode(model.encode(images)))


def test_training_mode_goes_through_relaxed_codes(make_model, images):
    model = make_model().train()
    quantized = model(images).quantized
    assert quantized.z_q.amax(dim=1).mean() < 0.9
    torch.testing.assert_close(quantized.logits, model.encode_vectors(images))


def test_tokens_do_not_depend_on_the_batch_or_the_mode(make_model, quantizer_settings, images):
    model = make_model(**quantizer_settings).train()
    model(images)
    indices = model.encode(images)
    assert len(indices.unique()) > 3
    assert torch.equal(model.eval().encode(images), indices)
    assert torch.equal(torch.cat([model.encode(image[None]) for image in images]), indices)


def test_bf16_autocast_and_channels_last(make_model, quantizer_settings, images):
    """The codes are those of what autocast gives, logits in float32, and the picture is near the one without it."""
    model = make_model(**quantizer_settings).to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        features = model.encoder.features(map_pixels(images))
        z_e = model.encode_vectors(images)
        indices = model.encode(images)
        recon = model.decode(indices)
        loss = model(images).quantized.loss
    assert features.dtype == z_e.dtype == torch.bfloat16
    if quantizer_settings["quantizer"] == "gumbel":
        z_e = model.encoder.output_conv(features.float())
    assert torch.equal(indices, model.quantizer.hard_indices(z_e.float()))
    assert recon.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(recon, model.decode(indices), atol=0.02, rtol=0)


def test_nothing_has_as_many_values_as_the_logits(make_model, images):
    """Neither logits in encode nor one-hot codes in decode: what each of their operators returns is smaller.

    (Of those inside of operators: tests/kernels/test_nearest.py.)
    """
    model = make_model(codebook_size=4096, n_hid=8)
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    indices = model.encode(images)
    weight = model.decoder.input_conv.weight.numel()
    for call, given, least, most in (
        (model.encode, images, 0, 1),
        (model.encode_vectors, images, 1, 2),
        (model.decode, indices, 0, 1),
        (model.quantizer.indices_to_codes, indices, 1, 2),
    ):
        sizes.clear()
        with Watch():
            call(given)
        assert least * 6 * 16 * 4096 <= max(size for size in sizes if size != weight) < most * 6 * 16 * 4096


def test_codes_go_into_the_decoder_as_they_are(make_model, quantizer_settings):
    model = make_model(**quantizer_settings)
    indices = torch.arange(32).view(2, 4, 4)
    expected = model.decoder(model.quantizer.indices_to_codes(indices))
    embedded = model.quantizer.indices_into(indices, model.decoder.input_conv)
    torch.testing.assert_close(model.decoder.after_input(embedded), expected)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 16, 18), r"shape \(1, 3, 16, 18\), expected \(B, 3, H, W\) with H and W multiples of 4"),
        ((1, 3, 15, 16), r"shape \(1, 3, 15, 16\), expected"),
        ((1, 1, 16, 16), r"shape \(1, 1, 16, 16\), expected"),
        ((3, 16, 16), r"shape \(3, 16, 16\), expected"),
    ],
)
def test_wrong_images_are_refused(make_model, shape, message):
    for call in (make_model(), make_model().encode):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(shape))


def test_bytes_are_refused(make_model):
    with pytest.raises(ValueError, match=r"images have dtype torch.uint8, expected floats in \[0, 1\]"):
        make_model().encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize(("scale", "shift", "said"), [(255, 0, "from 0 to 2"), (2, -1, "from -1 to 1")])
def test_pictures_in_another_range_are_refused(make_model, images, scale, shift, said):
    images = (images - images.min()) / (images.max() - images.min())
    model = make_model().eval()
    with pytest.raises(ValueError, match=rf"images run {said}.*expected \[0, 1\]"):
        model.encode(images * scale + shift)
    model.encode(images * 1.4 - 0.2)


def test_half_precision_takes_floats(make_model, images):
    model = make_model().eval().bfloat16()
    assert (model.encode(images) == model.encode(images.bfloat16())).float().mean() > 0.8


def test_a_palette_is_no_discrete_vae(tmp_path):
    Palette.fit(PaletteConfig(image_size=4, codebook_size=2), torch.rand(50, 3), steps=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is of kind 'palette', no discrete VAE's: .*load_image_tokenizer"):
        DiscreteVAE.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.tensor([[[0, 32]]]), "indices run from 0 to 32, expected 0 to 31"),
        (torch.tensor([[[-1, 5]]]), "indices run from -1 to 5, expected 0 to 31"),
        (torch.zeros(4, 4, dtype=torch.int64), r"indices have shape \(4, 4\) and dtype torch.int64"),
        (torch.zeros(1, 4, 4), r"shape \(1, 4, 4\) and dtype torch.float32, expected \(B, h, w\) int64"),
        (torch.zeros(1, 4, 4, dtype=torch.int32), r"dtype torch.int32, expected \(B, h, w\) int64"),
    ],
)
def test_wrong_indices_are_refused(make_model, quantizer_settings, indices, message):
    with pytest.raises(ValueError, match=message):
        make_model(**quantizer_settings).decode(indices)


def test_an_empty_batch_stays_empty(make_model, quantizer_settings):
    assert make_model(**quantizer_settings).decode(torch.zeros(0, 4, 4, dtype=torch.int64)).shape == (0, 3, 16, 16)


# ---- model folders


@pytest.fixture
def folder(make_model, tmp_path):
    make_model().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_saved_and_loaded_are_equal(make_model, quantizer_settings, images, tmp_path):
    model = make_model(**quantizer_settings).to(memory_format=torch.channels_last).train()
    model(images)  # moves the vector quantizer's state
    model.save_pretrained(tmp_path / "new" / "tokenizer")
    loaded = DiscreteVAE.from_pretrained(tmp_path / "new" / "tokenizer")
    assert loaded.config == model.config == DiscreteVAE.load_config(tmp_path / "new" / "tokenizer")
    assert not any(module.training for module in loaded.modules())
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    indices = loaded.encode(images)
    assert torch.equal(indices, model.eval().encode(images))
    torch.testing.assert_close(loaded.decode(indices), model.decode(indices))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"no file .*{name}"):
        DiscreteVAE.from_pretrained(folder)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_half_a_checkpoint_is_refused(folder, share):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        DiscreteVAE.from_pretrained(folder)


def test_missing_and_foreign_tensors_are_named(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["decoder.extra"] = tensors.pop("decoder.blocks.input.bias")
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit") as error:
        DiscreteVAE.from_pretrained(folder)
    assert "decoder.blocks.input.bias is missing" in str(error.value)
    assert "decoder.extra is unknown" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_hid": 16}, r"model\.safetensors does not fit .*expected \(16, 3, \d, \d\)"),
        ({"n_hid": 6}, r"config\.json is no discrete VAE's: n_hid is 6, expected a multiple of 4"),
        ({"n_hid": "wide"}, r"config\.json is no discrete VAE's"),
        ({"n_layer": 3}, r"config\.json is no discrete VAE's: .*n_layer"),
        ({"quantizer": "magic"}, r"config\.json: no model can be made of it: unknown quantizer 'magic'"),
        ({"quantizer_options": {"alpha": 1}}, r"config\.json: no model can be made of it: .*no option 'alpha'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, settings, message):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ValueError, match=message):
        DiscreteVAE.from_pretrained(folder)
