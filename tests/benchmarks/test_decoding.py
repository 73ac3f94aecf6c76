"""The benchmark of decoding, at sizes that take no time."""

import json

import pytest
import torch

from benchmarks import decoding


def test_every_transform_is_measured_and_recorded(tmp_path, capsys):
    out = tmp_path / "results" / "decoding.json"
    decoding.main(["--quick", f"--out={out}"])
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert result.keys() >= {"date", "commit", "hardware", "threads", "webdataset", "pillow", "settings"}
    assert [row["transform"] for row in result["rows"]] == ["evaluation", "tokenizer"]
    for row in result["rows"]:
        assert row["pictures"] == 2
        assert row["megapixels"] == pytest.approx(0.2, rel=0.01)
        assert row["decibels"] > decoding.FEWEST_DECIBELS
        assert row["times theirs"] == pytest.approx(row["ms"]["theirs"] / row["ms"]["ours"], rel=1e-2)


def test_pictures_of_a_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(decoding, "isolated", lambda measure, *args: measure(*args))  # a process takes seconds to start
    decoding.photograph(300, 200, seed=0).save(tmp_path / "a.jpg")
    turned = decoding.photograph(300, 200, seed=1)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "b.txt").write_text("no picture")
    decoding.main(["--quick", f"--data={tmp_path}"])
    assert [row["pictures"] for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]] == [1, 1]
    with pytest.raises(ValueError, match="no upright"):
        decoding.main(["--quick", f"--data={tmp_path / 'nothing'}"])


def test_wrong_views_are_not_timed():
    view = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert decoding.check([view], [view]) == pytest.approx(100)
    with pytest.raises(RuntimeError, match="nothing is timed"):
        decoding.check([view, view], [view, view.flip(-1)])
