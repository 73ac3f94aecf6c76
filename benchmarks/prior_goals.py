"""The goals of benchmarks/sampling.py and training.py, and how what was measured is held to them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from benchmarks import sampling_rows, training_rows
from benchmarks.goals import Verdict
from benchmarks.samplers import GUIDED, OURS, PEER_DTYPES

# (what ours are held against, names of contestants of which the fastest counts, least ratio of the tokens a second)
Ratio = tuple[str, tuple[str, ...], float]
LLAMAS = ("Llama", "Llama, static cache", "Llama, static cache, compiled")
CPU_SAMPLING: tuple[Ratio, ...] = (
    ("Hugging Face's generate() as it comes", LLAMAS[:1], 5),
    ("the fastest of Hugging Face's", LLAMAS, 5),
    ("DALLE-pytorch's generate_images()", ("DALLE-pytorch",), 100),
    ("whole passes of our own", ("ours, uncached",), 20),
)
GPU_SAMPLING: tuple[Ratio, ...] = (("Hugging Face's generate(), static cache, compiled", LLAMAS[2:], 3),)
BANDWIDTH_SHARE = 0.75
GUIDANCE_COST = 1.15
TRAINING: tuple[Ratio, ...] = (
    ("the faster of Hugging Face's with our vocabularies", ("Llama", "Llama, compiled"), 2),
    ("Hugging Face's with the codebook alone", ("Llama, codes alone",), 2),
    ("DALLE-pytorch", ("DALLE-pytorch",), 5),
)
CPU_MFU, GPU_MFU = 0.5, 0.55
LIGHTNINGS_SHARE = 0.02


def sampling_verdicts(rows: Sequence[sampling_rows.Row], device: str) -> list[Verdict]:
    """At batch 1, in each dtype of ours; ratios are to the others in the same dtype."""
    of = {(row.name, row.dtype): row for row in rows if row.batch == 1}
    found = []
    for dtype in dict.fromkeys(dtype for name, dtype in of if name == OURS):
        ours = of[OURS, dtype]
        found += _sampling_ratios(of, dtype, GPU_SAMPLING if device.startswith("cuda") else CPU_SAMPLING)
        found.append(Verdict(what=f"{dtype}, share of the memory's rate", goal=BANDWIDTH_SHARE, found=ours.share))
        cost = of[GUIDED, dtype].total_s / ours.total_s if (GUIDED, dtype) in of else None
        found.append(Verdict(what=f"{dtype}, guidance over none", goal=GUIDANCE_COST, found=cost, at_most=True))
    return found


def _sampling_ratios(
    of: Mapping[tuple[str, str], sampling_rows.Row], dtype: str, goals: Sequence[Ratio]
) -> Iterator[Verdict]:
    for whose, names, goal in goals:
        if dtype in PEER_DTYPES:
            rates = [of[name, dtype].tokens_per_s for name in names if (name, dtype) in of]
            found = of[OURS, dtype].tokens_per_s / max(rates) if rates else None
            yield Verdict(what=f"{dtype}, times {whose}", goal=goal, found=found)


class Overhead(NamedTuple):
    """Of Lightning's Trainer over a bare loop."""

    dtype: str
    bare_s: float
    lightning_s: float
    share: float
    """Median over rounds in turn of the ratio of both, less 1."""


def training_verdicts(rows: Sequence[training_rows.Row], overheads: Sequence[Overhead], device: str) -> list[Verdict]:
    """In each dtype: the faster of ours against the others in the same one. Ratios are goals on CPUs alone."""
    of = {(row.name, row.dtype): row for row in rows}
    on_gpu, found = device.startswith("cuda"), []
    for dtype in dict.fromkeys(row.dtype for row in rows):
        ours = [row for row in rows if row.dtype == dtype and row.name.startswith(OURS)]
        if not ours:
            continue
        best = max(ours, key=lambda row: row.tokens_per_s)
        for whose, names, goal in () if on_gpu else TRAINING:
            rates = [of[name, dtype].tokens_per_s for name in names if (name, dtype) in of]
            ratio = best.tokens_per_s / max(rates) if rates else None
            found.append(Verdict(what=f"{dtype}, times {whose}", goal=goal, found=ratio))
        found.append(Verdict(what=f"{dtype}, MFU", goal=GPU_MFU if on_gpu else CPU_MFU, found=best.mfu))
    for each in overheads:
        what = f"{each.dtype}, what Lightning adds to a bare loop's step"
        found.append(Verdict(what=what, goal=LIGHTNINGS_SHARE, found=each.share, at_most=True))
    return found
