"""sample.py with a picture to go on from, and with pictures that are shown while they are drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cli
import sample
from completion import open_original
from tests.samples import pictures
from vqvae.model import DiscreteVAE


@pytest.fixture
def photo(tmp_path) -> Path:
    """20x16 pixels."""
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def mask(tmp_path) -> Path:
    """White in the middle four of 4x4 tokens, of which the last is followed by kept ones."""
    path, image = tmp_path / "mask.png", Image.new("L", (16, 16), 0)
    image.paste(255, (4, 4, 12, 12))
    image.save(path)
    return path


def pixels(path: Path) -> list[list[list[int]]]:
    with Image.open(path) as picture:
        return np.asarray(picture).tolist()


@pytest.mark.parametrize(
    ("args", "rule"),
    [
        (["--keep_rows", "8"], {"keep_rows": 8}),
        (["--mask", "mask.png"], {"mask": "mask.png"}),
        (["--strength", "0.5"], {"strength": 0.5}),
    ],
)
def test_pictures_go_on_from_a_picture_and_say_so(draw, pipeline, photo, mask, monkeypatch, args, rule):
    monkeypatch.chdir(photo.parent)
    out = draw("a red circle", "a blue star", "--n", 3, "--seed", 5, "--picture", "photo.png", *args)
    original = open_original(pipeline, photo, **rule)
    (listing,) = out.glob("grid_*.json")
    listed = json.loads(listing.read_text(encoding="utf-8"))
    expected = pipeline(["a red circle", "a blue star"], n=3, seed=5, given=original)
    for row, picture in zip(listed["pictures"], expected, strict=True):
        assert pixels(out / row["file"]) == np.asarray(picture).tolist()
        with Image.open(out / row["file"]) as written:
            assert json.loads(written.text["original"]) == original.settings
    assert listed["original"] == original.settings
    assert listed["original"]["picture"] == "photo.png" and len(listed["original"]["picture_hash"]) == 16
    with Image.open(out / listed["grid"]) as grid:
        assert json.loads(grid.text["original"]) == original.settings


def test_what_is_kept_is_said(draw, photo, mask, capsys):
    draw("a", "--n", 1, "--picture", photo, "--keep_rows", 7)
    draw("a", "--n", 1, "--picture", photo, "--mask", mask)
    draw("a", "--n", 1, "--picture", photo, "--strength", 0.5)
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("1 picture of ")]
    assert said == [
        "of the 7 rows of pixels asked for, the first 4 are whole rows of tokens",
        "4 of 16 tokens are kept",
        "12 of 16 tokens are kept",
        "4 of the 4 drawn come before kept ones in raster order, unaware of them",
    ]


def test_other_originals_overwrite_nothing(draw, photo):
    args = "a red circle", "--n", 1
    draw(*args)
    draw(*args, "--picture", photo, "--keep_rows", 8)
    draw(*args, "--picture", photo, "--keep_rows", 4)
    draw(*args, "--picture", photo, "--strength", 0.5)
    out = draw(*args, "--picture", photo.rename(photo.with_name("same.png")), "--strength", 0.5)
    assert len(pictures(out)) == 4, "a file's name does not matter"
    Image.new("RGB", (16, 16), "red").save(photo)
    assert len(pictures(draw(*args, "--picture", photo, "--strength", 0.5))) == 5, "what is in it does"


@pytest.mark.parametrize("picture", [False, True])
def test_to_stream_changes_no_picture(draw, photo, picture):
    args = ["a red circle", "a blue star", "--n", 3, "--batch_size", 4]
    args += ["--picture", photo, "--strength", 0.7] if picture else []
    plain, streamed = draw(*args), draw(*args, "--stream", out="streamed")
    files = {path.name: path.read_bytes() for path in streamed.iterdir()}
    gifs = {name for name in files if name.endswith(".gif")}
    assert {path.name: path.read_bytes() for path in plain.iterdir()} == {
        name: data for name, data in files.items() if name not in gifs
    }, "a progress file is none of them"
    assert gifs == {Path(name).with_suffix(".gif").name for name in pictures(plain)}


@pytest.mark.parametrize(("args", "stages"), [([], 4), (["--stream_rows", 2], 2), (["--stream_rows", 9], 1)])
def test_a_gif_of_the_stages(draw, args, stages):
    out = draw("a red circle", "--n", 1, "--stream", *args)
    (gif,), (picture,) = out.glob("*.gif"), [out / name for name in pictures(out)]
    with Image.open(gif) as shown, Image.open(picture) as drawn:
        assert shown.n_frames == stages
        assert json.loads(shown.info["comment"]) == drawn.text


def test_a_drawing_that_is_cut_short_leaves_what_was_seen_last(draw, monkeypatch, tmp_path):
    decode, left = DiscreteVAE.decode, [None] * 5

    def cut(self, indices):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return decode(self, indices)

    with monkeypatch.context() as patched:
        patched.setattr(DiscreteVAE, "decode", cut)
        with pytest.raises(KeyboardInterrupt):
            draw("a red circle", "--n", 2, "--stream")
    left_there = sorted((tmp_path / "out").iterdir())
    assert [path.name.split("_")[1] + path.name[-13:] for path in left_there] == [
        "seed0-progress.png",
        "seed1-progress.png",
    ]
    grey = [(np.asarray(pixels(path)) == 128).all(axis=(1, 2)).sum() for path in left_there]
    assert grey == [8, 8], "two of four rows of tokens"
    out = draw("a red circle", "--n", 2, "--stream")
    assert len(list(out.glob("*-progress.png"))) == 0
    assert len(list(out.glob("*.gif"))) == len(pictures(out)) == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--keep_rows", "8"], "--keep_rows says what is kept of a picture: expected --picture FILE too"),
        (["--mask", "mask.png"], "--mask says what is kept"),
        (["--strength", "0"], "--strength says what is kept"),
        (["--picture", "photo.png"], "expected exactly one of keep_rows, mask, strength; got none"),
        (["--picture", "photo.png", "--keep_rows", "8", "--strength", "1"], "got keep_rows and strength"),
        (["--picture", "photo.png", "--keep_rows", "0"], "0 rows of pixels are to be kept, expected at least 1"),
        (["--picture", "photo.png", "--keep_rows", "16"], "all 16 tokens of the picture are to be kept"),
        (["--picture", "photo.png", "--strength", "2"], "strength is 2.0, expected 0 to 1"),
        (["--picture", "photo.png", "--mask", "photo"], "photo: No such file"),
        (["--picture", "nowhere.png", "--keep_rows", "8"], "nowhere.png: No such file"),
        (["--picture", "text.png", "--keep_rows", "8"], "text.png: not a PNG, JPEG, WebP or GIF"),
        (["--stream", "--stream_rows", "0"], "stream_rows is 0, expected at least 1"),
        (["--stream_rows", "2"], "stream_rows is 2, expected --stream too"),
    ],
)
def test_wrong_arguments(sample_command, photo, mask, capsys, monkeypatch, args, said):
    (photo.parent / "text.png").write_text("no picture")
    monkeypatch.chdir(photo.parent)
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: sample.sample(sample_command("a red circle", *args)))
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out) == (2, "")
    assert said in captured.err
    assert not (photo.parent / "out").exists()
