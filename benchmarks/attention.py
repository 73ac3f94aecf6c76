"""How much faster than masked attention is attention that only touches the keys it needs?

Times `kernels.attention` against PyTorch's scaled_dot_product_attention with the same mask as a bool tensor, and
against its dense causal path (which computes something else: it is the price of no sparsity at all). Outputs and
gradients are held against the explicit reference first; there is no timing of wrong results.

    python -m benchmarks.attention                          # the paper's layer and the 64x64 grid
    python -m benchmarks.attention --quick                  # one small layer, seconds
    python -m benchmarks.attention --grids 32 --batch 2 --kinds row --dtype bfloat16

The three are timed in turn, so that whatever else the machine does hits all alike; medians after a warm-up. On a busy
machine, `--clock cpu` with one thread (OMP_NUM_THREADS=1) counts only the time that this process computes. The last
line is JSON, and `--out` writes the same to a file.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # so that `python benchmarks/attention.py` finds the packages too

from benchmarks.record import circumstances, hardware, round_to_4_digits, write_json
from kernels.attention import attention
from kernels.patterns import KINDS, Pattern, dense_mask
from kernels.reference import attention_reference

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
# Largest error allowed, relative to the largest value of the exact result.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; times in milliseconds, errors relative to the largest value of the exact result."""

    kind: str
    seq_len: int
    pass_: str
    structured_ms: float
    masked_ms: float
    causal_ms: float
    masked_ratio: float
    causal_ratio: float
    error: float
    gradient_error: float


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.manual_seed(0)
    print(f"{hardware(args.device)}, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}")
    print(
        f"torch {torch.__version__}, {args.dtype}, B={args.batch} H={args.heads} D={args.head_dim}, {args.clock} time"
    )
    columns = ("ours ms", "masked ms", "causal ms", "x masked", "x causal")
    print(f"{'mask':<8}{'T':>6}{'pass':>10}" + "".join(f"{column:>11}" for column in columns))
    rows = []
    for grid in args.grids:
        for kind in args.kinds:
            pattern = Pattern(kind, args.text_len, grid, grid, args.kernel)
            shape = (args.batch, args.heads, pattern.seq_len, args.head_dim)
            for row in measure(pattern, shape, args):
                rows.append(row)
                cells = (row.structured_ms, row.masked_ms, row.causal_ms, row.masked_ratio, row.causal_ratio)
                print(
                    f"{row.kind:<8}{row.seq_len:>6}{row.pass_:>10}" + "".join(f"{x:>11.2f}" for x in cells), flush=True
                )
    report(args, rows)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a 16x16 grid, 64 text tokens, 5 repeats")
    parser.add_argument("--grids", type=int, nargs="+", default=[32, 64], help="sides of the image grid")
    parser.add_argument("--text-len", type=int, default=256)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["row", "column", "conv"])
    parser.add_argument("--kernel", type=int, default=11, help="side of the conv window")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument(
        "--dtype", choices=[str(dtype).removeprefix("torch.") for dtype in TOLERANCES], default="float32"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=11, help="timed runs of each, after 2 of warm-up")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args(argv)
    if args.clock == "cpu" and args.device != "cpu":
        parser.error(f"--clock cpu cannot time work on {args.device}")
    if args.quick:
        args.grids, args.text_len, args.repeats = [16], 64, 5
    return args


def measure(pattern: Pattern, shape: tuple[int, int, int, int], args: argparse.Namespace) -> list[Row]:
    """Forward, and forward with backward, of one mask at one shape (B, H, T, D)."""
    dtype, device = getattr(torch, args.dtype), args.device
    error, gradient_error = check(pattern, shape, dtype, device)
    q, k, v = (torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    do = torch.randn(shape, dtype=dtype, device=device)
    mask = dense_mask(pattern, device)
    contestants: list[Attention] = [
        lambda q, k, v: attention(q, k, v, pattern),
        lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask),
        lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True),
    ]

    def forward(function: Attention) -> None:
        with torch.no_grad():
            function(q, k, v)

    def forward_backward(function: Attention) -> None:
        torch.autograd.grad(function(q, k, v), (q, k, v), do)

    rows = []
    for name, run in (("fwd", forward), ("fwd+bwd", forward_backward)):
        ours, masked, causal = time_in_turn([lambda f=f, run=run: run(f) for f in contestants], args)
        rows.append(
            Row(
                kind=pattern.kind,
                seq_len=pattern.seq_len,
                pass_=name,
                structured_ms=ours,
                masked_ms=masked,
                causal_ms=causal,
                masked_ratio=masked / ours,
                causal_ratio=causal / ours,
                error=error,
                gradient_error=gradient_error,
            )
        )
    return rows


def check(pattern: Pattern, shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Largest error of the output and of the gradients on one head; exits where either is out of tolerance."""
    q, k, v = (torch.randn(1, 1, *shape[2:], dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    do = torch.randn(1, 1, *shape[2:], dtype=dtype, device=device)
    exact_inputs = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = attention_reference(*exact_inputs, pattern)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, do.double())
    found = attention(q, k, v, pattern)
    gradients = torch.autograd.grad(found, (q, k, v), do)
    error = relative_error(found, exact)
    gradient_error = max(relative_error(x, y) for x, y in zip(gradients, exact_gradients, strict=True))
    if max(error, gradient_error) > TOLERANCES[dtype]:
        sys.exit(
            f"{pattern}: errors {error:.1e}, {gradient_error:.1e} exceed {TOLERANCES[dtype]:.0e}; nothing is timed"
        )
    return error, gradient_error


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().double() - exact.detach()).abs().max() / exact.detach().abs().max())


def time_in_turn(runs: Sequence[Callable[[], None]], args: argparse.Namespace) -> list[float]:
    """Median milliseconds of each."""
    clock = time.process_time if args.clock == "cpu" else time.perf_counter

    def once(run: Callable[[], None]) -> float:
        start = clock()
        run()
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        return 1e3 * (clock() - start)

    rounds = [[once(run) for run in runs] for _ in range(2 + args.repeats)]
    return [statistics.median(times) for times in zip(*rounds[2:], strict=True)]


def report(args: argparse.Namespace, rows: Sequence[Row]) -> None:
    settings = {
        name: getattr(args, name)
        for name in ("batch", "heads", "head_dim", "text_len", "kernel", "dtype", "clock", "repeats")
    }
    result = {
        "benchmark": "attention",
        **circumstances(args.device),
        "settings": settings,
        "rows": [{name: round_to_4_digits(value) for name, value in asdict(row).items()} for row in rows],
    }
    if args.out is not None:
        write_json(args.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
