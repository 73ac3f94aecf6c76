"""The benchmark of sampling: that it runs, that wrong tokens end it, and what it says of rows made up."""

import json

import pytest
import torch

from benchmarks import sampling as script
from benchmarks import sampling_rows
from benchmarks.prior_contestants import QUICK
from benchmarks.prior_goals import sampling_verdicts
from benchmarks.samplers import Case, line_up
from benchmarks.sampling_rows import Job, Row, gate, measure


def here(measure, job):
    return measure(job)


def test_a_quick_run_measures_ours_and_writes_what_it_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "isolated", here)
    out = tmp_path / "sampling.json"
    script.main(["--quick", "--only=ours", "--batch", "2", "1", "--dtypes=float32", "--repeats=1", f"--out={out}"])
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(out.read_text())
    assert json.loads(printed[-1]) == result
    assert result.keys() >= {"date", "commit", "hardware", "threads", "torch", "settings", "sizes", "goals"}
    names = ("ours", "ours, guided", "ours, not compiled")
    assert [(row["name"], row["batch"]) for row in result["rows"]] == [
        *((name, batch) for batch in (1, 2) for name in names), ("ours, uncached", 1), ("ours, uncached", 2)
    ]  # fmt: skip
    assert result["rows"][0]["times_ours"] == 1
    assert [row["estimated"] for row in result["rows"]] == [False] * 6 + [True] * 2
    assert all(0 < row["share"] < 1 for row in result["rows"][:6]) and result["rows"][6]["share"] is None
    assert result["gates"]["float32"]["1"] == {"equal": 1.0, "gap": 0.0}
    assert "--quick is no measure of speed" in printed


def test_who_fails_is_absent_and_the_others_go_on(capsys, monkeypatch):
    def fail_one(measure, job):
        if job.name == "DALLE-pytorch":
            raise ImportError("No module named 'dalle_pytorch'")
        return [row(name=job.name)], {}

    monkeypatch.setattr(script, "isolated", fail_one)
    script.main(["--quick", "--dtypes=float32"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["absent"] == [{"name": "DALLE-pytorch", "dtype": "float32", "why": "No module named 'dalle_pytorch'"}]
    assert len(result["rows"]) == 6


def test_wrong_tokens_end_the_run(monkeypatch):
    """One layer of five draws under another mask."""

    def wrong(prior, batch, config, progress=None):
        patterns = prior.patterns
        prior.patterns = [prior.config.pattern("row") if p.kind == "column" else p for p in patterns]
        drawn = right(prior, batch, config, progress)
        prior.patterns = patterns
        return drawn

    right = sampling_rows.sample_ours
    monkeypatch.setattr(sampling_rows, "sample_ours", wrong)
    for dtype in ("float32", "bfloat16"):
        job = Job(name="ours", dtype=dtype, sizes=QUICK, batches=(1,), device="cpu", repeats=1, quick=True)
        with pytest.raises(ValueError, match=rf"greedy tokens in {dtype} differ .* nothing is timed"):
            measure(job)


def test_right_tokens_in_bfloat16_pass():
    ours = line_up("ours", Case(sizes=QUICK, batch=2, dtype="bfloat16", device="cpu"))["ours"]
    assert gate(ours).equal > 0.9


def row(**changes) -> Row:
    values = {
        "name": "ours",
        "dtype": "float32",
        "batch": 1,
        "tokens_per_s": 100.0,
        "total_s": 10.0,
        "first_s": 0.1,
        "ms_per_step": 10.0,
        "spread": 0.01,
        "estimated": False,
        "gb_per_step": 0.12,
        "limit_gb_per_s": 20.0,
        "peak_gb": 0.2,
    }
    return Row(**values | changes)


def test_the_share_is_of_the_memorys_rate():
    assert row().gb_per_s == pytest.approx(12)
    assert row().share == pytest.approx(0.6)
    assert row(gb_per_step=None).share is None


def test_goals_by_hand():
    rows = [
        row(),
        row(name="ours, guided", total_s=12.0),
        row(name="Llama", tokens_per_s=20.0),
        row(name="Llama, static cache, compiled", tokens_per_s=25.0),
        row(name="Llama", tokens_per_s=90.0, batch=4),
        row(name="DALLE-pytorch", tokens_per_s=0.5),
        row(dtype="bfloat16", ms_per_step=5.0),
    ]
    found = {verdict.what: (verdict.goal, verdict.found, verdict.met) for verdict in sampling_verdicts(rows, "cpu")}
    assert found == {
        "float32, times Hugging Face's generate() as it comes": (5, pytest.approx(5), True),
        "float32, times the fastest of Hugging Face's": (5, pytest.approx(4), False),
        "float32, times DALLE-pytorch's generate_images()": (100, pytest.approx(200), True),
        "float32, times whole passes of our own": (20, None, False),
        "float32, share of the memory's rate": (0.75, pytest.approx(0.6), False),
        "float32, guidance over none": (1.15, pytest.approx(1.2), False),
        "bfloat16, times Hugging Face's generate() as it comes": (5, None, False),
        "bfloat16, times the fastest of Hugging Face's": (5, None, False),
        "bfloat16, times DALLE-pytorch's generate_images()": (100, None, False),
        "bfloat16, times whole passes of our own": (20, None, False),
        "bfloat16, share of the memory's rate": (0.75, pytest.approx(1.2), True),
        "bfloat16, guidance over none": (1.15, None, False),
    }
    on_gpu = {verdict.what: verdict.found for verdict in sampling_verdicts(rows[:4], "cuda")}
    assert on_gpu["float32, times Hugging Face's generate(), static cache, compiled"] == pytest.approx(4)
    assert len(on_gpu) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_an_error_in_words():
    with pytest.raises(ValueError, match=r"--device is cuda, but PyTorch .* finds no CUDA device here"):
        script.main(["--device=cuda"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_quick_run_on_a_gpu(capsys):
    script.main(["--quick", "--only=ours", "--device=cuda", "--repeats=1"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["gates"]["float32"]["1"]["equal"] == 1
