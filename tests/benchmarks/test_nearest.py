"""The benchmark of the nearest code, at sizes that take no time."""

import json

import pytest
import torch

from benchmarks import nearest
from benchmarks.ceilings import Ceilings

SETTINGS = ["--quick"]


def test_every_task_is_measured_and_recorded(tmp_path, capsys):
    out = tmp_path / "results" / "nearest.json"
    nearest.main([*SETTINGS, f"--out={out}"])
    result = json.loads(out.read_text())
    printed = capsys.readouterr().out
    assert "x ours: time over ours; above 1, ours is the faster, but --quick is too small to tell" in printed
    assert json.loads(printed.splitlines()[-1]) == result
    assert result.keys() >= {"date", "commit", "hardware", "threads", "python", "torch", "settings"}
    assert result["ceilings"].keys() == {"float32"}
    assert all(rate > 0 for rate in result["ceilings"]["float32"].values())
    assert [row["task"] for row in result["rows"]] == ["codes", "codes", "logits", "encode"]
    for row in result["rows"]:
        assert row["equal_to_float64"] > 0.9
        (ours, *others) = row["contestants"].values()
        assert ours["ratio"] == 1
        assert others
        for figures in (ours, *others):
            assert figures["ms"] > 0
            assert figures["mib"] > 0
            assert figures["ratio"] == pytest.approx(figures["ms"] / ours["ms"], rel=1e-2)


@pytest.mark.parametrize(("dtype", "itemsize"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_flops_and_bytes_by_hand(dtype, itemsize):
    """7 vectors and 10 codes of 5 values: 70 products of 5 pairs; the bias may be of another dtype."""
    x, weight, bias = torch.zeros(7, 5, dtype=dtype), torch.zeros(10, 5, dtype=dtype), torch.zeros(10)
    read = itemsize * (7 * 5 + 10 * 5) + 4 * 10
    assert nearest.argmax_work(x, weight, bias) == (2 * 70 * 5, read + 8 * 7)
    assert nearest.scores_bytes(x, weight) == 2 * 70 * itemsize


@pytest.mark.parametrize(
    ("dtype", "ceilings", "roofs"),
    [
        ("float32", Ceilings(flops=1e8, bytes=1e30), [8, 64, 10.24]),
        ("float32", Ceilings(flops=1e30, bytes=1e7), [2.2, 15.64, 7.0352]),
        ("bfloat16", Ceilings(flops=1e30, bytes=1e7), [1.24, 7.96, 3.5304]),
    ],
)
def test_shares_are_those_of_the_roof(monkeypatch, capsys, dtype, ceilings, roofs):
    """100 vectors of 8 and of 64 values and 2 feature maps of 4x4 of 32, 500 codes; the roofs (ms) by hand.

    FLOPs: 2 * 100 * 500 * 8, 2 * 100 * 500 * 64, 2 * 32 * 500 * 32. Bytes: those of 100 * D + 500 * D values, or of
    32 * 32 + 500 * 32, of 500 of the bias (of codes always float32) and of 100 or 32 indices.
    """
    asked = []

    def measured(device, of_dtype, clock, *, quick):
        asked.append((device, of_dtype, quick))
        return ceilings

    monkeypatch.setattr(nearest, "measure_ceilings", measured)
    nearest.main([*SETTINGS, f"--dtype={dtype}"])
    *table, record = capsys.readouterr().out.splitlines()
    result = json.loads(record)
    assert asked == [("cpu", getattr(torch, dtype), True)]
    assert result["ceilings"] == {dtype: ceilings._asdict()}
    assert [row["flops"] for row in result["rows"]] == [800_000, 6_400_000, 1_024_000, None]
    end_of_counts = table[4].index("scores MB") + len("scores MB")
    counted = [line[:end_of_counts].split()[3:] for line in table[5:] if line[0] != " "]
    gflop, moved_mb, scores_mb = zip(*counted, strict=True)
    assert gflop == ("0.0008", "0.0064", "0.001024", "-")
    itemsize = getattr(torch, dtype).itemsize
    moved = [600 * 8 * itemsize + 2800, 600 * 64 * itemsize + 2800, (532 * 32 + 500) * itemsize + 256]
    assert [row["bytes"] for row in result["rows"]] == [*moved, None]
    assert [float(mb) for mb in moved_mb[:3]] == pytest.approx([each / 1e6 for each in moved], rel=1e-3)
    scores = [2 * n * 500 * itemsize for n in (100, 100, 32)]
    assert [row["scores_bytes"] for row in result["rows"]] == [*scores, None]
    assert [float(mb) for mb in scores_mb[:3]] == pytest.approx([each / 1e6 for each in scores], rel=1e-3)
    assert moved_mb[3] == scores_mb[3] == "-"
    assert [row["roof_ms"] for row in result["rows"][:3]] == pytest.approx(roofs, rel=1e-3)
    end = table[4].index("roof") + len("roof")
    shares = [line[end - 9 : end].strip() for line in table[5:]]
    for row in result["rows"]:
        for figures in row["contestants"].values():
            printed = shares.pop(0)
            if row["task"] == "encode":
                assert (printed, row["bytes"], row["roof_ms"], figures["share"]) == ("-", None, None, None)
            else:
                assert figures["share"] == pytest.approx(row["roof_ms"] / figures["ms"], rel=2e-3)
                assert float(printed.rstrip("%")) == pytest.approx(100 * figures["share"], rel=1e-3, abs=0.06)
    assert not shares


@pytest.mark.parametrize(("function", "task"), [("nearest_code", "codes"), ("argmax_linear", "logits")])
def test_wrong_indices_are_not_timed(monkeypatch, function, task):
    right = getattr(nearest, function)
    monkeypatch.setattr(nearest, function, lambda *tensors: (right(*tensors) + 1) % 500)
    monkeypatch.setattr(nearest, "time_in_turn", lambda *arguments, **options: pytest.fail("was timed"))
    with pytest.raises(SystemExit, match=f"{task}, N=.*: indices are wrong; nothing is timed"):
        nearest.main([*SETTINGS, f"--tasks={task}"])


def test_a_clock_that_cannot_see_the_device_is_refused():
    with pytest.raises(ValueError, match="cannot time work on cpu"):
        nearest.main([*SETTINGS, "--clock=events"])


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:1", 1)])
def test_work_and_events_are_on_one_device(monkeypatch, device, index):
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", current.append, raising=False)
    monkeypatch.setattr(torch.cuda, "_check_stray_context", lambda device: None, raising=False)
    nearest.parse_args([f"--device={device}"])
    assert current == [index]
