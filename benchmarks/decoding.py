"""How much faster than webdataset with PIL does a JPEG become the square that a model sees?

    python -m benchmarks.decoding                        # pictures made here, of 1 to 12 megapixels
    python -m benchmarks.decoding --data pictures        # the JPEGs of a folder as they are, the first of them
    python -m benchmarks.decoding --quick                # a second or two: that it runs; says nothing about speed

Theirs: `webdataset.WebDataset(tar).decode("pil")`, which decodes all pixels. Ours: `data.pictures.load_picture` with
the side that is needed. What follows is the same function for both, the crop for evaluation or the tokenizer's
augmentation, and the files lie in the system's cache for both. The views are held against each other first: where one
is below 35 dB, nothing is timed. One thread, in turn, in a process that keeps freed memory, as our scripts do and as
helps theirs more. Pictures made here are clouds and discs with the grain of a camera, at quality 90; of a folder's,
those that EXIF turns are passed over, as webdataset does not turn them. The last line is JSON, and `--out` writes the
same to a file.
"""

import argparse
import json
import math
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import ExifTags, Image, ImageDraw
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.isolated import isolated
from benchmarks.record import circumstances, hardware, rounded
from benchmarks.timing import make_clock, time_in_turn
from data.pictures import load_picture
from data.transforms import evaluation_crop, least_side, tokenizer_augmentation
from whole_files import write_object

MEGAPIXELS = (1, 2, 4, 8, 12)
LARGE = 8  # megapixels from which the goal counts
GOAL = 2.0
FEWEST_DECIBELS = 35.0  # a shift by one pixel of the view leaves less than 30
GRAIN = 5.0  # standard deviation of a camera's noise, of 255
TRANSFORMS: dict[str, Callable[..., Tensor]] = {"evaluation": evaluation_crop, "tokenizer": tokenizer_augmentation}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    print(f"{hardware('cpu')}, one thread, load average {os.getloadavg()[0]:.1f}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        sources = [given(args, Path(place))] if args.data else made(args, Path(place))
        rows = [row for source in sources for row in isolated(measure, source, args)]
    for row in rows:
        print(line(row))
    large = [row["times theirs"] for row in rows if row["megapixels"] >= LARGE]
    if large:
        met = f"{'met' if min(large) >= GOAL else 'missed'}, {min(large):.2f}x"
        print(f"goal of {GOAL}x from {LARGE} megapixels: {met}")
    settings = {name: getattr(args, name) for name in ("size", "pixels", "repeats", "clock")}
    result = {"benchmark": "decoding", **circumstances("cpu"), "webdataset": webdataset.__version__}
    result |= {"pillow": Image.__version__, "settings": settings, "rows": rows}
    if args.out is not None:
        write_object(args.out, rounded(result))
    print(json.dumps(rounded(result)))


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['megapixels']:5.1f} megapixels, {row['bytes a pixel']:.2f} bytes each, {row['transform']}: "
        f"ours {row['ms']['ours']:.1f} ms, theirs {row['ms']['theirs']:.1f} ms a picture, "
        f"{row['times theirs']:.2f}x, {row['decibels']:.1f} dB"
    )


def made(args: argparse.Namespace, place: Path) -> list[Path]:
    """A folder of JPEGs for each number of megapixels, and beside it a tar of the same."""
    folders = []
    for megapixels in args.megapixels:
        folders.append(place / f"{megapixels}")
        folders[-1].mkdir()
        height = math.sqrt(1e6 * megapixels * 3 / 4)
        for i in range(max(1, round(args.pixels / megapixels))):
            picture = photograph(round(height * 4 / 3), round(height), seed=i)
            picture.save(folders[-1] / f"{i:03}.jpg", quality=90)
        pack(folders[-1])
    return folders


def given(args: argparse.Namespace, place: Path) -> Path:
    """The first JPEGs of the folder, as many as make up the pixels. Raises ValueError where there is none."""
    folder = place / "given"
    folder.mkdir()
    found, pixels = [], 0
    for path in sorted(path for path in args.data.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")):
        with Image.open(path) as picture:
            if pixels < 1e6 * args.pixels and picture.getexif().get(ExifTags.Base.Orientation, 1) == 1:
                found.append(path)
                pixels += math.prod(picture.size)
    if not found:
        raise ValueError(f"{args.data}: no upright .jpg or .jpeg in it or below")
    for i, path in enumerate(found):
        (folder / f"{i:05}.jpg").write_bytes(path.read_bytes())
    pack(folder)
    return folder


def pack(folder: Path) -> None:
    with tarfile.open(folder.with_suffix(".tar"), "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Clouds of all sizes, sharp discs on them, and grain: about as many bytes a pixel as a camera's JPEGs have."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128, dtype=np.float32)
    for cells in (2, 4, 8, 16, 32, 64):
        coarse = rng.uniform(-160, 160, (cells, cells, 3)).astype(np.float32) / cells
        for c in range(3):
            image[..., c] += Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC)
    picture = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(40):
        x, y, r = (int(v) for v in rng.integers(0, (width, height, height // 6)))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    grain = GRAIN * rng.standard_normal((height, width, 1), dtype=np.float32)
    return Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))


def measure(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each transform."""
    clock = make_clock(args.clock, "cpu")
    paths = sorted(folder.iterdir())
    pixels = [math.prod(load_picture(path).size) for path in paths]
    size_of_files = sum(path.stat().st_size for path in paths)
    rows = []
    for name, transform in TRANSFORMS.items():
        runs = {
            "ours": partial(ours, paths, transform, args.size),
            "theirs": partial(theirs, folder.with_suffix(".tar"), transform, args.size),
        }
        decibels = check(*(run() for run in runs.values()))
        timings = time_in_turn(runs, clock, repeats=args.repeats, warmup=1)
        ms = {who: timing.ms / len(paths) for who, timing in timings.items()}
        rows.append(
            {
                "megapixels": round(sum(pixels) / len(paths) / 1e6, 1),
                "pictures": len(paths),
                "bytes a pixel": size_of_files / sum(pixels),
                "transform": name,
                "decibels": decibels,
                "ms": ms,
                "spread": {who: timing.spread for who, timing in timings.items()},
                "times theirs": ms["theirs"] / ms["ours"],
            }
        )
    return rows


def ours(paths: Sequence[Path], transform: Callable[..., Tensor], size: int) -> list[Tensor]:
    least = least_side(size, transform)
    return [view(load_picture(path, least), transform, size, seed) for seed, path in enumerate(paths)]


def theirs(tar: Path, transform: Callable[..., Tensor], size: int) -> list[Tensor]:
    samples = webdataset.WebDataset(str(tar), shardshuffle=False).decode("pil")
    return [view(sample["jpg"], transform, size, seed) for seed, sample in enumerate(samples)]


def view(picture: Image.Image, transform: Callable[..., Tensor], size: int, seed: int) -> Tensor:
    random = () if transform is evaluation_crop else (torch.Generator().manual_seed(seed),)
    return transform(picture, size, *random)


def check(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The worst agreement of two pictures, in dB. Raises RuntimeError where it is too little."""
    errors = [(a - b).square().mean().item() for a, b in zip(found, expected, strict=True)]
    decibels = -10 * math.log10(max(*errors, 1e-10))
    if decibels < FEWEST_DECIBELS:
        raise RuntimeError(f"a view differs by {decibels:.1f} dB from that of the whole picture; nothing is timed")
    return decibels


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of JPEGs in the place of those made here")
    parser.add_argument("--size", type=int, default=256, help="side of the views")
    parser.add_argument("--megapixels", type=float, nargs="+", default=MEGAPIXELS)
    parser.add_argument("--pixels", type=float, default=24, help="millions of them of each size, at least one picture")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--quick", action="store_true", help="one small picture: no measure of speed")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    if args.quick:
        args.megapixels, args.pixels, args.repeats, args.size = (0.2,), 0.4, 1, 64
    return args


if __name__ == "__main__":
    main()
