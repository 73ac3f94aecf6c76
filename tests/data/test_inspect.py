"""What data.inspect says of sets whose content is known."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import inspect
from data.survey import spread_of
from data.text import TextTokenizer
from tests.data.shards.tars import picture, sample, write_tar
from tests.data.test_reduced import jpeg, scene
from tests.made_codes import SECOND, flip, write, written


@pytest.fixture
def folder(tmp_path):
    """Six sound pictures, two of which look alike; one is broken, one has no caption, one is a copy."""
    place = tmp_path / "pictures"
    place.mkdir()
    shapes = [(64, 48), (64, 64), (128, 64), (48, 64), (96, 96)]
    for seed, shape in enumerate(shapes):
        (place / f"{seed}.jpg").write_bytes(jpeg(scene(*shape, seed=seed)))
    scene(96, 96, seed=4).save(place / "5.png")  # looks like 4.jpg
    (place / "6.png").write_bytes(b"no picture")
    (place / "7.jpg").write_bytes(jpeg(scene(50, 50, seed=7)))
    (place / "8.jpg").write_bytes((place / "0.jpg").read_bytes())
    rows = [{"file_name": f"{i}.jpg", "text": "a" * (i + 1), "split": "val" if i == 1 else None} for i in range(5)]
    rows += [{"file_name": name, "text": "again"} for name in ("5.png", "6.png", "8.jpg", "9.png")]
    (place / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def test_a_folder(folder):
    found = inspect.run([str(folder)])
    assert found["kind"] == "folder" and found["samples"] == found["kept"] == 6
    assert found["counts"] == {
        "caption without a picture": 1,
        "no caption": 1,
        "broken picture": 1,
        "duplicate picture": 1,
    }
    assert found["rejected"] == 4
    assert "40.0% rejected" in found["refused"]
    assert found["splits"] == {"none of its own": 5, "val": 1}
    captions = found["captions"]
    assert captions["captions"] == 6 and captions["different"] == 6 and captions["pictures without"] == 0
    assert {name: captions["characters"][name] for name in ("least", "half", "most", "mean")} == {
        "least": 1, "half": 3, "most": 5, "mean": 3.333,
    }  # fmt: skip
    pictures = found["pictures"]
    assert (pictures["width"]["least"], pictures["width"]["most"]) == (48, 128)
    assert (pictures["width over height"]["least"], pictures["width over height"]["most"]) == (0.75, 2)
    assert sum(pictures["height"]["histogram"]["counts"]) == 6
    assert pictures["broken"] == 0
    assert pictures["first near duplicates"] == [["5.png", "4.jpg"]]


def test_files(folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "looked-at"
    monkeypatch.setattr("sys.argv", ["inspect", str(folder), "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        inspect.main()
    assert end.value.code == 1
    assert sorted(path.name for path in out.iterdir()) == ["contact.png", "report.json"]
    assert json.loads((out / "report.json").read_text("utf-8"))["pictures"]["near duplicates"] == 1
    sheet = np.asarray(Image.open(out / "contact.png"))
    assert sheet.shape[1] == 6 * (128 + 4) - 4
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 1000
    said = capsys.readouterr().out
    assert "rejected: 4; 1 caption without a picture" in said
    assert "training would refuse it: 40.0% rejected" in said
    assert "pictures: near duplicates 1" in said


@pytest.mark.parametrize(("source", "code"), [("sound", None), ("{sound,gone}", 1), ("gone", 2)])
def test_exit_codes(tmp_path, monkeypatch, capsys, source, code):
    """What there is is shown all the same."""
    write_tar(tmp_path / "sound.tar", sample(1))
    monkeypatch.setattr("sys.argv", ["inspect", str(tmp_path / f"{source}.tar")])
    if code is None:
        inspect.main()
    else:
        with pytest.raises(SystemExit) as end:
            inspect.main()
        assert end.value.code == code
    assert ("shards: 1 samples" in capsys.readouterr().out) == (code != 2)


def test_a_report_that_cannot_be_written_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(path, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr(inspect, "_pictures", lambda path, filters: (None, {"kind": "folder"}))
    with pytest.raises(OSError, match="No space left"):
        inspect.run([str(folder), "--out", str(tmp_path / "out")])
    assert not list((tmp_path / "out").iterdir())


def test_tokens(folder, tmp_path):
    TextTokenizer.train(["aaaa", "aa aa"], 300).save(tmp_path / "tokenizer.json")
    tokens = inspect.run([str(folder), "--tokenizer", str(tmp_path)])["captions"]["tokens"]
    loaded = TextTokenizer.load(tmp_path / "tokenizer.json")
    counts = [len(loaded.encode(text)) for text in ("a", "aa", "aaa", "aaaa", "aaaaa", "again")]
    assert (tokens["least"], tokens["most"]) == (min(counts), max(counts))


def test_filters_show_what_they_would_take(folder):
    found = inspect.run([str(folder), "--max_aspect_ratio", "1.5", "--near_duplicates", "3"])
    assert found["filtered_counts"] == {"too long for its height": 1, "near duplicate picture": 1}
    assert found["samples"] == found["kept"] == 4
    assert found["rejected"] == 4


@pytest.mark.parametrize(
    ("damage", "refused", "samples"),
    [
        (lambda folder: (folder / "captions.jsonl").unlink(), "but no captions", 7),
        (lambda folder: (folder / "captions.jsonl").write_text("{"), "line 1: not JSON", 7),
        (lambda folder: [path.write_bytes(b"") for path in folder.glob("?.*")], "nothing is left to train on", 0),
        (lambda folder: [path.unlink() for path in folder.glob("?.*")], "no pictures; looked for", 0),
    ],
)
def test_folders_that_training_refuses(folder, tmp_path, damage, refused, samples):
    damage(folder)
    found = inspect.run([str(folder), "--out", str(tmp_path / "out")])
    assert refused in found["refused"]
    assert found.get("samples", 0) == samples
    assert inspect.lines(found)
    if refused.startswith("nothing"):
        assert found["counts"]["broken picture"] == 9


def test_shards(tmp_path):
    broken = (sample(4)[0][0], picture(4)[:60])
    write_tar(tmp_path / "0.tar", [*sample(0), *sample(1, split="val"), *sample(2), broken, *sample(4)[1:]])
    found = inspect.run([str(tmp_path), "--out", str(tmp_path / "out")])
    assert (found["kind"], found["samples"]) == ("shards", 4)
    assert found["pictures"]["broken"] == 1 and "000000004" in found["pictures"]["first broken"][0]
    assert found["splits"] == {"none of its own": 3, "val": 1}
    assert found["captions"]["characters"]["most"] == len("thing 0")
    assert (tmp_path / "out" / "contact.png").is_file()


def test_pictures_beside_a_tar_are_a_folder(folder):
    write_tar(folder / "backup.tar", sample(0))
    found = inspect.run([str(folder)])
    assert (found["kind"], found["samples"]) == ("folder", 6)


def test_shards_stay_shards_with_a_contact_sheet_beside_them(tmp_path):
    write_tar(tmp_path / "0.tar", [*sample(0), *sample(1)])
    for _ in range(2):
        found = inspect.run([str(tmp_path), "--out", str(tmp_path)])
        assert (found["kind"], found["samples"]) == ("shards", 2)


def test_filters_that_leave_nothing(folder, tmp_path):
    out = tmp_path / "out"
    found = inspect.run([str(folder), "--min_caption_length", "100", "--out", str(out)])
    assert json.loads((out / "report.json").read_text("utf-8")) == found
    assert "the filters leave nothing" in found["refused"]
    assert (found["kept"], found["rejected"], found["filtered"]) == (0, 4, 6)
    assert found["filtered_counts"] == {"caption too short": 6}
    assert [path.name for path in out.iterdir()] == ["report.json"]
    assert "filtered: 6; 6 caption too short" in inspect.lines(found)


def test_the_whole_shards_are_shown_beside_a_damaged_one(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", sample(number))
    cut = tmp_path / "1.tar"
    cut.write_bytes(cut.read_bytes()[:700])
    found = inspect.run([str(tmp_path)])
    assert found["samples"] == 2
    assert "1 of 3 shards damaged" in found["refused"] and "1.tar" in found["refused"]


def test_the_shards_of_a_pattern_are_shown_beside_missing_ones(tmp_path):
    for number in (0, 2):
        write_tar(tmp_path / f"{number}.tar", sample(number))
    found = inspect.run([f"{tmp_path}/{{0..3}}.tar"])
    assert found["samples"] == 2
    assert f"{tmp_path}/1.tar: no such file" in found["refused"]


@pytest.mark.parametrize("name", ["shards", "a,{b} c"])
def test_whole_shards_with_a_key_in_common_are_shown_beside_a_damaged_one(tmp_path, name):
    for number, members in enumerate(([0, 1], [1, 2], [3])):
        write_tar(tmp_path / name / f"{number}.tar", [member for n in members for member in sample(n)])
    os.truncate(tmp_path / name / "2.tar", 700)
    found = inspect.run([str(tmp_path / name)])
    assert (found["samples"], found["counts"]) == (3, {"key comes twice": 1})
    assert "1 of 3 shards damaged" in found["refused"]


@pytest.mark.parametrize(("tensor", "part"), [("codes", "codes"), ("strings", "captions")])
def test_codes_that_are_damaged_or_half_made_are_refused_by_name(tmp_path, tensor, part):
    folder = written(tmp_path / "codes")
    flip(folder / SECOND, tensor)
    found = inspect.run([str(folder)])
    assert f"{SECOND} is damaged at picture 0" in found["refused"]
    assert (found["samples"], found[part]["unreadable"], found["codes"]["looked at"]) == (5, 1, 5)
    (folder / "manifest.json").rename(folder / "recipe.json")
    with pytest.raises(ValueError, match="codes is half-made"):
        inspect.run([str(folder)])


@pytest.mark.parametrize("name", ["0.tar", "0.png", "captions.csv"])
def test_pipes_are_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    (tmp_path / "1.png").write_bytes(picture(1)) if name != "0.tar" else None
    assert inspect.run([str(tmp_path)])["refused"]


def test_codes(tmp_path):
    codes = torch.tensor([[[0, 1], [1, 0]], [[2, 2], [2, 2]]])
    write(tmp_path / "codes", codes, [("a cat", "a tabby"), ("a dog",)], ["a", "b"], ["val", None], codebook_size=9)
    found = inspect.run([str(tmp_path / "codes"), "--out", str(tmp_path / "out")])
    assert (found["kind"], found["samples"], found["splits"]) == ("codes", 2, {"val": 1, "none of its own": 1})
    assert found["captions"]["captions"] == 3
    assert found["codes"] == {
        "tokenizer": "abc", "grid": [2, 2], "codebook": 9, "looked at": 2, "codes in use": 3, "perplexity": 2.8,
    }  # fmt: skip
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]
    with pytest.raises(ValueError, match="filters are given for the codes"):
        inspect.run([str(tmp_path / "codes"), "--max_aspect_ratio", "2"])


def test_at_most_so_many_are_looked_at(folder):
    found = inspect.run([str(folder), "--pictures", "2"])
    assert found["pictures"]["looked at"] == found["captions"]["captions"] == 2
    assert found["samples"] == 6


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "no such file"),
        (["pipe:cat 0.tar"], "streams are not looked at"),
        (["."], "--pictures is 0"),
        (["nowhere", "--tokenizer", "nothing"], "text tokenizer nothing not found"),
        (["nowhere", "--max_aspect_ratio", "0"], "max_aspect_ratio=0"),
    ],
)
def test_what_is_refused(args, message):
    with pytest.raises(ValueError, match=message):
        inspect.run([*args, "--pictures", "0"] if args == ["."] else args)


def test_spreads_by_hand():
    assert spread_of([]) == {}
    assert spread_of([7, 7]) == {
        "least": 7, "5%": 7, "half": 7, "95%": 7, "most": 7, "mean": 7, "histogram": {"edges": [7, 7], "counts": [2]},
    }  # fmt: skip
    found = spread_of([1, 10, 100, 1000])
    assert found["histogram"]["counts"] == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1]
    assert found["histogram"]["edges"][::4] == [1, 10, 100, 1000]
