from types import SimpleNamespace

import pytest
import torch

from data.checker import check
from data.shapes import ShapesConfig, draw
from data.transforms import evaluation_crop
from evaluation import drawn
from evaluation.drawn import SamplePlan, judge_samples, readable, right
from transformer.sampling import SamplingConfig

CONFIG = ShapesConfig(size=64, count=8, seed=3)
DRAWINGS = [draw(CONFIG, index) for index in range(8)]
CAPTIONS = [drawing.caption for drawing in DRAWINGS]
PICTURES = torch.stack([evaluation_crop(drawing.image, 64) for drawing in DRAWINGS])
ASKED = [0, 1, 2]


class Oracle:
    """A pipeline whose one token is the number of a drawing: it draws that of the caption for even seeds under
    guidance, the next caption's for all others; of the former the caption tells 1 nat, of the latter none."""

    def __init__(self, monkeypatch) -> None:
        self.prior, self.seeds = self, []
        self.image_tokenizer = SimpleNamespace(decode=lambda indices: PICTURES[indices.flatten()])
        monkeypatch.setattr(drawn, "generate", self.generate)
        monkeypatch.setattr(drawn, "caption_gain", self.caption_gain)

    def text_tokens(self, captions):
        return torch.tensor([[CAPTIONS.index(caption)] for caption in captions])

    def generate(self, prior, text_tokens, *, seeds, config):
        self.seeds += [(config.guidance_scale, config.top_p, seed) for seed in seeds.tolist()]
        good = (seeds % 2 == 0) & (config.guidance_scale > 1)
        return torch.where(good, text_tokens[:, 0], (text_tokens[:, 0] + 1) % len(ASKED))[:, None, None]

    def caption_gain(self, prior, text_tokens, image_tokens):
        return (text_tokens[:, 0] == image_tokens[:, 0, 0]).float()


def test_all_and_the_best_of_four_at_each_guidance_scale(monkeypatch):
    oracle, done = Oracle(monkeypatch), []
    plan = SamplePlan(guidance_scales=(1.0, 3.0), n=4, seed=10, config=SamplingConfig(top_p=0.9), batch_size=5)
    report = judge_samples(oracle, [CAPTIONS[i] for i in ASKED], torch.tensor(ASKED).view(3, 1, 1), plan, done.append)
    assert oracle.seeds == [(scale, 0.9, seed) for scale in (1.0, 3.0) for seed in range(10, 22)]
    assert done == [5, 5, 2] * 2
    plain, guided = report["sampled"]
    assert [plain["guidance_scale"], guided["guidance_scale"]] == [1.0, 3.0]
    assert plain["all"]["correct"]["value"] == plain["reranked"]["correct"]["value"] == 0
    assert guided["all"]["correct"] == {"value": 0.5, "low": 0.5, "high": 0.5}  # 2 of 4 of each caption
    assert guided["reranked"]["correct"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert report["reconstructions"]["correct"]["value"] == 1
    settings = {"temperature": 1.0, "top_k": None, "top_p": 0.9, "min_p": None, "guidance_schedule": "constant"}
    assert report["settings"] == settings
    assert (report["captions"], report["n"], report["seed"]) == (3, 4, 10)


def test_one_picture_is_not_reranked(monkeypatch):
    report = judge_samples(
        Oracle(monkeypatch), CAPTIONS[:3], torch.tensor([0, 0, 0]).view(3, 1, 1), SamplePlan(guidance_scales=(2.0,))
    )
    (row,) = report["sampled"]
    assert "reranked" not in row
    assert row["all"]["correct"]["value"] == pytest.approx(2 / 3)  # seeds 0, 1, 2
    assert report["reconstructions"]["correct"]["value"] == pytest.approx(1 / 3)


def test_fractions_are_of_objects_pictures_and_stated_relations():
    """By hand, of captions of one, two and three objects."""
    three = "a red star, a blue ring and a pink heart"
    captions = ["a small red circle", "a large blue star left of a small green ring", three]
    blank = torch.ones(3, 64, 64)
    verdicts = [[check(blank, caption)] for caption in captions]
    figures = right(verdicts)
    assert {name: figure["value"] for name, figure in figures.items()} == dict.fromkeys(figures, 0.0)
    assert set(figures) == {"colour", "shape", "size", "colour_and_shape", "count", "relation", "correct"}
    mixed = right([[check(PICTURES[0], CAPTIONS[0])], [check(blank, three)]])
    objects = len(DRAWINGS[0].scene.items)
    assert mixed["colour"]["value"] == pytest.approx(objects / (objects + 3))
    assert mixed["count"]["value"] == mixed["correct"]["value"] == 0.5
    assert ("relation" in mixed) == (DRAWINGS[0].scene.relation is not None)


def test_a_real_prior_whatever_the_batches(pipeline):
    captions = ["a red circle", "a blue star", "a small green square left of a large yellow ring"]
    indices = torch.randint(16, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    plans = [SamplePlan(guidance_scales=(1.0, 2.0), n=2, batch_size=size) for size in (6, 4)]
    reports = [judge_samples(pipeline, captions, indices, plan) for plan in plans]
    assert reports[0] == reports[1]
    assert all(0 <= row["reranked"]["colour"]["value"] <= 1 for row in reports[0]["sampled"])


def test_captions_that_the_checker_cannot_read():
    assert readable(CAPTIONS) is None
    assert "a tabby cat" in readable(["a red circle", "a tabby cat", "boats"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n": 0}, "n is 0, batch_size 32, expected at least 1 each"),
        ({"batch_size": 0}, "n is 1, batch_size 0, expected"),
        ({"guidance_scales": ()}, r"guidance_scale is \[\], expected at least one"),
        ({"guidance_scales": (2.0, 2.0)}, r"guidance_scale is \[2.0, 2.0\], expected .* each once"),
        ({"guidance_scales": (-1.0,)}, "guidance_scale is -1.0"),
        ({"seed": -1}, "seed is -1, expected 0 to"),
    ],
)
def test_settings_out_of_range(wrong, said):
    with pytest.raises(ValueError, match=said):
        SamplePlan(**{"guidance_scales": (1.0,)} | wrong)
