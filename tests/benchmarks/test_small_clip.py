"""A small CLIP-like model of drawings, with a clock on which reading it takes a second."""

import itertools
import json
from types import SimpleNamespace

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import small_clip
from benchmarks.small_clip import MEAN, STD, WEIGHTS, WORDS, drawn, is_true_of, parse_args
from clip_scores import CONFIG, ClipScores
from data import checker
from data.reader import read
from data.scene import COLOURS, SHAPES, parse_caption
from data.shapes import ShapesConfig, draw

SIZES = ["--size=16", "--patch_size=8", "--width=32", "--batch_size=6"]


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(small_clip, "time", SimpleNamespace(process_time=itertools.count().__next__))


def train(folder, *args: str, steps: int = 3) -> None:
    small_clip.main([*SIZES, f"--out={folder}", f"--minutes={(steps + 1) / 60}", *args])


def test_what_it_writes_is_scored_by_as_it_was_trained(tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(small_clip, "judge", lambda model, tokenizer, args: trained.append(model.eval()) or {})
    train(tmp_path / "clip")
    record = json.loads((tmp_path / "clip" / "training.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == record
    assert record["steps"] == 3 and record["settings"]["width"] == 32
    assert sorted(path.name for path in (tmp_path / "clip").iterdir()) == [CONFIG, WEIGHTS, "training.json"]
    drawings = [draw(ShapesConfig(size=16, max_objects=1), index) for index in range(3)]
    scores = ClipScores(tmp_path / "clip")("a red circle", [drawing.image for drawing in drawings])
    seen = small_clip.pictures(drawings)
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    with torch.inference_mode():
        images, text, _ = trained[0]((seen - mean) / std, WORDS(["a red circle"]))
    torch.testing.assert_close(scores, images @ text[0])
    assert scores.unique().numel() == 3


def test_it_learns_a_batch_by_heart(tmp_path, monkeypatch, capsys):
    batch = next(drawn(parse_args([*SIZES, "--out=x"]), 5))
    monkeypatch.setattr(small_clip, "drawn", lambda args, seed: itertools.repeat(batch))
    train(tmp_path / "clip", steps=60)
    retrieval = json.loads(capsys.readouterr().out.splitlines()[-1])["retrieval"]
    assert retrieval == {"drawings": {"own caption": 1, "own drawing": 1}}
    score, images = ClipScores(tmp_path / "clip"), [drawing.image for drawing in batch]
    assert [int(score(drawing.caption, images).argmax()) for drawing in batch] == list(range(6))


def test_half_of_a_batch_goes_through_the_tokenizer(tmp_path, shared_bundle, monkeypatch, capsys):
    seen, drawings = [], []
    normalise, pictures = small_clip.normalise, small_clip.pictures
    monkeypatch.setattr(small_clip, "normalise", lambda images: seen.append(images.clone()) or normalise(images))
    monkeypatch.setattr(small_clip, "pictures", lambda batch: drawings.append(pictures(batch)) or drawings[-1].clone())
    train(tmp_path / "clip", f"--model={shared_bundle}", steps=1)
    changed = (seen[0] != drawings[0]).flatten(1).any(dim=1)
    assert changed.tolist() == [True] * 3 + [False] * 3
    tokenizer = small_clip.open_tokenizer(parse_args([*SIZES, "--out=x", f"--model={shared_bundle}"]))
    torch.testing.assert_close(seen[0][:3], tokenizer.decode(tokenizer.encode(drawings[0][:3])))
    retrieval = json.loads(capsys.readouterr().out.splitlines()[-1])["retrieval"]
    assert retrieval.keys() == {"drawings", "reconstructions"}


@pytest.mark.parametrize("most", [1, 2])
def test_no_caption_of_a_batch_is_true_of_another_drawing(most, monkeypatch):
    """By the checker, which reads the pictures; each is read once."""
    args = parse_args(["--out=x", "--size=64", "--patch_size=8", "--batch_size=24", f"--max_objects={most}"])
    for batch in itertools.islice(drawn(args, 7), 3):
        assert len(batch) == 24
        found = {id(drawing.image): read(drawing.image) for drawing in batch}
        monkeypatch.setattr(checker, "read", lambda image, found=found: found[id(image)])
        for one, other in itertools.permutations(batch, 2):
            assert not checker.check(other.image, one.caption).correct, (one.caption, other.caption)


def test_the_largest_batch_can_be_filled():
    n = len(COLOURS) * len(SHAPES) - 1
    args = parse_args(["--out=x", "--size=16", "--patch_size=8", f"--batch_size={n}"])
    assert len(next(drawn(args, 0))) == n


@pytest.mark.parametrize(
    ("told", "shown", "expected"),
    [
        ("a red circle", "a small red circle", True),
        ("a large red circle", "a small red circle", False),
        ("a red circle", "a small red ring", False),
        ("a red circle and a blue star", "a small red circle left of a large blue star", True),
        ("a blue star right of a red circle", "a small red circle left of a large blue star", True),
        ("a blue star left of a red circle", "a small red circle left of a large blue star", False),
        ("a red circle left of a blue star", "a small red circle left of a large blue star", True),
        ("a red circle above a blue star", "a small red circle left of a large blue star", False),
        ("a small blue star and a red circle", "a small red circle left of a large blue star", False),
        ("a red circle", "a small red circle left of a large blue star", False),
    ],
)
def test_what_a_caption_tells_of_another_drawing(told, shown, expected):
    assert is_true_of(parse_caption(told), parse_caption(shown)) is expected


def test_a_save_that_is_cut_leaves_nothing_that_loads(tmp_path, monkeypatch):
    """Neither the old settings with new weights."""
    train(tmp_path / "clip", steps=1)
    before = load_file(tmp_path / "clip" / WEIGHTS)
    sizes = json.loads((tmp_path / "clip" / CONFIG).read_text())["model_cfg"]
    monkeypatch.setattr(small_clip, "write_tensors", lambda tensors, path, about: path.write_bytes(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        small_clip.save(open_clip.CLIP(**sizes), sizes, tmp_path / "clip")
    after = load_file(tmp_path / "clip" / WEIGHTS)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    ClipScores(tmp_path / "clip")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--minutes=0"], "--minutes is 0.0, expected more than 0"),
        (["--size=42"], "--size is 42, --patch_size 8, expected patches that fill"),
        (["--width=40"], "--width is 40, expected a multiple of 32"),
        (["--batch_size=110"], "--batch_size is 110, expected 2 to 109"),
        (["--max_objects=4"], "max_objects=4"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, args, said):
    with pytest.raises(ValueError, match=said):
        small_clip.main([*SIZES, f"--out={tmp_path}", *args])


def test_a_bundle_of_another_size_is_refused(tmp_path, shared_bundle):
    with pytest.raises(ValueError, match=r"--size is 24, the pictures of .* have 16"):
        small_clip.main([*SIZES, "--size=24", f"--out={tmp_path}", f"--model={shared_bundle}"])
