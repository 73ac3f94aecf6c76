"""How fast are pictures' tokens drawn, beside others in the same run, and how near is that to the memory's rate?

    python -m benchmarks.sampling --out benchmarks/results/sampling-cpu.json
    python -m benchmarks.sampling --quick                   # a few minutes: that it runs; says nothing about speed
    python -m benchmarks.sampling --batch 1 2 8 --dtypes bfloat16 --only ours
    python -m benchmarks.sampling --device cuda

Pictures of 32x32 codes after captions of 256 tokens, by priors of 8 layers of 512 with random weights: ours compiled,
without and with guidance, not compiled, and by whole passes instead of a cache; a Llama of Hugging Face's transformers
by its `generate`, as it comes, with a static cache, and with that compiled; DALLE-pytorch. What takes a pass a token is
estimated from three lengths, what takes equal steps from the first 256. Tokens that ours draw, by chance and greedily,
are held against whole passes, and wrong ones end the run. Each contestant has a process of its own, which in the end
measures the rate at which memory is read, on as many threads: the share is the rate at which a step reads its weights
and visible keys, over that one. Medians after a warm-up. Then which goals are met; the last line is JSON, and `--out`
writes the same to a file.
"""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import cli
from benchmarks.goals import print_verdicts
from benchmarks.isolated import isolated
from benchmarks.prior_contestants import QUICK, Sizes
from benchmarks.prior_goals import sampling_verdicts
from benchmarks.record import circumstances, hardware, rounded
from benchmarks.samplers import DTYPES, EAGER, NAMES, OURS, PEER_DTYPES
from benchmarks.sampling_rows import Gate, Job, Row, measure
from whole_files import write_object


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    print(f"{hardware(args.device)}, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}")
    print_header()
    rows: list[Row] = []
    gates: list[Gate] = []
    absent: list[dict[str, str]] = []
    for job in jobs(args):
        try:
            found, agreed = isolated(measure, job)
        except Exception as error:  # one of others may not ruin the run
            if job.name in (OURS, EAGER):
                raise
            absent.append({"name": job.name, "dtype": job.dtype, "why": cli.one_line(error)})
            print(f"    absent: {job.name}, {job.dtype} ({absent[-1]['why']})", flush=True)
            continue
        rows += found
        gates += agreed
        for row in found:
            print_row(row, rows)
    report(args, rows, gates, absent)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(prog="python -m benchmarks.sampling", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", help="pictures at a time; default 1 4, with --quick 1")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="of the weights; default all, with --quick float32")
    parser.add_argument("--only", help="contestants that have this in their name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=2, help="pictures that ours are timed on")
    parser.add_argument("--peer-repeats", type=int, default=1, help="the same for the others")
    parser.add_argument("--quick", action="store_true", help="small models and pictures: no measure of speed")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device is {args.device}, but PyTorch {torch.__version__} finds no CUDA device here")
    args.batch = args.batch or ([1] if args.quick else [1, 4])
    args.dtypes = args.dtypes or (["float32"] if args.quick else list(DTYPES))
    if min([*args.batch, args.repeats, args.peer_repeats]) < 1:
        parser.error("--batch, --repeats and --peer-repeats are to be at least 1")
    return args


def jobs(args: argparse.Namespace) -> Iterator[Job]:
    for name in NAMES:
        for dtype in args.dtypes:
            if (args.only is None or args.only in name) and (name in (OURS, EAGER) or dtype in PEER_DTYPES):
                yield Job(
                    name=name,
                    dtype=dtype,
                    sizes=QUICK if args.quick else Sizes(),
                    batches=tuple(args.batch),
                    device=args.device,
                    repeats=args.repeats if name == OURS else args.peer_repeats,
                    quick=args.quick,
                )


def print_header() -> None:
    columns = ("tokens/s", "ms a step", "first ms", "GB/s", "of limit", "x ours", "peak GB")
    print(f"{'contestant':<31}{'dtype':<9}{'batch':>6}" + "".join(f"{column:>10}" for column in columns))


def print_row(row: Row, rows: Sequence[Row]) -> None:
    times = times_slower(row, rows)
    numbers = (row.tokens_per_s, row.ms_per_step, 1e3 * row.first_s, row.gb_per_s, row.share, times, row.peak_gb)
    cells = ("-" if x is None else f"{x:.0f}" if x >= 1000 else f"{x:.3g}" for x in numbers)
    text = f"{row.name:<31}{row.dtype:<9}{row.batch:>6}" + "".join(f"{cell:>10}" for cell in cells)
    print(text + ("  estimated" if row.estimated else ""), flush=True)


def times_slower(row: Row, rows: Sequence[Row]) -> float | None:
    """How many times as long as ours it takes, dtype and batch size being equal."""
    ours = [each for each in rows if (each.name, each.dtype, each.batch) == (OURS, row.dtype, row.batch)]
    return row.total_s / ours[0].total_s if ours else None


def report(
    args: argparse.Namespace,
    rows: Sequence[Row],
    gates: Sequence[Gate],
    absent: Sequence[dict[str, str]],
) -> None:
    for each in gates:
        print(f"{each.name}, {each.dtype}, batch {each.batch}: {each.equal:.2%} of the tokens as by whole passes")
    judged = sampling_verdicts(rows, args.device)
    if args.quick:
        print("--quick is no measure of speed")
    else:
        print_verdicts(judged)
    result: dict[str, Any] = {
        "benchmark": "sampling",
        **circumstances(args.device),
        "settings": {name: getattr(args, name) for name in ("batch", "dtypes", "repeats", "peer_repeats", "quick")},
        "sizes": asdict(QUICK if args.quick else Sizes()),
        "gates": [each._asdict() for each in gates],
        "rows": [
            asdict(row) | {"gb_per_s": row.gb_per_s, "share": row.share, "times_ours": times_slower(row, rows)}
            for row in rows
        ],
        "absent": list(absent),
        "goals": [asdict(verdict) | {"met": verdict.met} for verdict in judged],
    }
    result = rounded(result)
    if args.out is not None:
        write_object(args.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
