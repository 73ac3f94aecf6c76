"""What does attention gain that only touches the keys it needs, over masked and dense, and how near is it to its roof?

Times `kernels.attention` (on a CPU impl="structured", on a CUDA device impl="triton") in turn with its competitors:
PyTorch's attention with the same mask as a bool tensor; dense causal (which computes something else: it is the price
of no sparsity at all), on a GPU by the flash and the cuDNN backend; and on a GPU compiled FlexAttention under the same
rule (contestants.py). Outputs and gradients of each are held against the formula in float64 first (gate.py): wrong
ones of ours end the run, wrong ones of another's are listed as absent, like what does not run.

    python -m benchmarks.attention                          # CPU: the paper's layer and the 64x64 grid
    python -m benchmarks.attention --quick                  # one small layer, seconds
    python -m benchmarks.attention --grids 32 --batch 2 --kinds row --dtypes bfloat16
    python -m benchmarks.attention --device cuda            # grids of 32, 64 and 128, head dims of 64 and 128

Medians after a warm-up; forward, forward with backward, and backward alone as their difference. On a busy machine,
`--clock cpu` with one thread (OMP_NUM_THREADS=1) counts only the time that this process computes. The share is that of
the roof (roof.py), whose two rates are measured first. Then memory (memory.py), and which goals are met (goals.py). The
last line is JSON, and `--out` writes the same to a file.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # so that `python benchmarks/attention.py` finds the packages too

import cli
from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.contestants import OURS, line_up
from benchmarks.goals import GROUPS, MEMORY_GRID, Memory, Row, print_verdicts, verdicts
from benchmarks.layer import DTYPES, TIMED, Case, admit, measure, memory_ratio
from benchmarks.record import circumstances, hardware, rounded
from benchmarks.roof import ORDERS, count, fewest_blocks
from benchmarks.timing import Clock, make_clock
from kernels.patterns import KINDS, Pattern
from whole_files import write_object

POSITIONS = 2**16  # of a batch on a GPU: enough to fill it, whatever the length


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.manual_seed(0)
    clock = make_clock(args.clock, args.device)
    print(f"{hardware(args.device)}, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}")
    print(f"torch {torch.__version__}, {args.clock} time")
    ceilings = {dtype: measure_ceilings(args.device, DTYPES[dtype], clock, quick=args.quick) for dtype in args.dtypes}
    for dtype, rates in ceilings.items():
        print(f"{dtype}: {rates.flops / 1e12:.3g} TFLOP/s of products, {rates.bytes / 1e9:.3g} GB/s of copies")
    rows, absent = run_all(args, clock, ceilings)
    memory = measure_memory(args)
    report(args, rows, absent, memory, ceilings)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(prog="python -m benchmarks.attention", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a 16x16 grid, 64 text tokens, 5 repeats, one head dim")
    parser.add_argument("--grids", type=int, nargs="+", help="sides of the image grid; default 32 64, on a GPU 128 too")
    parser.add_argument("--text-len", type=int, default=256)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="default row column conv, on a GPU causal too")
    parser.add_argument("--kernel", type=int, default=11, help="side of the conv window")
    parser.add_argument("--batch", type=int, help=f"default 1, on a GPU as many as have {POSITIONS:,} positions")
    parser.add_argument("--heads", type=int, help="default 8, on a GPU 16")
    parser.add_argument("--head-dims", type=int, nargs="+", help="default 64, on a GPU 128 too")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default float32, on a GPU bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, help="timed runs of each, after 2 of warm-up; default 11, on a GPU 51")
    parser.add_argument("--clock", choices=("wall", "cpu", "events"), help="default wall, on a GPU events")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args(argv)
    if args.device.startswith("cuda"):
        if not torch.cuda.is_available():
            parser.error(f"--device is {args.device}, but PyTorch {torch.__version__} finds no CUDA device here")
        torch.cuda.set_device(torch.device(args.device).index or 0)
    return with_defaults(args)


def with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """What was not asked for: on a CPU one layer as it trains there, on a GPU enough to fill it."""
    on_gpu = args.device.startswith("cuda")
    defaults = {
        "grids": [32, 64, 128] if on_gpu else [32, 64],
        "kinds": ["row", "column", "conv", "causal"] if on_gpu else ["row", "column", "conv"],
        "heads": 16 if on_gpu else 8,
        "head_dims": [64, 128] if on_gpu else [64],
        "dtypes": ["bfloat16"] if on_gpu else ["float32"],
        "repeats": 51 if on_gpu else 11,
        "clock": "events" if on_gpu else "wall",
    }
    if args.quick:
        args.grids, args.text_len, args.repeats, args.head_dims = [16], 64, 5, [64]
    for name, default in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    return args


def timed_cases(args: argparse.Namespace) -> Iterator[Case]:
    return cases(args, args.grids, args.kinds)


def cases(args: argparse.Namespace, grids: Sequence[int], kinds: Sequence[str]) -> Iterator[Case]:
    for dtype, head_dim, grid, kind in product(args.dtypes, args.head_dims, grids, kinds):
        pattern = Pattern(kind, args.text_len, grid, grid, args.kernel)
        fitting = max(1, POSITIONS // pattern.seq_len) if args.device.startswith("cuda") else 1
        yield Case(
            pattern=pattern,
            batch=args.batch or fitting,
            heads=args.heads,
            head_dim=head_dim,
            dtype=dtype,
            device=args.device,
        )


def run_all(
    args: argparse.Namespace, clock: Clock, ceilings: dict[str, Ceilings]
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Rows of all cases, printed as they come, and who was absent from which."""
    print_header()
    rows, absent = [], []
    for case in timed_cases(args):
        torch.compiler.reset()  # or compiled contestants of earlier cases count towards what may be compiled
        inputs = case.inputs()
        admitted, missing = admit(inputs, line_up(case.pattern, case.device))
        new = measure(case, inputs, admitted, clock, ceilings[case.dtype], args.repeats)
        for row in new:
            print_row(row)
        for name, why in missing.items():
            print(f"    absent: {name} ({why})", flush=True)
        rows += new
        absent += [case.key | {"contestant": name, "why": why} for name, why in missing.items()]
    return rows, absent


def print_header() -> None:
    columns = ("ours ms", "TFLOP/s", "share", *(f"x {group}" for group in GROUPS))
    print(f"{'mask':<8}{'T':>6}{'D':>5}  {'dtype':<9}{'pass':>8}" + "".join(f"{column:>11}" for column in columns))


def print_row(row: Row) -> None:
    seq_len = row.text_len + row.grid**2
    numbers = (row.ms[OURS], row.tflops, row.share, *map(row.ratio, GROUPS))
    cells = ("-" if x is None else f"{x:.3g}" for x in numbers)
    head = f"{row.kind:<8}{seq_len:>6}{row.head_dim:>5}  {row.dtype:<9}{row.pass_:>8}"
    print(head + "".join(f"{cell:>11}" for cell in cells), flush=True)


def measure_memory(args: argparse.Namespace) -> list[Memory]:
    """Ours in all layers that were timed, and in a row layer of the grid that has a goal."""
    layers = list(timed_cases(args))
    if not args.quick and not (MEMORY_GRID in args.grids and "row" in args.kinds):
        layers += cases(args, [MEMORY_GRID], ["row"])
    print("peak memory over q, k, v and o")
    memory = []
    for case, pass_ in product(layers, TIMED):
        ours = line_up(case.pattern, case.device)[0].make()
        memory.append(Memory(**case.key, pass_=pass_, ratio=memory_ratio(ours, case.inputs(), pass_)))
        m = memory[-1]
        print(f"{m.kind:<8}{case.pattern.seq_len:>6}{m.head_dim:>5}  {m.dtype:<9}{pass_:>8}{m.ratio:>11.2f}")
    return memory


def report(
    args: argparse.Namespace,
    rows: Sequence[Row],
    absent: Sequence[dict[str, Any]],
    memory: Sequence[Memory],
    ceilings: dict[str, Ceilings],
) -> None:
    judged = verdicts(rows, memory, args.device, hardware(args.device))
    if judged:
        print_verdicts(judged)
    else:
        print("no goal is set for these layers")
    result = {
        "benchmark": "attention",
        **circumstances(args.device),
        "settings": {name: getattr(args, name) for name in ("text_len", "kernel", "clock", "repeats")},
        "ceilings": {dtype: rates._asdict() for dtype, rates in ceilings.items()},
        "masks": [counts_of(pattern) for pattern in dict.fromkeys(case.pattern for case in timed_cases(args))],
        "rows": [asdict(row) for row in rows],
        "absent": absent,
        "memory": [asdict(m) for m in memory],
        "goals": [asdict(verdict) | {"met": verdict.met} for verdict in judged],
    }
    result = rounded(result)
    if args.out is not None:
        write_object(args.out, result)
    print(json.dumps(result))


def counts_of(pattern: Pattern) -> dict[str, Any]:
    """A mask's pairs and its blocks of 64x64 in the orders that suit it."""
    counts = {order: count(pattern, order) for order in ORDERS[pattern.kind]}
    return {
        "kind": pattern.kind,
        "seq_len": pattern.seq_len,
        "pairs": next(iter(counts.values())).pairs,
        "blocks": {order: counted.blocks for order, counted in counts.items()},
        "roof_blocks": fewest_blocks(pattern),
    }


if __name__ == "__main__":
    cli.run(main)
