"""The benchmark of reading codes, small: what it compares is the same, and what it says is what it measured."""

import json

import pytest
import torch

from benchmarks import data
from data.codes import CodesSource


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(data, "isolated", lambda measure, *args: measure(*args))
    monkeypatch.setattr(data.multiprocessing, "set_start_method", lambda *args, **settings: None)


def test_all_of_it(tmp_path, capsys):
    out = tmp_path / "result.json"
    data.main(["--quick", "--place", str(tmp_path), "--samples", "300", f"--out={out}"])
    said = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert json.loads(said.splitlines()[-1]) == result
    assert result.keys() >= {"date", "commit", "hardware", "threads", "torch", "webdataset", "settings"}
    assert set(result["rates"]["samples_per_s"]) == {"ours, in order", "ours, at random", "webdataset, in order"}
    assert result["set"]["samples"] == 9000 and result["set"]["shards"] == 3
    assert set(result["first"]) == {"trained", "warm", "2 workers", "cold"}
    assert all(0 < row["opening"] < row["seconds"] for row in result["first"].values())
    assert result["memory"]["samples"] > 8000 and result["memory"]["first"]["own"] > 10
    for goal in ("goal of 10x webdataset", "goal of 1 s to the first batch", "goal of flat memory"):
        assert goal in said
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_what_differs_is_not_timed(tmp_path):
    data.make_set(tmp_path / "codes", 100, 3)
    source = CodesSource(tmp_path / "codes")
    data.make_tar(tmp_path / "codes.tar", source)
    data.check(data.ours(source, range(100)), data.theirs(tmp_path / "codes.tar"))

    def changed(what):
        for keys, captions, codes in data.ours(source, range(100)):
            yield what(keys, captions, codes)

    for what in (
        lambda keys, captions, codes: (keys[::-1], captions, codes),
        lambda keys, captions, codes: (keys, [caption.upper() for caption in captions], codes),
        lambda keys, captions, codes: (keys, captions, codes + torch.eye(3, dtype=torch.int64)),
    ):
        with pytest.raises(RuntimeError, match="batch 0 differs from webdataset's: nothing is timed"):
            data.check(changed(what), data.theirs(tmp_path / "codes.tar"))
