"""The benchmark of the nearest code, at sizes that take no time."""

import json

import pytest
import torch

from benchmarks import nearest

SETTINGS = ["--quick"]


def test_every_task_is_measured_and_recorded(tmp_path, capsys):
    out = tmp_path / "results" / "nearest.json"
    nearest.main([*SETTINGS, f"--out={out}"])
    result = json.loads(out.read_text())
    printed = capsys.readouterr().out
    assert "x ours: time over ours; above 1, ours is the faster, but --quick is too small to tell" in printed
    assert json.loads(printed.splitlines()[-1]) == result
    assert result.keys() >= {"date", "commit", "hardware", "threads", "python", "torch", "settings"}
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
