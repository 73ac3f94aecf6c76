"""How fast are codes read, how soon is the first batch there, and does an epoch need more and more memory?

    python -m benchmarks.data --out benchmarks/results/data-cpu.json     # two minutes and 1 GB of disk
    python -m benchmarks.data --quick                                    # that it runs; says nothing about speed

Rates: the same codes (int64 in batches of 64), captions and keys from shards of codes, in order and in a random one,
and from a tar of `.npy` and `.txt`, in order, by `webdataset.WebDataset(tar).decode()`. What both give is held against
each other first. One thread each, in turn, by its processor time; files lie in the system's cache for both.

First batch: from `PriorData(...)` to a batch of 64 in training, in a process that has imported what it needs. "trained"
is the first run on a folder, which trains the text tokenizer and leaves it there, "warm" is a later one, "cold" one
after the system was asked to drop the files from its cache.

Memory: of the process over an epoch of the same set through training's loader, at its first batch and at its last one;
captions stay text. What the process owns has to stay flat. Pages of the mapped files count beside it for as long as
the system has room for them, and are given up first.

Codes, captions and keys are made here, by chance. The last line is JSON, and `--out` writes the same to a file.
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.isolated import isolated, resident
from benchmarks.record import circumstances, hardware, rounded
from benchmarks.timing import HostClock, time_in_turn
from data.code_manifest import Recipe
from data.code_shards import Row
from data.codes import CodesSource
from data.codes_writer import CodesWriter
from data.datamodule import PriorData
from data.samples import CodesReader, Reader
from data.settings import Loading, TextConfig
from data.split import Keyed
from whole_files import write_object

CODEBOOK, BATCH = 8192, 64
RATE_GOAL, FIRST_GOAL, GROWTH_GOAL = 10.0, 1.0, 0.02  # times theirs; seconds; of the memory at the first batch
WORDS = ("red", "green", "small", "large", "circle", "river", "at", "night", "of", "the", "city", "two", "cats", "on")
Batch = tuple[list[str], list[str], Tensor]  # keys, captions, codes (B, h, w)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    print(f"{hardware('cpu')}, one thread, load average {os.getloadavg()[0]:.1f}")
    torch.set_num_threads(1)
    result = {"benchmark": "data", **circumstances("cpu"), "webdataset": webdataset.__version__}
    result["settings"] = {name: getattr(args, name) for name in ("rate_samples", "rate_grid", "samples", "grid")}
    with tempfile.TemporaryDirectory(dir=args.place) as place:
        result["rates"] = isolated(measure_rates, Path(place) / "rates", args)
        codes = Path(place) / "codes"
        result["set"] = isolated(make_set, codes, args.samples, args.grid)
        result["first"] = isolated(first_batches, codes)
        result["memory"] = isolated(measure_epoch, codes)
    report(result)
    if args.out is not None:
        write_object(args.out, rounded(result))
    print(json.dumps(rounded(result)))


def report(result: dict[str, Any]) -> None:
    rates, first, memory = result["rates"], result["first"], result["memory"]
    for name, rate in rates["samples_per_s"].items():
        print(f"{name:24} {rate:12,.0f} samples/s")
    worst = min(rates["times_theirs"].values())
    print(f"goal of {RATE_GOAL:.0f}x webdataset: {_verdict(worst >= RATE_GOAL)}, {worst:.1f}x")
    made = result["set"]
    print(f"{made['samples']:,} samples of {made['grid']}x{made['grid']} codes, {made['megabytes']:.0f} MB")
    for name, row in first.items():
        print(f"first batch, {name:10} {row['seconds']:8.3f} s, of which opening {row['opening']:.3f} s")
    slowest = max(row["seconds"] for name, row in first.items() if name != "trained")
    print(f"goal of {FIRST_GOAL:.0f} s to the first batch: {_verdict(slowest < FIRST_GOAL)}, {slowest:.2f} s")
    print(
        f"memory over {memory['samples']:,} samples ({memory['samples_per_s']:,.0f}/s): own "
        f"{memory['first']['own']:.0f} to {memory['last']['own']:.0f} MB, mapped {memory['first']['mapped']:.0f} to "
        f"{memory['last']['mapped']:.0f} MB"
    )
    print(f"goal of flat memory: {_verdict(memory['growth'] <= GROWTH_GOAL)}, {memory['growth']:+.1%}")


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


# ---- the data


def made_rows(start: int, count: int, grid: int) -> tuple[list[Row], Tensor]:
    """Captions of about ten words, and codes (count, 1, grid, grid)."""
    rng = np.random.default_rng(start)
    words = rng.integers(len(WORDS), size=(count, 10))
    rows = [
        Row(f"{start + i:09}.jpg", (" ".join(WORDS[word] for word in of) + f" {start + i}",), None)
        for i, of in enumerate(words.tolist())
    ]
    return rows, torch.from_numpy(rng.integers(CODEBOOK, size=(count, 1, grid, grid)))


def make_set(folder: Path, samples: int, grid: int) -> dict[str, Any]:
    recipe = Recipe(
        fingerprint="0" * 16, codebook_size=CODEBOOK, grid_size=(grid, grid), image_size=8 * grid, count=samples
    )
    start = time.perf_counter()
    writer = CodesWriter(folder, recipe, "made by chance")
    writer.begin()
    for number in writer.missing():
        of = recipe.rows(number)
        writer.write(number, *made_rows(of.start, len(of), grid))
    writer.finish()
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "samples": samples,
        "grid": grid,
        "shards": recipe.shards,
        "megabytes": size / 1e6,
        "bytes_a_token": size / samples / grid**2,
        "seconds_to_write": time.perf_counter() - start,
    }


def make_tar(path: Path, source: CodesSource) -> None:
    """The same samples as webdataset's own writers would leave them, codes as uint16."""
    with tarfile.open(path, "w") as tar:
        for index in range(len(source)):
            array = io.BytesIO()
            np.save(array, source.codes(index).numpy().astype(np.uint16))
            stem = source.key(index).removesuffix(".jpg")
            for suffix, content in ((".npy", array.getvalue()), (".txt", source.captions(index)[0].encode())):
                info = tarfile.TarInfo(stem + suffix)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


# ---- rates


def measure_rates(place: Path, args: argparse.Namespace) -> dict[str, Any]:
    place.mkdir()
    make_set(place / "codes", args.rate_samples, args.rate_grid)
    source = CodesSource(place / "codes")
    make_tar(place / "codes.tar", source)
    check(ours(source, range(len(source))), theirs(place / "codes.tar"))
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0)).tolist()
    runs = {
        "ours, in order": partial(read_all, partial(ours, source, range(len(source)))),
        "ours, at random": partial(read_all, partial(ours, source, order)),
        "webdataset, in order": partial(read_all, partial(theirs, place / "codes.tar")),
    }
    timings = time_in_turn(runs, HostClock(time.process_time), repeats=args.repeats, warmup=1)
    shutil.rmtree(place)
    rates = {name: 1e3 * len(order) / timing.ms for name, timing in timings.items()}
    *own, other = rates
    return {
        "samples_per_s": rates,
        "spread": {name: timing.spread for name, timing in timings.items()},
        "times_theirs": {name: rates[name] / rates[other] for name in own},
    }


def ours(source: CodesSource, order: Sequence[int]) -> Iterator[Batch]:
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        captions = [source.captions(row)[0] for row in rows]
        yield [source.key(row) for row in rows], captions, torch.stack([source.codes(row) for row in rows])


def theirs(tar: Path) -> Iterator[Batch]:
    samples = webdataset.WebDataset(str(tar), shardshuffle=False).decode().to_tuple("__key__", "txt", "npy")
    for keys, captions, codes in samples.batched(BATCH):
        yield [f"{key}.jpg" for key in keys], captions, torch.from_numpy(codes.astype(np.int64))


def read_all(open_batches: Any) -> None:
    for _ in open_batches():
        pass


def check(found: Iterator[Batch], expected: Iterator[Batch]) -> None:
    """RuntimeError where a batch differs: nothing is timed then."""
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        if a[:2] != tuple(map(list, b[:2])) or not torch.equal(a[2], b[2]):
            raise RuntimeError(f"batch {number} differs from webdataset's: nothing is timed")


# ---- the first batch, and an epoch


def opened(codes: Path, workers: int = 0, kind: type[PriorData] = PriorData) -> PriorData:
    loading = Loading(batch_size=BATCH, workers=workers)
    data = kind(codes=str(codes), text=TextConfig(bpe_dropout=0.0), loading=loading)
    data.setup()
    return data


def first_batches(codes: Path) -> dict[str, Any]:
    multiprocessing.set_start_method("fork", force=True)  # of workers, as in a script; this process was spawned
    found = {"trained": first_batch(codes), "warm": first_batch(codes), "2 workers": first_batch(codes, workers=2)}
    drop_from_cache(codes)
    return found | {"cold": first_batch(codes)}


def first_batch(codes: Path, workers: int = 0) -> dict[str, float]:
    start = time.perf_counter()
    data = opened(codes, workers)
    between = time.perf_counter()
    batch = next(iter(data.train_dataloader()))
    assert len(batch["keys"]) == BATCH
    return {"seconds": time.perf_counter() - start, "opening": between - start}


def drop_from_cache(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Untokenised(PriorData):
    """Captions stay text: what tokens take says nothing of how codes are read."""

    def readers(self, source: Keyed, *, training: bool) -> list[Reader]:
        return [CodesReader(source, any_crop=False), lambda index, _: {"captions": source.captions(index)[0]}]


def measure_epoch(codes: Path) -> dict[str, Any]:
    data = opened(codes, kind=Untokenised)
    batches = iter(data.train_dataloader())
    next(batches)
    first, start, count = memory(), time.perf_counter(), 0
    for batch in batches:
        count += len(batch["keys"])
    seconds, last = time.perf_counter() - start, memory()
    return {
        "samples": count,
        "samples_per_s": count / seconds,
        "first": first,
        "last": last,
        "growth": last["own"] / first["own"] - 1,
    }


def memory() -> dict[str, float]:
    """Megabytes that the process owns, and of mapped files."""
    return {name: (resident(of) or 0) / 1e6 for name, of in (("own", "RssAnon"), ("mapped", "RssFile"))}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__.splitlines()[0])
    parser.add_argument("--rate_samples", type=int, default=10_000, help="of which rates are measured")
    parser.add_argument("--rate_grid", type=int, default=32, help="side of their codes")
    parser.add_argument("--samples", type=int, default=1_000_000, help="of the set that is opened")
    parser.add_argument("--grid", type=int, default=16, help="side of its codes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--place", type=Path, help="where to make the files (the system's folder for such)")
    parser.add_argument("--quick", action="store_true", help="small sets: no measure of speed")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    if args.quick:
        args.rate_samples, args.rate_grid, args.samples, args.grid, args.repeats = 200, 8, 9000, 4, 1
    return args


if __name__ == "__main__":
    main()
