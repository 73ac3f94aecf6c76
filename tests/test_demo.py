"""The demo, small: every stage and file of it, a second call, and going on after an interruption."""

import json
from dataclasses import replace

import pytest
from PIL import Image

import demo
from data.shapes import EXTENT
from pipeline import TextToImage


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A demo of seconds in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "DRAWINGS", replace(demo.DRAWINGS, size=24, count=150))
    for name, seed, held_out in (("FRESH", 1, "exclude"), ("HELD_OUT", 2, "only")):
        monkeypatch.setattr(demo, name, replace(demo.DRAWINGS, seed=seed, count=4, held_out=held_out))
    for name, value in {"JUDGED": 4, "SHOWN": 4, "TOKENIZER_STEPS": 4, "PRIOR_STEPS": 4, "TRIALS": (1, 3)}.items():
        monkeypatch.setattr(demo, name, value)
    return tmp_path


def test_everything_is_there_and_a_second_call_says_so(small, capsys):
    demo.main([])
    told = capsys.readouterr().out
    report = json.loads(demo.REPORT.read_text())
    assert report["tokenizer"]["steps"] == report["prior"]["steps"] == 4
    assert 0 < report["tokenizer"]["val/psnr"] < 40
    assert report["prior"]["val/loss_image"] > 0
    for kind in ("fresh", "held_out"):
        for of in ("samples", "reconstructions"):
            assert set(report[of][kind]) == {"colour", "shape", "size", "colour_and_shape", "count", "correct"}
    assert set(report["seconds"]) == {"tokenizer", "codes", "prior", "samples", "all"}
    assert Image.open(demo.SAMPLES).width > 0 and Image.open(demo.RECONSTRUCTIONS).height > 0
    assert len(TextToImage.from_pretrained(demo.PRIOR / "model")("a red circle", n=2)) == 2
    assert not demo.TRIAL.exists()
    for words in ("sample.py", "samples.png", "ceiling", "colour"):
        assert words in told

    written = demo.REPORT.stat().st_mtime_ns
    demo.main([])
    told = capsys.readouterr().out
    assert "rm -r" in told and "has been run" in told
    assert demo.REPORT.stat().st_mtime_ns == written


def test_asking_for_help_trains_nothing(small, capsys):
    with pytest.raises(SystemExit, match="0"):
        demo.main(["--help"])
    assert "whole path" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--steps"):
        demo.main(["--steps", "9"])
    assert not demo.RUN.exists()


def test_what_is_there_is_not_made_again(small, monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(demo, "train_prior", interrupt)
        with pytest.raises(KeyboardInterrupt):
            demo.main([])
    assert not demo.REPORT.exists()
    kept = {path: path.stat().st_mtime_ns for path in [*demo.TOKENIZER.rglob("*"), *demo.CODES.rglob("*")]}
    took = json.loads(demo.SECONDS.read_text())["tokenizer"]
    demo.main([])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    seconds = json.loads(demo.REPORT.read_text())["seconds"]
    assert seconds["tokenizer"] >= round(took, 1) > 0
    assert seconds["all"] == pytest.approx(sum(seconds.values()) - seconds["all"], abs=0.5)


def test_parts_of_other_drawings_are_refused(small, monkeypatch):
    """Also where the config is the same, but the code that draws has changed."""
    demo.begin()
    demo.begin()
    with monkeypatch.context() as patched:
        patched.setattr(demo, "DRAWINGS", replace(demo.DRAWINGS, size=32))
        with pytest.raises(ValueError, match="begun with other drawings or settings"):
            demo.begin()
    with monkeypatch.context() as patched:
        patched.setitem(EXTENT, "small", 0.2)
        with pytest.raises(ValueError, match="other drawings or settings"):
            demo.begin()
    demo.RECIPE.unlink()
    demo.SECONDS.write_text("{}")
    with pytest.raises(ValueError, match="unknown origin"):
        demo.begin()


def test_updates_fit_the_time_within_bounds(monkeypatch, tmp_path, capsys):
    """Each update of a trial takes half a second on this clock, and starting takes 3 s; the trials' 41 s count."""
    monkeypatch.chdir(tmp_path)
    clock = [0.0]

    def train(kind, args):
        demo.TRIAL.mkdir(parents=True)
        steps = next(arg for arg in args if arg.startswith("--trainer.max_steps="))
        clock[0] += 3 + 0.5 * int(steps.partition("=")[2])

    monkeypatch.setattr(demo, "train", train)
    monkeypatch.setattr(demo.time, "perf_counter", lambda: clock[0])
    assert demo.affordable_steps("prior", [], most=3000, seconds=1041) == 2000
    assert demo.affordable_steps("prior", [], most=1500, seconds=1041) == 1500
    assert demo.affordable_steps("prior", [], most=3000, seconds=100) == 1000
    assert not demo.TRIAL.exists()
