"""sample.py with --keep: the best of many pictures."""

import json

import open_clip
import pytest
import torch
from PIL import Image

import cli
import sample
from clip_scores import ClipScores
from pipeline import TextToImage
from tests.clip_models import SIZES, WEIGHTS
from tests.samples import manifest, pictures
from transformer.embeddings import null_captions

ASKED = ("a red circle", "a blue star", "--n", "6", "--keep", "2")


def likelihoods_of(path) -> list[float]:
    with Image.open(path) as picture:
        return json.loads(picture.text["likelihoods"])


def expected_score(bundle, path) -> float:
    """From the picture's tokens, drawn anew, by a whole pass with the caption and one without."""
    pipeline = TextToImage.from_pretrained(bundle)
    with Image.open(path) as picture:
        caption, seed = picture.text["caption"], int(picture.text["seed"])
    seen = []
    previews = type("Seen", (), {"after_row": lambda *_: seen.append, "show": lambda *_: None})()
    pipeline(caption, seed=seed, previews=previews)
    prior, tokens = pipeline.prior, seen[-1]
    with torch.no_grad():
        cond = prior(pipeline.text_tokens([caption]), tokens).image_logits.log_softmax(dim=-1)
        null = prior(null_captions(1, prior.config.text_len, tokens.device), tokens).image_logits.log_softmax(dim=-1)
    of_drawn = [rows.gather(-1, tokens.flatten(1)[..., None]).sum().item() for rows in (cond, null)]
    excess = of_drawn[0] - (cond.exp() * cond).sum().item()
    return of_drawn[0] - of_drawn[1] + 4 * excess


def test_the_prior_keeps_its_best(draw, shared_bundle, capsys):
    out = draw(*ASKED)
    assert "the best 2 of 6 each: 4 pictures of 2 captions" in capsys.readouterr().out
    candidates, listed = pictures(out / "candidates"), manifest(out)
    assert len(candidates) == 12
    assert pictures(out).items() <= candidates.items(), "copies"
    assert listed["chosen"] == {"by": "prior", "keep": 2, "of": 6}
    for caption in ASKED[:2]:
        of_caption = [name for name in candidates if name.startswith(caption.replace(" ", "-"))]
        scores = {name: expected_score(shared_bundle, out / "candidates" / name) for name in of_caption}
        best = sorted(scores, key=scores.get, reverse=True)[:2]
        kept = {each["file"]: each["score"] for each in listed["pictures"] if each["caption"] == caption}
        assert list(kept) == best
        assert kept == pytest.approx({name: scores[name] for name in best}, abs=1e-2)
    assert {each["file"] for each in listed["pictures"]} == set(pictures(out))


@pytest.mark.parametrize("options", [[], ["--guidance_scale", "2.5"], ["--compile"], ["--weights", "int8"]])
def test_candidates_are_the_pictures_that_are_drawn_without(draw, options):
    plain = draw("a red circle", "--n", "4", *options, out="plain")
    ranked = draw("a red circle", "--n", "4", "--keep", "1", *options, out="ranked")
    for name in pictures(plain):
        with Image.open(plain / name) as one, Image.open(ranked / "candidates" / name) as other:
            assert one.tobytes() == other.tobytes()


def test_a_clip_model_keeps_its_best(draw, clip_folder, capsys):
    out = draw(*ASKED, "--clip", clip_folder)
    score, listed = ClipScores(clip_folder), manifest(out)
    assert listed["chosen"] == {"by": str(clip_folder), "keep": 2, "of": 6}
    for caption in ASKED[:2]:
        files = sorted((out / "candidates").glob(f"{caption.replace(' ', '-')}_*.png"))
        scores = score(caption, [Image.open(path) for path in files])
        best = {files[i].name: float(scores[i]) for i in scores.argsort(descending=True)[:2]}
        kept = {each["file"]: each["score"] for each in listed["pictures"] if each["caption"] == caption}
        assert list(kept) == list(best)
        assert kept == pytest.approx(best)


def test_the_list_names_a_checkpoints_architecture(draw, clip_folder, tmp_path):
    config = tmp_path / "tiny-ranker.json"
    config.write_text(json.dumps(SIZES))
    open_clip.add_model_config(config)
    options = ["a red circle", "--n", "2", "--keep", "1", "--clip", clip_folder / WEIGHTS]
    listed = manifest(draw(*options, "--clip_architecture", "tiny-ranker"))
    assert listed["chosen"]["clip_architecture"] == "tiny-ranker"


def test_more_candidates_and_another_ranking_draw_only_what_is_missing(draw, clip_folder, capsys):
    draw("a red circle", "--n", "3", "--keep", "1")
    first = pictures(draw("a red circle", "--n", "5", "--keep", "2") / "candidates")
    assert "3 of 5 are there already" in capsys.readouterr().out
    assert pictures(draw("a red circle", "--n", "5", "--keep", "5", "--clip", clip_folder) / "candidates") == first
    assert "5 of 5 are there already" in capsys.readouterr().out


def test_what_a_clip_model_chose_from_is_drawn_again_for_the_prior(draw, clip_folder, capsys):
    """It does not say how likely it is."""
    out = draw("a red circle", "--n", "3", "--keep", "1", "--clip", clip_folder)
    assert not any("likelihoods" in Image.open(path).info for path in (out / "candidates").iterdir())
    out = draw("a red circle", "--n", "3", "--keep", "1")
    assert "are there already" not in capsys.readouterr().out
    assert all(len(likelihoods_of(path)) == 3 for path in (out / "candidates").glob("*.png"))


def test_the_grid_shows_the_best_first(draw):
    out = draw("a red circle", "--n", "6", "--keep", "3")
    listed = manifest(out)
    assert len(listed["pictures"]) == 3
    scores = [each["score"] for each in listed["pictures"]]
    assert scores == sorted(scores, reverse=True)
    with Image.open(out / listed["grid"]) as grid, Image.open(out / listed["pictures"][0]["file"]) as best:
        assert grid.crop((0, 0, 128, 128)).tobytes() == best.resize((128, 128), Image.NEAREST).tobytes()


def test_the_library_keeps_the_same(draw, pipeline):
    out = draw(*ASKED)
    kept = pipeline(list(ASKED[:2]), n=6, keep=2)
    listed = [Image.open(out / each["file"]) for each in manifest(out)["pictures"]]
    assert [each.tobytes() for each in kept] == [each.tobytes() for each in listed]
    with pytest.raises(ValueError, match="keep is 7, expected 1 to n, which is 6"):
        pipeline("a red circle", n=6, keep=7)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--keep", "0"], "keep is 0, expected 1 to the number of pictures a caption, --n 4"),
        (["--keep", "5"], "keep is 5, expected 1 to the number of pictures a caption, --n 4"),
        (["--clip", "FOLDER"], "is to choose among pictures: expected --keep K too"),
        (["--keep", "1", "--clip", "nowhere"], "no such file or folder: nowhere"),
        (["--keep", "1", "--clip_architecture", "ViT-B-32"], "expected --clip FILE too"),
    ],
)
def test_wrong_arguments(sample_command, clip_folder, capsys, tmp_path, args, said):
    given = [str(clip_folder) if word == "FOLDER" else word for word in args]
    with pytest.raises(SystemExit):
        cli.run(lambda: sample.sample(sample_command("a red circle", *given)))
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
