"""How fast does a prior train, beside others in the same run, and how near is that to the peak of matrix products?

    python -m benchmarks.training --out benchmarks/results/training-cpu.json
    python -m benchmarks.training --quick                   # a few minutes: that it runs; says nothing about speed
    python -m benchmarks.training --only Llama --dtypes bfloat16 --batch 4
    python -m benchmarks.training --device cuda --batch 32

Steps (forward, backward, fused AdamW) on pictures of 32x32 codes after captions of 255 tokens, by models of 8 layers of
512: ours and a Llama of Hugging Face's transformers, both as they come and compiled, that Llama with the codebook alone
as its vocabulary, and DALLE-pytorch; in float32 and, by autocast, in bfloat16. Our gradients are held against float64,
and each loss has to fall; wrong ones of ours end the run. Each contestant has a process of its own, which in the end
measures the rate of a large matrix product in its dtype: MFU is what the model's products are of that. Then Lightning's
Trainer with our PriorSystem against a bare loop, in turn. Medians after a warm-up. Then which goals are met; the last
line is JSON, and `--out` writes the same to a file.
"""

import argparse
import json
import logging
import os
import statistics
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import cli
from benchmarks.goals import print_verdicts
from benchmarks.isolated import isolated
from benchmarks.prior_contestants import QUICK, Sizes
from benchmarks.prior_goals import Overhead, training_verdicts
from benchmarks.record import circumstances, hardware, rounded
from benchmarks.samplers import PEER_DTYPES, Stopwatch
from benchmarks.trainers import LR, OURS, TRAINERS, Case
from benchmarks.training_rows import Errors, Job, Row, measure
from transformer.model import Prior
from transformer.training import OptimConfig, PriorSystem, make_optimizer
from whole_files import write_object

CLIP = 1.0
ROUNDS, STEPS = 5, 6  # of Lightning's and of the bare loop, in turn


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    print(f"{hardware(args.device)}, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}")
    print_header()
    rows: list[Row] = []
    gates: dict[str, Errors] = {}
    absent: list[dict[str, str]] = []
    for job in jobs(args):
        try:
            row, errors = isolated(measure, job)
        except Exception as error:  # one of others may not ruin the run
            if job.name == OURS:
                raise
            absent.append({"name": job.name, "dtype": job.case.dtype, "why": cli.one_line(error)})
            print(f"    absent: {job.name}, {job.case.dtype} ({absent[-1]['why']})", flush=True)
            continue
        rows.append(row)
        if errors is not None:
            gates[f"{job.name}, {job.case.dtype}"] = errors
        print_row(row, rows)
    overheads = [] if args.only and args.only not in OURS else [isolated(overhead, case) for case in cases(args)]
    report(args, rows, gates, absent, overheads)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2, help="pictures a step")
    parser.add_argument("--dtypes", nargs="+", default=list(PEER_DTYPES), choices=PEER_DTYPES)
    parser.add_argument("--only", help="contestants that have this in their name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps")
    parser.add_argument("--quick", action="store_true", help="small models and pictures: no measure of speed")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device is {args.device}, but PyTorch {torch.__version__} finds no CUDA device here")
    if min(args.batch, args.repeats) < 1:
        parser.error("--batch and --repeats are to be at least 1")
    return args


def cases(args: argparse.Namespace) -> Iterator[Case]:
    for dtype in args.dtypes:
        yield Case(sizes=QUICK if args.quick else Sizes(), batch=args.batch, dtype=dtype, device=args.device)


def jobs(args: argparse.Namespace) -> Iterator[Job]:
    for name in TRAINERS:
        for case in cases(args):
            if args.only is None or args.only in name:
                yield Job(name=name, case=case, repeats=args.repeats, quick=args.quick)


def overhead(case: Case) -> Overhead:
    """Lightning's Trainer with all that PriorSystem does in a step, against Prior's loss, clipping and AdamW alone.

    Times from the end of a step to the end of the next; the first steps of a round, which set things up, do not count.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    optim = OptimConfig(lr=LR, decay="none", warmup_steps=0)
    system = PriorSystem(case.sizes.config(), optim).to(case.device)
    bare, lightning = [], []
    for _ in range(ROUNDS):
        bare.append(statistics.median(bare_steps(system.prior, optim, case)))
        lightning.append(statistics.median(lightning_steps(system, case)))
    ratios = [with_it / without for with_it, without in zip(lightning, bare, strict=True)]
    return Overhead(case.dtype, statistics.median(bare), statistics.median(lightning), statistics.median(ratios) - 1)


def bare_steps(prior: Prior, optim: OptimConfig, case: Case) -> list[float]:
    """Seconds of each step but the first."""
    optimizer, batch = make_optimizer(prior.train(), optim), case.inputs()
    watch, ends = Stopwatch(case.device), []
    for _ in range(STEPS):
        with case.autocast():
            loss = prior.loss(*batch).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(prior.parameters(), CLIP)
        optimizer.step()
        ends.append(watch.read())
    return [end - start for start, end in pairwise(ends)]


def lightning_steps(system: PriorSystem, case: Case) -> list[float]:
    """The same by a Trainer that logs to TensorBoard."""
    import pytorch_lightning as pl
    from pytorch_lightning.loggers import TensorBoardLogger

    watch, ends = Stopwatch(case.device), []

    class Ends(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            ends.append(watch.read())

    batches = DataLoader([case.inputs()._asdict()] * STEPS, batch_size=None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator=case.device.partition(":")[0],
            devices=1,
            precision="bf16-mixed" if case.dtype == "bfloat16" else "32-true",
            max_steps=STEPS,
            gradient_clip_val=CLIP,
            log_every_n_steps=STEPS - 1,
            logger=TensorBoardLogger(folder),
            callbacks=[Ends()],
            **{f"enable_{what}": False for what in ("checkpointing", "progress_bar", "model_summary")},
        )
        trainer.fit(system, batches)
    return [end - start for start, end in pairwise(ends)]


def print_header() -> None:
    columns = ("tokens/s", "s a step", "GFLOP", "GFLOP/s", "MFU", "x ours", "peak GB", "M weights")
    print(f"{'contestant':<20}{'dtype':<9}" + "".join(f"{column:>10}" for column in columns))


def print_row(row: Row, rows: Sequence[Row]) -> None:
    numbers = (row.tokens_per_s, row.step_s, 1e3 * row.tflop, 1e3 * row.tflop / row.step_s, row.mfu)
    numbers += (times_slower(row, rows), row.peak_gb, row.parameters / 1e6)
    cells = ("-" if x is None else f"{x:.0f}" if x >= 1000 else f"{x:.3g}" for x in numbers)
    print(f"{row.name:<20}{row.dtype:<9}" + "".join(f"{cell:>10}" for cell in cells), flush=True)


def times_slower(row: Row, rows: Sequence[Row]) -> float | None:
    """How many times as long as ours, not compiled, it takes in the same dtype."""
    ours = [each for each in rows if (each.name, each.dtype) == (OURS, row.dtype)]
    return row.step_s / ours[0].step_s if ours else None


def report(
    args: argparse.Namespace,
    rows: Sequence[Row],
    gates: dict[str, Errors],
    absent: Sequence[dict[str, str]],
    overheads: Sequence[Overhead],
) -> None:
    for name, errors in gates.items():
        print(f"{name}: error {errors.loss:.1e} of the loss, {errors.gradients:.1e} of the gradients together")
    for each in overheads:
        print(f"{each.dtype}: {each.bare_s:.3g} s a step in a bare loop, {each.lightning_s:.3g} by Lightning")
    judged = training_verdicts(rows, overheads, args.device)
    if args.quick:
        print("--quick is no measure of speed")
    else:
        print_verdicts(judged)
    result: dict[str, Any] = {
        "benchmark": "training",
        **circumstances(args.device),
        "settings": {name: getattr(args, name) for name in ("batch", "dtypes", "repeats", "quick")},
        "sizes": asdict(QUICK if args.quick else Sizes()),
        "gates": {name: errors._asdict() for name, errors in gates.items()},
        "rows": [asdict(row) | {"mfu": row.mfu, "times_ours": times_slower(row, rows)} for row in rows],
        "absent": list(absent),
        "overheads": [each._asdict() for each in overheads],
        "goals": [asdict(verdict) | {"met": verdict.met} for verdict in judged],
    }
    result = rounded(result)
    if args.out is not None:
        write_object(args.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
