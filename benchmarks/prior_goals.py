"""The goals of benchmarks/sampling.py and training.py, and how what was measured is held to them."""

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.goals import Verdict
from benchmarks.samplers import GUIDED, OURS, PEER_DTYPES
from benchmarks.sampling_rows import Row

# (what ours are held against, names of samplers.py of which the fastest counts, least ratio of the tokens a second)
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


def sampling_verdicts(rows: Sequence[Row], device: str) -> list[Verdict]:
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


def _sampling_ratios(of: Mapping[tuple[str, str], Row], dtype: str, goals: Sequence[Ratio]) -> Iterator[Verdict]:
    for whose, names, goal in goals:
        if dtype in PEER_DTYPES:
            rates = [of[name, dtype].tokens_per_s for name in names if (name, dtype) in of]
            found = of[OURS, dtype].tokens_per_s / max(rates) if rates else None
            yield Verdict(what=f"{dtype}, times {whose}", goal=goal, found=found)
