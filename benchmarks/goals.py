"""What benchmarks/attention.py reports of a layer, and the goals that it is held to.

Goals are for 256 text tokens and square grids of 32, 64 and 128 (1,280, 4,352 and 16,640 positions). Ratios are the
time of the fastest contestant of a group over ours, in the same run; shares are of the kernel's own roof (roof.py).
Dense causal attention on a GPU is held to the rates that a Triton kernel of the tutorial's class reaches on an H100 in
bfloat16 at a head dim of 64 (pairs counted, forward).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

GRIDS = (32, 64, 128)
TEXT_LEN = 256
GROUPS = {
    "masked": "masked attention",
    "causal": "the best dense causal",
    "flex": "compiled FlexAttention",
    "permuted": "FlexAttention in column order",
}
BOTH = ("fwd", "fwd+bwd")

# (kind, passes, group of contestants) -> least ratio at each of GRIDS.
GPU_RATIOS = {
    ("row", ("fwd",), "causal"): (2.5, 5.5, 15),
    ("column", ("fwd",), "causal"): (2.5, 5.5, 15),
    ("conv", ("fwd",), "causal"): (1.7, 4.5, 13),
    **{(kind, ("fwd+bwd",), "causal"): (2, 4.5, 12) for kind in ("row", "column", "conv")},
    ("row", BOTH, "flex"): (1.5, 1.5, 1.15),
    ("conv", BOTH, "flex"): (1.5, 1.5, 2),
    ("column", BOTH, "flex"): (2, 2, 10),
    ("column", BOTH, "permuted"): (1.3, 1.3, 1.3),
}
CPU_RATIOS = {
    **{(kind, ("fwd+bwd",), "masked"): (3, 9) for kind in ("row", "column")},
    ("conv", ("fwd+bwd",), "masked"): (2.4,),
    **{(kind, ("fwd+bwd",), "causal"): (1.6,) for kind in ("row", "column", "conv")},
}
SHARES = {"fwd": 0.5, "bwd": 0.4}
DENSE_TFLOPS = (291, 363, 363)
DENSE_SHARE = 0.9
PARITY = 1e-5
MEMORY_GRID, MEMORY = 128, 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pass of one layer. `ms` names all contestants that ran; "bwd" is the difference of the other two passes."""

    kind: str
    text_len: int
    grid: int
    batch: int
    heads: int
    head_dim: int
    dtype: str
    pass_: str
    ms: dict[str, float]
    spread: dict[str, float]
    """Distance between the quartiles of the timed runs, over their median; of "bwd", empty."""
    tflops: float
    """Ours, counting the pairs that the mask allows."""
    share: float
    """The roof's time over ours."""
    error: float
    gradient_error: float

    def ratio(self, group: str) -> float | None:
        """How many times ours the fastest of a group takes; None where none ran."""
        times = [ms for name, ms in self.ms.items() if name.partition("/")[0] == group]
        return min(times) / self.ms["ours"] if times else None

    @property
    def label(self) -> str:
        return f"{self.kind} {self.grid}x{self.grid} D={self.head_dim} {self.dtype} {self.pass_}"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Peak memory of one pass, inputs included, over q, k, v and o."""

    kind: str
    text_len: int
    grid: int
    head_dim: int
    dtype: str
    pass_: str
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    what: str
    goal: float
    found: float | None
    """None: there was nothing to measure it against."""
    at_most: bool = False

    @property
    def met(self) -> bool:
        if self.found is None:
            return False
        return self.found <= self.goal if self.at_most else self.found >= self.goal

    def __str__(self) -> str:
        word = "met" if self.met else "not measured" if self.found is None else "MISSED"
        found = "" if self.found is None else f"{self.found:.3g}, "
        return f"{word:<13}{self.what}: {found}goal {'at most' if self.at_most else 'at least'} {self.goal:g}"


def print_verdicts(judged: Sequence[Verdict]) -> None:
    print(f"goals: {sum(verdict.met for verdict in judged)} of {len(judged)} met")
    for verdict in judged:
        print(f"  {verdict}")


def verdicts(rows: Sequence[Row], memory: Sequence[Memory], device: str, hardware: str) -> list[Verdict]:
    """The goals that there are for what was measured on "cpu" or "cuda"."""
    rows = [row for row in rows if row.text_len == TEXT_LEN and row.grid in GRIDS]
    found = []
    for row in rows:
        found += _ratios(row, GPU_RATIOS if device.startswith("cuda") else CPU_RATIOS)
        if device.startswith("cuda"):
            found += [*_shares(row), *_dense(row, hardware)]
        else:
            found += _parity(row)
    return [*found, *_memory(memory)]


def _ratios(row: Row, goals: dict[tuple[str, tuple[str, ...], str], tuple[float, ...]]) -> Iterator[Verdict]:
    for (kind, passes, group), at_grids in goals.items():
        # CPUs' goals end with the first grids.
        goal = dict(zip(GRIDS[: len(at_grids)], at_grids, strict=True)).get(row.grid)
        if goal is not None and row.kind == kind and row.pass_ in passes:
            yield Verdict(what=f"{row.label}, times {GROUPS[group]}", goal=goal, found=row.ratio(group))


def _shares(row: Row) -> Iterator[Verdict]:
    if row.pass_ in SHARES and row.kind != "causal":
        yield Verdict(what=f"{row.label}, share of the roof", goal=SHARES[row.pass_], found=row.share)


def _dense(row: Row, hardware: str) -> Iterator[Verdict]:
    measured_there = "H100" in hardware or "H200" in hardware
    if measured_there and (row.kind, row.pass_, row.head_dim, row.dtype) == ("causal", "fwd", 64, "bfloat16"):
        goal = DENSE_SHARE * DENSE_TFLOPS[GRIDS.index(row.grid)]
        yield Verdict(what=f"{row.label}, TFLOP/s", goal=goal, found=row.tflops)


def _parity(row: Row) -> Iterator[Verdict]:
    if row.dtype == "float32" and row.pass_ == "fwd+bwd":
        worst = max(row.error, row.gradient_error)
        yield Verdict(what=f"{row.label}, error", goal=PARITY, found=worst, at_most=True)


def _memory(memory: Sequence[Memory]) -> Iterator[Verdict]:
    for m in memory:
        if (m.kind, m.text_len, m.grid) == ("row", TEXT_LEN, MEMORY_GRID):
            what = f"row {m.grid}x{m.grid} D={m.head_dim} {m.dtype} {m.pass_}, peak memory over q, k, v and o"
            yield Verdict(what=what, goal=MEMORY, found=m.ratio, at_most=True)
