from types import SimpleNamespace

import pytest
import torch

import pipeline as pipeline_module
from batching import batches_of
from data.checker import check
from data.shapes import ShapesConfig, draw
from data.transforms import evaluation_crop, to_pil_images
from evaluation.drawn import SamplePlan, _of_the_best, judge_samples, readable, right
from pipeline import Drawn
from transformer.sampling import SamplingConfig

CONFIG = ShapesConfig(size=64, count=8, seed=3)
DRAWINGS = [draw(CONFIG, index) for index in range(8)]
CAPTIONS = [drawing.caption for drawing in DRAWINGS]
PICTURES = torch.stack([evaluation_crop(drawing.image, 64) for drawing in DRAWINGS])
ASKED = [0, 1, 2]


class Oracle:
    """A pipeline whose one token is the number of a drawing: it draws that of the caption for even seeds under
    guidance, the next caption's for all others; of the former the caption tells 1 nat, of the latter none. It is a
    CLIP-like model as well, which likes the wrong pictures better."""

    def __init__(self) -> None:
        self.seeds = []
        self.image_tokenizer = SimpleNamespace(decode=lambda indices: PICTURES[indices.flatten()])

    def sample_batches(self, captions, seeds, config, batch_size, *, weigh):
        self.seeds += [(config.guidance_scale, config.top_p, seed) for seed in seeds]
        own = torch.tensor([CAPTIONS.index(caption) for caption in captions])
        good = (torch.tensor(seeds) % 2 == 0) & (config.guidance_scale > 1)
        pictures = PICTURES[torch.where(good, own, (own + 1) % len(ASKED))]
        likelihoods = torch.where(good[:, None], torch.tensor([-3.0, -4.0, -3.0]), -3.0)
        for batch in batches_of(captions, batch_size):
            yield Drawn(pictures[batch], likelihoods[batch] if weigh else None)

    def __call__(self, caption, pictures):
        own = to_pil_images(PICTURES)[CAPTIONS.index(caption)]
        return torch.tensor([-float(picture.tobytes() == own.tobytes()) for picture in pictures])


def test_all_and_the_best_of_four_at_each_guidance_scale():
    oracle, done = Oracle(), []
    plan = SamplePlan(guidance_scales=(1.0, 3.0), n=4, seed=10, config=SamplingConfig(top_p=0.9), batch_size=5)
    report = judge_samples(
        oracle, [CAPTIONS[i] for i in ASKED], torch.tensor(ASKED).view(3, 1, 1), plan, done.append, oracle
    )
    assert oracle.seeds == [(scale, 0.9, seed) for scale in (1.0, 3.0) for seed in range(10, 22)]
    assert done == [4, 4, 4] * 2
    plain, guided = report["sampled"]
    assert [plain["guidance_scale"], guided["guidance_scale"]] == [1.0, 3.0]
    assert plain["all"]["correct"]["value"] == plain["best"]["prior"]["4"]["correct"]["value"] == 0
    assert guided["all"]["correct"] == {"value": 0.5, "low": 0.5, "high": 0.5}  # 2 of 4 of each caption
    for among in ("2", "4"):
        assert guided["best"]["prior"][among]["correct"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert guided["best"]["clip"][among]["correct"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert report["reconstructions"]["correct"]["value"] == 1
    settings = {"temperature": 1.0, "top_k": None, "top_p": 0.9, "min_p": None, "guidance_schedule": "constant"}
    assert report["settings"] == settings
    assert (report["captions"], report["n"], report["seed"]) == (3, 4, 10)


def test_the_best_of_fewer_are_taken_from_each_so_many():
    """Six pictures a caption, of which the last is left over in fours; right are those of high scores at 1 and 4."""
    verdicts = [[check(PICTURES[0], CAPTIONS[0 if i in (1, 4) else 1]) for i in range(6)] for _ in range(2)]
    scores = torch.tensor([[0.0, 1.0, 2.0, 0.0, 3.0, 0.0]] * 2)
    best = _of_the_best(verdicts, scores)
    assert {among: found["correct"]["value"] for among, found in best.items()} == {
        "2": pytest.approx(2 / 3),  # of 1, 2 and 4
        "4": 0.0,  # 2
        "6": 1.0,  # 4
    }


def test_one_picture_is_not_ranked():
    report = judge_samples(
        Oracle(), CAPTIONS[:3], torch.tensor([0, 0, 0]).view(3, 1, 1), SamplePlan(guidance_scales=(2.0,))
    )
    (row,) = report["sampled"]
    assert "best" not in row
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
    assert all(0 <= row["best"]["prior"]["2"]["colour"]["value"] <= 1 for row in reports[0]["sampled"])


def test_a_captions_pictures_are_drawn_together(pipeline, monkeypatch):
    """Three of each, of which no batch of four holds a part."""
    seen, real = [], pipeline_module.generate

    def watched(prior, text_tokens, **inputs):
        seen.append([tuple(row) for row in text_tokens.tolist()])
        return real(prior, text_tokens, **inputs)

    monkeypatch.setattr(pipeline_module, "generate", watched)
    indices = torch.zeros(2, 4, 4, dtype=torch.int64)
    plan = SamplePlan(guidance_scales=(2.0,), n=3, batch_size=4)
    judge_samples(pipeline, ["a red circle", "a blue star"], indices, plan)
    assert [(len(rows), len(set(rows))) for rows in seen] == [(3, 1), (3, 1)]


def test_seeds_may_be_negative_as_in_sampling(pipeline, monkeypatch):
    drawn = []
    monkeypatch.setattr(pipeline_module, "generate", lambda *_, seeds, **__: drawn.append(seeds.tolist()) or indices)
    indices = torch.zeros(2, 4, 4, dtype=torch.int64)
    judge_samples(pipeline, CAPTIONS[:2], indices, SamplePlan(guidance_scales=(1.0,), seed=-(2**63)))
    judge_samples(pipeline, CAPTIONS[:2], indices, SamplePlan(guidance_scales=(1.0,), seed=-1))
    assert drawn == [[-(2**63), -(2**63) + 1], [-1, 0]]


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
        ({"seed": 2**62}, "seed is 4611686018427387904, expected -9223372036854775808 to 4611686018427387903"),
        ({"seed": -(2**63) - 1}, "seed is -9223372036854775809, expected -9223372036854775808 to"),
    ],
)
def test_settings_out_of_range(wrong, said):
    with pytest.raises(ValueError, match=said):
        SamplePlan(**{"guidance_scales": (1.0,)} | wrong)
