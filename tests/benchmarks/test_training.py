"""The benchmark of training: that it runs, that wrong gradients end it, and what it says of rows made up."""

import json

import pytest
import torch

from benchmarks import training as script
from benchmarks.prior_contestants import QUICK
from benchmarks.prior_goals import Overhead, training_verdicts
from benchmarks.trainers import Case, Ours
from benchmarks.training_rows import Job, Row, checked, errors_of, measure
from transformer.model import Prior


def case(dtype: str) -> Case:
    return Case(sizes=QUICK, batch=1, dtype=dtype, device="cpu")


@pytest.mark.filterwarnings("ignore")
def test_a_quick_run_measures_ours_and_writes_what_it_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "isolated", lambda measure, job: measure(job))
    monkeypatch.setattr(script, "TRAINERS", {"ours": None})
    monkeypatch.setattr(script, "ROUNDS", 1)
    out = tmp_path / "training.json"
    script.main(["--quick", "--only=ours", "--dtypes=bfloat16", "--repeats=2", "--batch=1", f"--out={out}"])
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(out.read_text())
    assert json.loads(printed[-1]) == result
    assert result.keys() >= {"date", "commit", "hardware", "threads", "torch", "settings", "sizes", "goals"}
    (found,) = result["rows"]
    assert found["losses"][0] > found["losses"][1] and found["times_ours"] == 1
    assert found["tokens_per_s"] == pytest.approx(80 / found["step_s"], rel=1e-3)
    assert 0 < result["gates"]["ours, bfloat16"]["gradients"] < 2e-2
    assert result["overheads"][0]["lightning_s"] > 0
    assert "--quick is no measure of speed" in printed


def test_who_fails_is_absent_and_the_others_go_on(capsys, monkeypatch):
    def fail_one(measure, job):
        if measure is script.overhead:
            return Overhead(job.dtype, 1.0, 1.01, 0.01)
        if (job.name, job.case.dtype) == ("Llama", "float32"):
            raise ImportError("No module named 'transformers'")
        return row(name=job.name), None

    monkeypatch.setattr(script, "isolated", fail_one)
    script.main(["--quick", "--dtypes=float32"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["absent"] == [{"name": "Llama", "dtype": "float32", "why": "No module named 'transformers'"}]
    assert len(result["rows"]) == 5


def test_ours_that_fail_end_the_run(monkeypatch):
    def fail(measure, job):
        raise ValueError("wrong")

    monkeypatch.setattr(script, "isolated", fail)
    with pytest.raises(ValueError, match="wrong"):
        script.main(["--quick"])


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0), ("bfloat16", 1e-3)])
def test_our_gradients_are_right(dtype, least):
    trainer = Ours(case(dtype), compiled=False)
    found = checked(trainer)
    assert least < found.gradients < found.worst
    assert all(p.grad is None for p in trainer.model.parameters())


def test_a_gradient_that_is_wrong_is_seen():
    """That of 64 numbers, twice as large."""
    trainer = Ours(case("bfloat16"), compiled=False)
    trainer.model.norm.weight.register_hook(lambda gradient: 2 * gradient)
    with pytest.raises(ValueError, match=r"bfloat16: Errors.*worst=1\.0.*; nothing is reported"):
        checked(trainer)


def test_a_gradient_that_is_missing_is_seen():
    trainer = Ours(case("float32"), compiled=False)
    trainer.model.embedding.bos.requires_grad_(False)
    assert errors_of(trainer).worst == 1


def test_a_loss_that_does_not_fall_is_no_training(monkeypatch):
    monkeypatch.setattr(Ours, "step", lambda self: torch.tensor(3.0))
    with pytest.raises(ValueError, match="the loss of ours in float32 went from 3 to 3"):
        measure(Job(name="ours", case=case("float32"), repeats=1, quick=True))


def row(**changes) -> Row:
    values = {
        "name": "ours",
        "dtype": "float32",
        "parameters": 50_000_000,
        "tokens_per_s": 1000.0,
        "step_s": 2.0,
        "spread": 0.01,
        "tflop": 0.08,
        "peak_tflops": 0.1,
        "peak_gb": 2.0,
        "losses": (9.0, 8.0),
    }
    return Row(**values | changes)


def test_mfu_is_what_the_products_are_of_the_peak():
    assert row().mfu == pytest.approx(0.4)


def test_goals_by_hand():
    rows = [
        row(),
        row(name="ours, compiled", tokens_per_s=1200.0, tflop=0.12),
        row(name="Llama", tokens_per_s=400.0),
        row(name="Llama, compiled", tokens_per_s=800.0),
        row(name="Llama, codes alone", tokens_per_s=500.0),
        row(dtype="bfloat16"),
        row(name="Llama", dtype="float16"),
    ]
    overheads = [Overhead("bfloat16", 1.0, 1.03, 0.03)]
    verdicts = training_verdicts(rows, overheads, "cpu")
    found = {verdict.what: (verdict.goal, verdict.found, verdict.met) for verdict in verdicts}
    assert found == {
        "float32, times the faster of Hugging Face's with our vocabularies": (2, pytest.approx(1.5), False),
        "float32, times Hugging Face's with the codebook alone": (2, pytest.approx(2.4), True),
        "float32, times DALLE-pytorch": (5, None, False),
        "float32, MFU": (0.5, pytest.approx(0.6), True),
        "bfloat16, times the faster of Hugging Face's with our vocabularies": (2, None, False),
        "bfloat16, times Hugging Face's with the codebook alone": (2, None, False),
        "bfloat16, times DALLE-pytorch": (5, None, False),
        "bfloat16, MFU": (0.5, pytest.approx(0.4), False),
        "bfloat16, what Lightning adds to a bare loop's step": (0.02, 0.03, False),
    }
    assert [verdict.goal for verdict in training_verdicts(rows[:4], overheads, "cuda")] == [0.55, 0.02]


@pytest.mark.filterwarnings("ignore")
def test_lightnings_steps_are_ours():
    """A Trainer's run and a bare loop on the same batch bring the same weights to the same place."""
    optim = script.OptimConfig(lr=1e-3, decay="none", warmup_steps=0)
    system = script.PriorSystem(QUICK.config(), optim, caption_dropout=0.0)
    before = {name: p.clone() for name, p in system.prior.state_dict().items()}
    script.lightning_steps(system, case("float32"))
    prior = Prior(QUICK.config())
    prior.load_state_dict(before)
    assert len(script.bare_steps(prior, system.optim, case("float32"))) == script.STEPS - 1
    for found, expected in zip(system.prior.parameters(), prior.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_an_error_in_words():
    with pytest.raises(ValueError, match=r"--device is cuda, but PyTorch .* finds no CUDA device here"):
        script.main(["--device=cuda"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_quick_run_on_a_gpu(capsys):
    script.main(["--quick", "--only=ours", "--device=cuda", "--repeats=1"])
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]) == 4
