"""The comparison of architectures, with a clock on which every update takes a second."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from benchmarks import architectures, contest
from tests import made_codes

UPDATES = 12  # of each, in 4 turns


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(contest, "time", SimpleNamespace(process_time=itertools.count().__next__))
    monkeypatch.setattr(contest, "TURNS", 4)
    monkeypatch.setattr(contest, "VALIDATE_EVERY", 1)
    monkeypatch.setattr(architectures, "SIZES", architectures.QUICK_SIZES)


@pytest.fixture
def settings(tmp_path):
    """24 pictures of one code each, named in their caption; captions of two lengths."""
    folder = tmp_path / "codes"
    captions = [f"the colour {i % 4}" if i % 3 else f"this is a picture of {i % 4}" for i in range(24)]
    codes = (torch.arange(24) % 4)[:, None, None].expand(24, 2, 3)
    splits = ["val"] * 6 + ["train"] * 18
    made_codes.write(folder, codes, [[caption] for caption in captions], splits=splits, codebook_size=4)
    return [f"--codes={folder}", f"--minutes={UPDATES / 60}", "--text-len=8"]


def test_all_train_for_the_same_time_and_are_recorded(settings, tmp_path, capsys):
    out = tmp_path / "results" / "architectures.json"
    architectures.main([*settings, f"--out={out}"])
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert result.keys() >= {"date", "commit", "hardware", "threads", "torch", "settings", "precision", "clock"}
    assert (result["data"]["training_pictures"], result["data"]["validation_pictures"]) == (18, 6)
    for variant in result["variants"].values():
        assert [point["seconds"] for point in variant["curve"]] == [0, 3, 6, 9, 12]
        assert [point["updates"] for point in variant["curve"]] == [0, 3, 6, 9, 12]
        assert variant["ms_per_update"] == 1000
        for kind in ("image", "text"):
            assert variant[f"nats_{kind}_at_quarters"] == [point[kind] for point in variant["curve"][1:]]
            assert variant["curve"][-1][kind] < variant["curve"][0][kind]
    found = {name: (v["block"], v["masks"], v["attend_pads"]) for name, v in result["variants"].items()}
    sparse, dense = ["row", "conv"], ["causal", "causal"]
    assert found == {
        "base": ("modern", sparse, True),
        "base, another seed": ("modern", sparse, True),
        "paper's block": ("paper", sparse, True),
        "dense": ("modern", dense, True),
        "pads skipped": ("modern", sparse, False),
        "dense, pads skipped": ("modern", dense, False),
    }
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.size == (640, 400)


def test_some_of_them_at_the_size_of_a_preset(settings, capsys):
    architectures.main([*settings, "--only", "base", "paper's block", "--preset", "tiny"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["variants"]) == ["base", "paper's block"]
    assert result["sizes"] == {"preset": "tiny"}
    assert all(variant["parameters"] > 1e6 for variant in result["variants"].values())


def test_turns_alternate_on_the_same_batches_dropped_captions_and_step_sizes(settings, monkeypatch):
    seen = []

    def watched(self, text_tokens, image_tokens):
        if self.prior.training:
            sizes = [group["lr"] for group in self.optimizer.param_groups]
            seen.append((names[id(self)], (text_tokens.tolist(), image_tokens.tolist(), sizes)))
        return loss(self, text_tokens, image_tokens)

    def named(name, data, args):
        variant = make(name, data, args)
        names[id(variant)] = name
        return variant

    names, loss, make = {}, contest.Contestant._loss, architectures.make_variant
    monkeypatch.setattr(contest.Contestant, "_loss", watched)
    monkeypatch.setattr(architectures, "make_variant", named)
    monkeypatch.setattr("benchmarks.contest.CAPTION_DROPOUT", 0.5)
    architectures.main(settings)
    turns = [name for name, _ in itertools.groupby(name for name, _ in seen)]
    order = list(architectures.VARIANTS)
    assert turns == [*order, *order[-2::-1], *order[1:], *order[-2::-1]]  # who ended a round begins the next
    given = {name: [what for whose, what in seen if whose == name] for name in order}
    base, other = given.pop("base"), given.pop("base, another seed")
    assert len(base) == UPDATES
    assert all(what == base for what in given.values())
    assert [what[1:] for what in other] == [what[1:] for what in base]
    assert [what[0] for what in other] != [what[0] for what in base]
    muon = [max(sizes) for _, _, sizes in base]
    assert muon[0] < muon[1] == pytest.approx(4e-3, rel=0.01)
    assert muon[1:] == sorted(muon[1:], reverse=True)


def test_a_validation_is_the_mean_over_all_tokens_that_are_no_pads(settings):
    args = architectures.parse_args([*settings, "--batch-size=4"])  # of 6 pictures: the second batch is smaller
    data = architectures.open_data(args)
    variant = architectures.make_variant("base", data, args)
    variant.autocast = False
    image, text = [], []
    for batch in data.val_dataloader():
        for text_tokens, image_tokens in zip(batch["text_tokens"], batch["image_tokens"], strict=True):
            text_logits, image_logits = variant.prior(text_tokens[None], image_tokens[None])
            words = text_tokens[text_tokens >= 0]
            text += (-text_logits[0].log_softmax(-1)[range(len(words)), words]).tolist()
            codes = image_tokens.flatten()
            image += (-image_logits[0].log_softmax(-1)[range(len(codes)), codes]).tolist()
    variant.validate()
    (found,) = variant.curve
    assert found.image == pytest.approx(sum(image) / len(image), rel=1e-5)
    assert found.text == pytest.approx(sum(text) / len(text), rel=1e-5)


def test_drawings_become_codes_with_captions_of_several_lengths(tmp_path):
    architectures.encode_drawings(str(tmp_path / "codes"), quick=True)
    data = architectures.open_data(architectures.parse_args(["--quick", f"--codes={tmp_path / 'codes'}"]))
    assert (data.source.grid_size, data.source.codebook_size) == ((16, 16), 64)
    batch = next(iter(data.train_dataloader()))
    assert batch["image_tokens"].unique().numel() > 8
    used = (batch["text_tokens"] >= 0).sum(dim=1)
    assert used.min() < used.max() < 23


@pytest.mark.parametrize("setting", ["--minutes=0", "--lr=-1", "--muon-lr=nan"])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match="expected more than 0"):
        architectures.main([setting])


def test_a_missing_folder_of_codes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no folder: expected one of codes"):
        architectures.main([f"--codes={tmp_path / 'none'}"])
