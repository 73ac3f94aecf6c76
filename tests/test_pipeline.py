import json
import shutil
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from PIL import Image

import pipeline as pipeline_module
from data.transforms import to_pil_images
from pipeline import TextToImage, fingerprint, repeat, usable_device
from transformer.sampling import SamplingConfig
from transformer.serving import for_decoding
from vqvae.folders import load_image_tokenizer

FILES = ["bundle.json", "config.json", "model.safetensors", "tokenizer.json"]
FILES += ["image_tokenizer/config.json", "image_tokenizer/model.safetensors"]


@pytest.fixture
def bundle(shared_bundle, tmp_path):
    return shutil.copytree(shared_bundle, tmp_path / "model")


@pytest.fixture
def other(pipeline):
    """Of the same sizes, with other weights."""
    with torch.no_grad():
        for model in (pipeline.prior, pipeline.image_tokenizer):
            next(model.parameters()).add_(1.0)
    return pipeline


def arrays(pictures):
    return [np.asarray(picture) for picture in pictures]


def test_what_is_loaded_is_what_was_saved(pipeline, shared_bundle):
    loaded = TextToImage.from_pretrained(shared_bundle)
    assert loaded.fingerprint == pipeline.fingerprint
    for part in ("prior", "image_tokenizer"):
        ours, theirs = getattr(pipeline, part), getattr(loaded, part)
        assert ours.config == theirs.config
        assert not theirs.training
        assert all(torch.equal(theirs.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())
    captions = ["a red circle", "ein größerer 猫"]
    assert torch.equal(loaded.text_tokens(captions), pipeline.text_tokens(captions))
    for a, b in zip(arrays(pipeline(captions, n=2)), arrays(loaded(captions, n=2)), strict=True):
        assert np.array_equal(a, b)


def test_a_bundle_holds_its_files_and_says_what_it_is(pipeline, shared_bundle):
    found = sorted(str(path.relative_to(shared_bundle)) for path in shared_bundle.rglob("*") if path.is_file())
    assert found == sorted(FILES)
    bundle = json.loads((shared_bundle / "bundle.json").read_text())
    assert bundle["prior"] == fingerprint(pipeline.prior)
    assert bundle["image_tokenizer"] == fingerprint(pipeline.image_tokenizer)
    assert bundle["text_tokenizer"] == pipeline.text_tokenizer.fingerprint
    assert bundle["data"] == "0123456789abcdef"
    assert bundle["versions"]["torch"] == version("torch")


def test_pictures_are_pil_pictures_of_the_tokenizers_size(pipeline):
    pictures = pipeline("a red circle", n=3, seed=5)
    assert len(pictures) == 3
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    assert {(picture.mode, picture.size) for picture in pictures} == {("RGB", (16, 16))}


def test_a_picture_is_a_function_of_caption_and_seed_alone(pipeline):
    together = arrays(pipeline(["a red circle", "a blue star", "no circle at all"], n=4, seed=3))
    assert len({picture.tobytes() for picture in together}) > 6, "they are to differ, or the test shows nothing"
    for i, caption in enumerate(["a red circle", "a blue star", "no circle at all"]):
        for j in range(4):
            (alone,) = arrays(pipeline(caption, seed=3 + j))
            assert np.array_equal(alone, together[4 * i + j])


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 5, "guidance_scale": 2.0}, {"top_p": 0.8}])
def test_the_batch_size_changes_nothing(pipeline, settings):
    captions, seeds = repeat(["a red circle", "a blue star"], 4, seed=0)
    config = SamplingConfig(**settings)
    whole = pipeline.sample(captions, seeds, config, batch_size=8)
    for batch_size in (1, 3, 5):
        assert torch.equal(pipeline.sample(captions, seeds, config, batch_size=batch_size), whole)


def test_batches_come_as_they_are_drawn(pipeline):
    captions, seeds = repeat(["a red circle", "a blue star"], 4, seed=0)
    done = []
    batches = pipeline.sample_batches(
        captions, seeds, SamplingConfig(), batch_size=3, progress=lambda *at: done.append(at)
    )
    first = next(batches)
    assert done[-1] == (2 * 16, 8 * 16)
    drawn = [batch.pictures for batch in (first, *batches)]
    assert [len(pictures) for pictures in drawn] == [2, 2, 2, 2]
    assert torch.equal(torch.cat(drawn), pipeline.sample(captions, seeds, SamplingConfig()))


def test_a_captions_pictures_are_drawn_together(pipeline, monkeypatch):
    seen = []

    def watched(prior, text_tokens, **inputs):
        seen.append([tuple(row) for row in text_tokens.tolist()])
        return generate(prior, text_tokens, **inputs)

    generate = pipeline_module.generate
    monkeypatch.setattr(pipeline_module, "generate", watched)
    captions, seeds = repeat(["a red circle", "a blue star", "no circle at all"], 3, seed=0)
    pipeline.sample(captions, seeds, SamplingConfig(), batch_size=8)
    assert [(len(rows), len(set(rows))) for rows in seen] == [(6, 2), (3, 1)]


def test_a_wide_decoder_rounds_alike_in_every_batch(pipeline, image_tokenizer_of):
    """Over several pictures at once, its convolutions add up in another order and differ in the last bit."""
    pipeline.image_tokenizer = image_tokenizer_of(n_hid=32, n_init=64, n_groups=4, image_size=32)
    captions, seeds = repeat(["a red circle"], 16, seed=0)
    whole = pipeline.sample(captions, seeds, SamplingConfig(), batch_size=16)
    assert torch.equal(pipeline.sample(captions, seeds, SamplingConfig(), batch_size=1), whole)


def test_settings_reach_the_sampler(pipeline):
    (greedy,), (same,) = (arrays(pipeline("a blue star", seed=seed, temperature=0.0)) for seed in (0, 1))
    assert np.array_equal(greedy, same)
    with pytest.raises(ValueError, match=r"top_p is 2\.0"):
        pipeline("a blue star", top_p=2.0)
    with pytest.raises(TypeError, match="temprature"):
        pipeline("a blue star", temprature=1.0)


def test_progress_counts_every_token_once(pipeline):
    seen = []
    pipeline.sample(["a"] * 5, range(5), SamplingConfig(), batch_size=2, progress=lambda *at: seen.append(at))
    done, totals = zip(*seen, strict=True)
    assert set(totals) == {5 * 16}
    assert list(done) == sorted(done)
    assert (done[0], done[-1]) == (0, 80)
    assert set(np.diff(done)) == {0, 2, 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "no captions"),
        ({"prompt": "a", "n": 0}, "n is 0, expected at least 1"),
        ({"prompt": "a", "seed": 2**63}, "seed 9223372036854775808 does not fit"),
        ({"prompt": "a", "seed": 2**63 - 1, "n": 2}, "seed 9223372036854775808 does not fit"),
    ],
)
def test_wrong_requests(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)


@pytest.mark.parametrize("seeds", [1, 5])
def test_each_caption_has_a_seed(pipeline, seeds):
    with pytest.raises(ValueError, match=f"{seeds} seeds, expected one for each of 2 captions"):
        pipeline.sample(["a"] * 2, range(seeds), SamplingConfig())


def test_a_batch_has_at_least_one_picture(pipeline):
    with pytest.raises(ValueError, match="batch_size is 0"):
        pipeline.sample(["a"], [0], SamplingConfig(), batch_size=0)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(ValueError, match=name.split("/")[-1]):
        TextToImage.from_pretrained(bundle)


@pytest.mark.parametrize("name", FILES)
def test_half_a_file_is_named(bundle, name):
    path = bundle / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=name.split("/")[-1]):
        TextToImage.from_pretrained(bundle)


@pytest.mark.parametrize("content", ["[]", "{}", '{"prior": 1, "text_tokenizer": "x", "image_tokenizer": "y"}'])
def test_a_bundle_file_without_fingerprints_is_refused(bundle, content):
    (bundle / "bundle.json").write_text(content)
    with pytest.raises(ValueError, match=r"bundle\.json is damaged"):
        TextToImage.from_pretrained(bundle)


def test_another_image_tokenizer_is_refused_with_both_fingerprints(bundle, other):
    expected = json.loads((bundle / "bundle.json").read_text())["image_tokenizer"]
    other.image_tokenizer.save_pretrained(bundle / "image_tokenizer")
    with pytest.raises(ValueError, match="the image tokenizer is") as error:
        TextToImage.from_pretrained(bundle)
    assert expected in str(error.value)
    assert fingerprint(other.image_tokenizer) in str(error.value)


def test_another_prior_is_refused(bundle, other):
    other.prior.save_pretrained(bundle)
    with pytest.raises(ValueError, match="the prior is"):
        TextToImage.from_pretrained(bundle)


def test_another_text_tokenizer_is_refused(bundle, pipeline):
    pipeline.text_tokenizer.train(["other words"] * 3, vocab_size=280).save(bundle / "tokenizer.json")
    with pytest.raises(ValueError, match="the text tokenizer is"):
        TextToImage.from_pretrained(bundle)


def test_an_export_that_was_broken_off_is_no_bundle(bundle, other, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(other.image_tokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        other.save_pretrained(bundle)
    with pytest.raises(ValueError, match=r"bundle\.json is missing"):
        TextToImage.from_pretrained(bundle)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_a_bundle_outlives_the_refusal_of_another(bundle, other, weights):
    files = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    for_decoding(other.prior, weights)
    for rounded in (TextToImage.from_pretrained(bundle, weights=weights), other):
        with pytest.raises(ValueError, match="whose weights were rounded"):
            rounded.save_pretrained(bundle)
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == files
    TextToImage.from_pretrained(bundle)


def test_parts_of_other_sizes_are_refused(pipeline, image_tokenizer_of):
    with pytest.raises(ValueError, match=r"grid_size of the prior is \(4, 4\), of the image tokenizer \(8, 8\)"):
        TextToImage(pipeline.prior, pipeline.text_tokenizer, image_tokenizer_of(image_size=32))
    pipeline.prior.config = replace(pipeline.prior.config, text_vocab_size=280)
    with pytest.raises(ValueError, match="the text tokenizer has 300 entries, the prior 280"):
        TextToImage(pipeline.prior, pipeline.text_tokenizer, pipeline.image_tokenizer)


def test_fingerprints_name_weights_not_places(pipeline):
    model = pipeline.image_tokenizer
    before = fingerprint(model)
    assert fingerprint(model.to(memory_format=torch.channels_last)) == before
    with torch.no_grad():
        bias = model.decoder.state_dict()["blocks.input.bias"]
        bias[0] = torch.nextafter(bias[0], torch.tensor(10.0))
    assert fingerprint(model) != before


def test_the_image_tokenizer_of_a_bundle_loads_by_itself(shared_bundle):
    model = load_image_tokenizer(shared_bundle / "image_tokenizer")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_values_are_rounded_not_cut():
    images = torch.tensor([0.0, 1.0, 127.6 / 255, 0.999 / 255, -0.5, 2.0]).reshape(1, 1, 2, 3).expand(1, 3, 2, 3)
    (picture,) = to_pil_images(images)
    assert np.asarray(picture)[..., 0].tolist() == [[0, 255, 128], [1, 0, 255]]


@pytest.mark.parametrize("device", ["banana", "cuda:64", "meta"])
def test_a_device_that_is_not_here(device):
    with pytest.raises(ValueError, match=f"device {device} was asked for"):
        usable_device(device)
