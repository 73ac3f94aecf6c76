"""How much faster than a matrix of all distances or logits is finding the nearest code, how near is it to its roof?

    codes    nearest of K codes to N vectors of D values, against torch.cdist with argmin, and against the products of
             all pairs with max or argmax
    logits   the arg-max of a 1x1 convolution's K logits on a feature map, against convolution and argmax
    encode   DiscreteVAE.encode of 256x256 pictures, against the same with logits

Indices are held against float64 first; there is no timing of wrong ones. All run in turn, so that whatever else the
machine does hits all alike; medians after a warm-up. "x ours" is a contestant's time over ours: above 1, ours is the
faster. "MiB" is the most that is allocated at a time beside the inputs.

"roof" is the share of the roof, the roof's time over a contestant's. The roof is the longer of two times: 2 N K D FLOPs
at the rate of a large matrix product of --dtype, and the bytes of x, codes and bias in and indices (int64) out, each
once, at the rate of a large copy. Both rates are measured in the same run (ceilings.py). "GFLOP" and "MB" (10^6 bytes)
are these two counts. The N x K scores are never moved; "scores MB" is what moving them would add, written once and read
once in --dtype, unless a cache holds them. Comparing them is not counted: the fewer values a vector has, the more that
leaves out. A share above 100 % means that the products were made by narrower units than PyTorch's of that dtype: of
float32, bfloat16's on some CPUs (kernels/nearest_blocked.py), tf32's on GPUs (kernels/nearest_triton.py). encode has no
roof: its time is the encoder's as well, and the arg-max in it is that of logits.

    python -m benchmarks.nearest                            # 1024 to 32768 vectors, 8192 codes
    python -m benchmarks.nearest --quick                    # seconds: that it runs; says nothing about speed
    python -m benchmarks.nearest --device cuda --dtype bfloat16

The last line is JSON, and `--out` writes the same to a file.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # so that `python benchmarks/nearest.py` finds the packages

from benchmarks.ceilings import Ceilings, Work, measure_ceilings
from benchmarks.memory import peak_bytes
from benchmarks.record import circumstances, hardware, rounded
from benchmarks.timing import Clock, Run, make_clock, time_in_turn
from kernels.nearest import argmax_linear, argmax_reference, nearest_code
from vqvae.config import DiscreteVAEConfig
from vqvae.model import DiscreteVAE
from vqvae.pixels import map_pixels
from whole_files import write_object

CHECKED_ROWS = 512
# By how much the chosen score may fall short, over the sum of the products' sizes: float32's rounding.
TOLERANCE = 2.0**-21
TASKS = ("codes", "logits", "encode")
COUNTS = {"flops": 1e9, "bytes": 1e6, "scores_bytes": 1e6}  # of a row, and the unit each is printed in


class Task(NamedTuple):
    """Contestants by name, the first of them ours; x (N, D), weight and bias are what has to be found the best of."""

    name: str
    runs: Mapping[str, Run]
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    work: Work | None
    """The least that it takes; None where the time is not the arg-max's alone."""


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.manual_seed(0)
    clock = make_clock(args.clock, args.device)
    print(f"{hardware(args.device)}, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}")
    print(f"torch {torch.__version__}, {args.dtype}, K={args.codes}, {args.clock} time")
    print("x ours: time over ours; above 1, ours is the faster" + ", but --quick is too small to tell" * args.quick)
    ceilings = measure_ceilings(args.device, getattr(torch, args.dtype), clock, quick=args.quick)
    print(f"{ceilings.flops / 1e12:.3g} TFLOP/s of products, {ceilings.bytes / 1e9:.3g} GB/s of copies")
    counts = f"{'GFLOP':>9}{'MB':>9}{'scores MB':>11}"
    print(f"{'task':<8}{'N':>7}{'D':>6}{counts}  {'':<16}{'ms':>10}{'x ours':>9}{'roof':>9}{'MiB':>9}")
    rows = []
    with torch.no_grad():
        for task in tasks(args):
            rows.append(measure(task, clock, ceilings, args))
            print_row(rows[-1])
    report(args, rows, ceilings)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nearest", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 vectors, 500 codes, 3 repeats: no measure of speed")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 8192, 32768], help="N, of codes")
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 16, 32, 256], help="D, of codes")
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 2048], help="D, of logits: a dVAE's last group")
    parser.add_argument("--n-hid", type=int, default=64, help="first width of the dVAE of encode (8 n_hid is the last)")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4, help="pictures at a time, of logits and encode")
    parser.add_argument("--codes", type=int, default=8192, help="K")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of vectors and codes"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each, after 2 of warm-up")
    parser.add_argument("--clock", choices=("wall", "cpu", "events"), help="default: events on CUDA devices, else wall")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args(argv)
    if args.device.startswith("cuda"):
        if not torch.cuda.is_available():
            parser.error(f"--device is {args.device}, but PyTorch {torch.__version__} finds no CUDA device here")
        torch.cuda.set_device(torch.device(args.device).index or 0)  # which takes no "cuda" without an index
    args.clock = args.clock or ("events" if args.device.startswith("cuda") else "wall")
    if args.quick:
        args.rows, args.dims, args.widths, args.codes, args.repeats = [100], [8, 64], [32], 500, 3
        args.n_hid, args.image_size, args.batch = 8, 32, 2
    return args


def tasks(args: argparse.Namespace) -> Iterator[Task]:
    if "codes" in args.tasks:
        yield from (codes_task(n_rows, dim, args) for dim in args.dims for n_rows in args.rows)
    if "logits" in args.tasks:
        yield from (logits_task(width, args) for width in args.widths)
    if "encode" in args.tasks:
        yield encode_task(args)


def codes_task(n_rows: int, dim: int, args: argparse.Namespace) -> Task:
    dtype = getattr(torch, args.dtype)
    x = torch.randn(n_rows, dim, device=args.device, dtype=dtype)
    codebook = torch.randn(args.codes, dim, device=args.device, dtype=dtype)
    bias = -0.5 * codebook.float().square().sum(dim=1)
    runs = {
        "ours": lambda: nearest_code(x, codebook),
        "cdist, argmin": lambda: torch.cdist(x.float(), codebook.float()).argmin(dim=1),
        "mm, max": lambda: torch.addmm(bias.to(dtype), x, codebook.t()).max(dim=1).indices,
        "mm, argmax": lambda: torch.addmm(bias.to(dtype), x, codebook.t()).argmax(dim=1),
    }
    return Task("codes", runs, x, codebook, bias, argmax_work(x, codebook, bias))


def logits_task(width: int, args: argparse.Namespace) -> Task:
    side, dtype = args.image_size // 8, getattr(torch, args.dtype)
    features = torch.randn(args.batch, width, side, side, device=args.device, dtype=dtype)
    conv = torch.nn.Conv2d(width, args.codes, 1, device=args.device, dtype=dtype)
    weight = conv.weight.flatten(1)
    runs = {
        "ours": lambda: argmax_linear(features.movedim(1, -1), weight, conv.bias),
        "conv, argmax": lambda: conv(features).argmax(dim=1),
    }
    x = features.movedim(1, -1).flatten(0, 2)
    return Task("logits", runs, x, weight, conv.bias, argmax_work(x, weight, conv.bias))


def encode_task(args: argparse.Namespace) -> Task:
    config = DiscreteVAEConfig(image_size=args.image_size, n_hid=args.n_hid, codebook_size=args.codes)
    model = DiscreteVAE(config).eval().to(args.device, getattr(torch, args.dtype))
    images = torch.rand(
        args.batch, 3, args.image_size, args.image_size, device=args.device, dtype=getattr(torch, args.dtype)
    )
    features = model.encoder.features(map_pixels(images))
    conv = model.encoder.output_conv
    runs = {
        "ours": lambda: model.encode(images),
        "with logits": lambda: model.quantizer.hard_indices(model.encode_vectors(images)),
    }
    return Task("encode", runs, features.movedim(1, -1).flatten(0, 2), conv.weight.flatten(1), conv.bias, work=None)


def argmax_work(x: Tensor, weight: Tensor, bias: Tensor) -> Work:
    """All products, and x (N, D), weight (K, D), bias (K,) and indices (N,) moved once.

    The bias of codes, -|c|^2 / 2, counts as given: it is the same for all x.
    """
    return Work(2 * len(x) * weight.numel(), x.nbytes + weight.nbytes + bias.nbytes + len(x) * torch.int64.itemsize)


def scores_bytes(x: Tensor, weight: Tensor) -> int:
    """All scores of x (N, D) and weight (K, D), written and read, in the dtype of x."""
    return 2 * len(x) * len(weight) * x.itemsize


def measure(task: Task, clock: Clock, ceilings: Ceilings, args: argparse.Namespace) -> dict[str, Any]:
    equal = check(task)
    timings = time_in_turn(task.runs, clock, repeats=args.repeats)
    ours = timings["ours"].ms
    roof_ms = task.work and ceilings.ms(task.work)
    contestants = {
        name: {
            "ms": timing.ms,
            "spread": timing.spread,
            "ratio": timing.ms / ours,
            "share": roof_ms and roof_ms / timing.ms,
            "mib": peak_bytes(task.runs[name], task.x.device) / 2**20,
        }
        for name, timing in timings.items()
    }
    return {
        "task": task.name,
        "n_rows": len(task.x),
        "dim": task.x.shape[1],
        "equal_to_float64": equal,
        "flops": task.work and task.work.flops,
        "bytes": task.work and task.work.bytes,
        "scores_bytes": task.work and scores_bytes(task.x, task.weight),
        "roof_ms": roof_ms,
        "contestants": contestants,
    }


def check(task: Task) -> float:
    """Share of the first rows whose index is float64's; exits where another one is off by more than rounding."""
    x, weight = task.x[:CHECKED_ROWS], task.weight
    found = task.runs["ours"]().flatten()[:CHECKED_ROWS]
    expected = argmax_reference(x, weight, task.bias)
    scores = x.double() @ weight.double().t()
    sizes = x.double().abs() @ weight.double().abs().t()
    if task.bias is not None:
        scores, sizes = scores + task.bias.double(), sizes + task.bias.double().abs()
    chosen, best = (scores.gather(1, indices[:, None]) for indices in (found, expected))
    if ((best - chosen) > TOLERANCE * sizes.amax(dim=1, keepdim=True)).any():
        sys.exit(f"{task.name}, N={len(task.x)}, D={x.shape[1]}: indices are wrong; nothing is timed")
    return float((found == expected).double().mean())


def print_row(row: dict[str, Any]) -> None:
    counted = ("-" if row[n] is None else f"{row[n] / unit:.4g}" for n, unit in COUNTS.items())
    head = f"{row['task']:<8}{row['n_rows']:>7}{row['dim']:>6}" + "{:>9}{:>9}{:>11}".format(*counted)
    for name, figures in row["contestants"].items():
        share = "-" if figures["share"] is None else f"{figures['share']:.1%}"
        numbers = f"{figures['ms']:>10.2f}{figures['ratio']:>9.2f}{share:>9}{figures['mib']:>9.1f}"
        print(f"{head}  {name:<16}{numbers}", flush=True)
        head = " " * len(head)


def report(args: argparse.Namespace, rows: Sequence[dict[str, Any]], ceilings: Ceilings) -> None:
    settings = {
        name: getattr(args, name) for name in ("codes", "dtype", "clock", "repeats", "batch", "n_hid", "image_size")
    }
    result = {
        "benchmark": "nearest",
        **circumstances(args.device),
        "settings": settings,
        "ceilings": rounded({args.dtype: ceilings._asdict()}),
        "rows": rounded(rows),
    }
    if args.out is not None:
        write_object(args.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
