"""Goals, from rows made up."""

import pytest

from benchmarks.goals import Memory, Row, verdicts

H100, CPU = "NVIDIA H100 80GB HBM3", "some processor"


def row(**changes) -> Row:
    values = {
        "kind": "row",
        "text_len": 256,
        "grid": 32,
        "batch": 1,
        "heads": 16,
        "head_dim": 64,
        "dtype": "bfloat16",
        "pass_": "fwd",
        "ms": {"ours": 1.0},
        "spread": {},
        "tflops": 100.0,
        "share": 0.55,
        "error": 1e-3,
        "gradient_error": 1e-3,
    }
    return Row(**values | changes)


def judged(rows, device="cuda", hardware=H100, memory=()):
    return {verdict.what: verdict for verdict in verdicts(rows, memory, device, hardware)}


def test_of_a_group_the_fastest_counts():
    ms = {"ours": 2.0, "causal/flash": 9.0, "causal/cudnn": 6.0, "flex/64": 4.0, "flex/128": 5.0, "masked": 50.0}
    made_up = row(ms=ms)
    ratios = [made_up.ratio(group) for group in ("causal", "flex", "masked", "permuted")]
    assert ratios == [3.0, 2.0, 25.0, None]


def test_goals_of_a_layer_on_a_gpu():
    ms = {"ours": 2.0, "causal/flash": 4.98, "flex/64": 3.0}
    found = judged([row(ms=ms)])
    label = "row 32x32 D=64 bfloat16 fwd"
    assert {what: (verdict.goal, verdict.found, verdict.met) for what, verdict in found.items()} == {
        f"{label}, times the best dense causal": (2.5, 2.49, False),
        f"{label}, times compiled FlexAttention": (1.5, 1.5, True),
        f"{label}, share of the roof": (0.5, 0.55, True),
    }
    assert [str(verdict) for verdict in found.values()] == [
        f"MISSED       {label}, times the best dense causal: 2.49, goal at least 2.5",
        f"met          {label}, times compiled FlexAttention: 1.5, goal at least 1.5",
        f"met          {label}, share of the roof: 0.55, goal at least 0.5",
    ]


def test_what_no_competitor_ran_for_is_not_met():
    verdict = judged([row(kind="column", grid=128)])[
        "column 128x128 D=64 bfloat16 fwd, times FlexAttention in column order"
    ]
    assert (verdict.found, verdict.met) == (None, False)
    assert str(verdict).startswith("not measured ")
    assert str(verdict).endswith(": goal at least 1.3")


@pytest.mark.parametrize(
    ("kind", "grid", "pass_", "goals"),
    [
        ("row", 64, "fwd", [5.5, 1.5, 0.5]),
        ("row", 128, "fwd+bwd", [12, 1.15]),
        ("conv", 128, "fwd", [13, 2, 0.5]),
        ("column", 128, "fwd", [15, 10, 1.3, 0.5]),
        ("column", 32, "fwd+bwd", [2, 2, 1.3]),
        ("conv", 64, "bwd", [0.4]),
        ("causal", 64, "bwd", []),
        ("row", 48, "fwd", []),
    ],
)
def test_goals_that_there_are_on_a_gpu(kind, grid, pass_, goals):
    assert [verdict.goal for verdict in judged([row(kind=kind, grid=grid, pass_=pass_)]).values()] == goals
    assert judged([row(kind=kind, grid=grid, pass_=pass_, text_len=64)]) == {}


def test_dense_causal_is_held_to_known_rates_where_they_were_measured():
    causal = [row(kind="causal", grid=grid, tflops=300.0) for grid in (32, 64)]
    assert [verdict.met for verdict in judged(causal).values()] == [True, False]
    assert [verdict.goal for verdict in judged(causal).values()] == pytest.approx([0.9 * 291, 0.9 * 363])
    assert judged(causal, hardware="NVIDIA A100-SXM4-80GB") == {}
    assert judged([row(kind="causal", head_dim=128)]) == {}


@pytest.mark.parametrize(
    ("kind", "grid", "goals"), [("row", 32, [3, 1.6, 1e-5]), ("conv", 32, [2.4, 1.6, 1e-5]), ("column", 64, [9, 1e-5])]
)
def test_goals_of_a_cpu(kind, grid, goals):
    ms = {"ours": 1.0, "masked": 3.0, "causal": 1.5}
    both = row(kind=kind, grid=grid, dtype="float32", pass_="fwd+bwd", ms=ms, error=5e-7, gradient_error=2e-5)
    found = judged([both, row(dtype="float32", kind=kind, grid=grid)], "cpu", CPU)
    assert [verdict.goal for verdict in found.values()] == goals
    parity = found[f"{kind} {grid}x{grid} D=64 float32 fwd+bwd, error"]
    assert (parity.met, parity.found) == (False, 2e-5)
    assert str(parity).endswith("2e-05, goal at most 1e-05")


def test_memory_of_the_long_row_layer():
    layers = {"text_len": 256, "head_dim": 64, "dtype": "float32"}
    memory = [
        Memory(kind="row", grid=128, pass_="fwd", ratio=1.5, **layers),
        Memory(kind="row", grid=128, pass_="fwd+bwd", ratio=4.2, **layers),
        Memory(kind="row", grid=64, pass_="fwd", ratio=9, **layers),
        Memory(kind="conv", grid=128, pass_="fwd", ratio=9, **layers),
    ]
    found = judged([], "cpu", CPU, memory)
    assert [(verdict.found, verdict.met) for verdict in found.values()] == [(1.5, True), (4.2, False)]
