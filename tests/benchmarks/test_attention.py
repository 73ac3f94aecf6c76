"""The script on a CPU, and what it does on a GPU as far as a CPU can tell."""

import json
from functools import partial

import pytest
import torch

from benchmarks import attention as script
from benchmarks import layer
from benchmarks.ceilings import Ceilings
from benchmarks.contestants import OURS, Contestant, dense_backends, flex_contestants, line_up, make_masked
from benchmarks.gate import Errors, Inputs
from benchmarks.layer import Case, admit, make_rows, memory_ratio
from benchmarks.timing import Timing
from kernels.attention import attention
from kernels.patterns import Pattern, dense_mask

ROW = Pattern("row", 64, 16, 16)
SETTINGS = ["--quick", "--kinds=row", "--heads=1", "--repeats=1"]


def test_a_quick_run_measures_every_pass_and_writes_what_it_prints(tmp_path, capsys):
    out = tmp_path / "results" / "attention.json"
    script.main(["--quick", "--heads=1", "--clock=cpu", f"--out={out}"])
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(out.read_text())
    assert json.loads(printed[-1]) == result
    assert result.keys() >= {"date", "commit", "hardware", "threads", "torch", "settings", "ceilings", "goals"}
    assert [(row["kind"], row["pass_"]) for row in result["rows"]] == [
        (kind, pass_) for kind in ("row", "column", "conv") for pass_ in ("fwd", "bwd", "fwd+bwd")
    ]
    for row in result["rows"]:
        assert row["ms"].keys() == {"ours", "masked", "causal"}
        assert row["error"] < 1e-5
    assert result["masks"][0] == {
        "kind": "row", "seq_len": 320, "pairs": int(dense_mask(ROW).sum()), "blocks": {"raster": 12}, "roof_blocks": 12
    }  # fmt: skip
    assert all(1 < memory["ratio"] < 4 for memory in result["memory"])
    assert "no goal is set for these layers" in printed


def gpu_contestants(pattern, device):
    """Those of a GPU, as far as a CPU has them."""
    ours = Contestant(OURS, pattern, lambda: partial(attention, pattern=pattern, impl="structured"))
    causal = Pattern("causal", pattern.text_len, pattern.height, pattern.width)
    return [ours, *dense_backends(causal), *flex_contestants(pattern, "cpu", compiler=None)]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_best_of_a_group_is_shown_and_who_is_absent_is_listed(monkeypatch, capsys):
    monkeypatch.setattr(script, "line_up", gpu_contestants)
    script.main(SETTINGS)
    printed = capsys.readouterr().out
    result = json.loads(printed.splitlines()[-1])
    assert [set(row["ms"]) for row in result["rows"]] == [{"ours", "causal/flash"}] * 3
    absent = {each["contestant"]: each["why"] for each in result["absent"]}
    assert absent.keys() == {"causal/cudnn", "flex/64", "flex/128"}
    assert "does not support backward on CPU" in absent["flex/64"]  # PyTorch's words
    assert all(f"absent: {name} ({why})" in printed for name, why in absent.items())


def wrong(pattern, name=OURS):
    mask = dense_mask(pattern)
    mask[100:, 60] = False
    return Contestant(name, pattern, lambda: partial(torch.nn.functional.scaled_dot_product_attention, attn_mask=mask))


def test_wrong_results_of_ours_end_the_run(monkeypatch, capsys):
    monkeypatch.setattr(script, "line_up", lambda pattern, device: [wrong(pattern)])
    with pytest.raises(ValueError, match=r"wrong under Pattern.*row.* allowed 1e-05; not timed"):
        script.main(SETTINGS)
    assert "fwd" not in capsys.readouterr().out


def test_wrong_results_of_another_are_not_timed():
    inputs = Inputs.random((1, 1, ROW.seq_len, 8), torch.float32, "cpu")
    admitted, absent = admit(inputs, [*line_up(ROW, "cpu"), wrong(ROW, "flex/64")])
    assert list(admitted) == ["ours", "masked", "causal"]
    assert absent.keys() == {"flex/64"}
    assert "wrong" in absent["flex/64"]


def test_rows_are_made_of_medians():
    """A head of 64 by 1,280 positions; ceilings at which its 105 blocks take 1 ms forward, 2.5 ms backward."""
    pattern = Pattern("row", 256, 32, 32)
    case = Case(pattern=pattern, batch=2, heads=3, head_dim=64, dtype="bfloat16", device="cuda")
    ceilings = Ceilings(flops=6 * 105 * 64**2 * 4 * 64 * 1e3, bytes=1e30)
    timed = {
        "fwd": {"ours": Timing(2.0, 0.1), "causal/flash": Timing(6.0, 0.2)},
        "fwd+bwd": {"ours": Timing(7.0, 0.1), "causal/flash": Timing(30.0, 0.2)},
    }
    rows = {row.pass_: row for row in make_rows(case, timed, Errors(1e-3, 2e-3), ceilings)}
    assert rows["bwd"].ms == {"ours": 5.0, "causal/flash": 24.0}
    assert {pass_: row.share for pass_, row in rows.items()} == pytest.approx({"fwd": 0.5, "bwd": 0.5, "fwd+bwd": 0.5})
    assert rows["fwd"].tflops == pytest.approx(6 * 328_304 * 4 * 64 / 2e-3 / 1e12)
    assert rows["fwd+bwd"].ratio("causal") == pytest.approx(30 / 7)
    assert (rows["fwd"].spread, rows["bwd"].spread) == ({"ours": 0.1, "causal/flash": 0.2}, {})


def test_memory_counts_inputs_and_results():
    """Masked attention needs q, k, v, o, and the gradients of four; besides, here, next to nothing."""
    inputs = Inputs.random((1, 1, 320, 2048), torch.float32, "cpu")
    attend = make_masked(ROW, "cpu")
    assert 1 <= memory_ratio(attend, inputs, "fwd") < 1.5
    assert 2 <= memory_ratio(attend, inputs, "fwd+bwd") < 2.5


def test_the_row_layer_of_16640_positions_is_within_the_goal_for_memory():
    pattern = Pattern("row", 256, 128, 128)
    ours = line_up(pattern, "cpu")[0].make()
    inputs = Inputs.random((1, 1, pattern.seq_len, 16), torch.float32, "cpu")
    assert all(memory_ratio(ours, inputs, pass_) < 4 for pass_ in layer.TIMED)


@pytest.fixture
def pretended_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def test_layers_of_a_gpu_fill_it(pretended_gpu):
    args = script.parse_args(["--device=cuda", "--kinds=row", "--heads=7"])
    assert (args.clock, args.dtypes, args.head_dims, args.heads) == ("events", ["bfloat16"], [64, 128], 7)
    shapes = [case.shape for case in script.timed_cases(args)]
    assert shapes[:3] == [(51, 7, 1280, 64), (15, 7, 4352, 64), (3, 7, 16640, 64)]
    assert len(shapes) == 6


def test_what_is_asked_for_wins_over_defaults():
    args = script.parse_args(["--grids=8", "--batch=3", "--dtypes", "float16", "float32", "--clock=cpu"])
    assert [(case.shape, case.dtype) for case in script.timed_cases(args)][::3] == [
        ((3, 8, 320, 64), "float16"),
        ((3, 8, 320, 64), "float32"),
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_an_error_in_words():
    with pytest.raises(ValueError, match=r"--device is cuda, but PyTorch .* finds no CUDA device here"):
        script.main(["--device=cuda"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_quick_run_on_a_gpu(capsys):
    script.main(["--quick", "--device=cuda", "--kinds", "column", "causal", "--batch=2", "--repeats=3"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["absent"] == []
    column = {"ours", "masked", "causal/flash", "causal/cudnn", "flex/64", "flex/128", "permuted/64", "permuted/128"}
    assert set(result["rows"][0]["ms"]) == column
