"""The benchmark of sampling: that it runs, that wrong tokens end it, and what it says of rows made up."""

import json
import weakref

import pytest
import torch

from benchmarks import samplers, sampling_rows
from benchmarks import sampling as script
from benchmarks.prior_contestants import QUICK, make_ours, make_selective
from benchmarks.prior_goals import sampling_verdicts
from benchmarks.samplers import Case, Ours, prepare_ours
from benchmarks.sampling_gate import in_float32
from benchmarks.sampling_rows import Job, Row, gate, measure, timed
from transformer.decoding import generate
from transformer.sampling import SamplingConfig
from transformer.serving import WEIGHTS


def test_a_quick_run_measures_ours_and_writes_what_it_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "isolated", lambda measure, job: measure(job))
    monkeypatch.setattr(script, "NAMES", ("ours, not compiled", "ours, uncached"))  # compiling would take a minute
    out = tmp_path / "sampling.json"
    script.main(["--quick", "--only=ours", "--batch", "2", "1", "--repeats=1", f"--out={out}"])
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(out.read_text())
    assert json.loads(printed[-1]) == result
    assert result.keys() >= {"date", "commit", "hardware", "threads", "torch", "settings", "sizes", "goals"}
    assert [(row["name"], row["dtype"], row["batch"]) for row in result["rows"]] == [
        (name, "float32", batch) for name in script.NAMES for batch in (1, 2)
    ]
    assert [row["estimated"] for row in result["rows"]] == [False, False, True, True]
    assert all(0 < row["share"] < 1 for row in result["rows"][:2]) and result["rows"][2]["share"] is None
    assert [each["equal"] for each in result["gates"]] == [1, 1, 1]
    assert "--quick is no measure of speed" in printed


def test_who_fails_is_absent_and_the_others_go_on(capsys, monkeypatch):
    def fail_one(measure, job):
        if job.name == "DALLE-pytorch":
            raise ImportError("No module named 'dalle_pytorch'")
        return [row(name=job.name)], []

    monkeypatch.setattr(script, "isolated", fail_one)
    script.main(["--quick"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["absent"] == [{"name": "DALLE-pytorch", "dtype": "float32", "why": "No module named 'dalle_pytorch'"}]
    assert len(result["rows"]) == 7


@pytest.mark.parametrize("name", ["ours", "ours, not compiled"])
def test_ours_that_fail_end_the_run(monkeypatch, name):
    def fail(measure, job):
        if job.name == name:
            raise ValueError("wrong")
        return [row(name=job.name)], []

    monkeypatch.setattr(script, "isolated", fail)
    with pytest.raises(ValueError, match="wrong"):
        script.main(["--quick"])


def test_narrow_weights_are_for_ours_alone():
    found = [(job.name, job.dtype, job.repeats) for job in script.jobs(script.parse_args([]))]
    assert [dtype for name, dtype, _ in found if name == "ours"] == ["float32", "bfloat16", "int8"]
    assert [dtype for name, dtype, _ in found if name == "Llama"] == ["float32", "bfloat16"]
    assert {repeats for name, _, repeats in found if name != "ours"} == {1}


def drawn(dtype: str, batch: int = 1, guided: bool = False, greedily: bool = False) -> Ours:
    """Not compiled, which would take a minute."""
    case = Case(sizes=QUICK, batch=batch, dtype=dtype, device="cpu")
    config = SamplingConfig(temperature=0.0 if greedily else 1.0, guidance_scale=3.0 if guided else 1.0)
    ours = Ours(case, prepare_ours(QUICK, dtype, "cpu"), config, compile=False)
    ours.draw()
    return ours


KINDS = [{}, {"batch": 3}, {"guided": True}, {"greedily": True}, {"greedily": True, "guided": True}]


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("kind", KINDS)
def test_right_tokens_pass(dtype, kind):
    assert gate("ours", drawn(dtype, **kind)).equal > 0.9


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_tokens_drawn_under_another_mask_in_one_layer_are_wrong(monkeypatch, dtype):
    def wrong(prior, *args, **options):
        patterns = prior.patterns
        prior.patterns = [prior.config.pattern("row") if p.kind == "column" else p for p in patterns]
        tokens = generate(prior, *args, **options)
        prior.patterns = patterns
        return tokens

    monkeypatch.setattr(samplers, "generate", wrong)
    for greedily in (False, True):
        with pytest.raises(ValueError, match=rf"ours in {dtype}: the tokens differ .* nothing is reported"):
            gate("ours", drawn(dtype, greedily=greedily))


def test_tokens_drawn_by_other_numbers_are_wrong(monkeypatch):
    monkeypatch.setattr(samplers, "generate", lambda *args, seeds, **rest: generate(*args, seeds=seeds + 1, **rest))
    with pytest.raises(ValueError, match="the tokens differ"):
        gate("ours", drawn("float32"))
    assert gate("ours", drawn("float32", greedily=True)).equal == 1


def test_tokens_drawn_with_another_guidance_are_wrong():
    ours = drawn("float32", guided=True)
    ours.config = SamplingConfig(guidance_scale=2.5)
    with pytest.raises(ValueError, match="the tokens differ"):
        gate("ours", ours)


def test_greedy_tokens_are_checked_beside_those_that_are_timed():
    job = Job(name="ours, not compiled", dtype="int8", sizes=QUICK, batches=(2, 1), device="cpu", repeats=1, quick=True)
    rows, gates = measure(job)
    assert [(row.name, row.batch) for row in rows] == [("ours, not compiled", 1), ("ours, not compiled", 2)]
    assert [(each.name, each.batch) for each in gates] == [
        ("ours, not compiled", 1), ("ours, greedily", 1), ("ours, not compiled", 2)
    ]  # fmt: skip


def test_the_memory_of_a_batch_size_is_not_that_of_those_before_it(monkeypatch):
    priors, alive = [], []

    def watched(case, samplers, *rest):
        priors.append(weakref.ref(samplers["ours, not compiled"].prior))
        alive.append(sum(prior() is not None for prior in priors))
        return timed(case, samplers, *rest)

    monkeypatch.setattr(sampling_rows, "timed", watched)
    name, settings = "ours, not compiled", {"dtype": "float32", "sizes": QUICK, "device": "cpu"}
    measure(Job(name=name, batches=(1, 2, 4), repeats=1, quick=True, **settings))
    assert alive == [1, 1, 1]


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_narrow_weights_are_multiplied_out(dtype):
    prior = prepare_ours(QUICK, dtype, "cpu")
    wide, trained = in_float32(prior), make_selective(make_ours(QUICK))
    x = torch.randn(9, 64)  # more rows than go one by one
    expected = prior.image_head(x)
    off = (wide.image_head(x) - expected).norm() / expected.norm()
    assert off < 1e-6
    off = (wide.image_head.weight - trained.image_head.weight).abs().max() / trained.image_head.weight.abs().max()
    assert off <= {"float32": 0, "bfloat16": 2**-8, "int8": 1 / 254}[dtype] * 1.01


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
    gates = json.loads(capsys.readouterr().out.splitlines()[-1])["gates"]
    assert {each["name"] for each in gates} == {"ours", "ours, guided", "ours, not compiled", "ours, greedily"}
    assert all(each["equal"] == 1 for each in gates)
