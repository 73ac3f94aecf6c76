"""Which tokenizer keeps most of a picture, at an equal rate, size and time of training?

    python -m benchmarks.tokenizers --data PHOTOS --minutes 4 --jobs 2 --out benchmarks/results/tokenizers-cpu.json
    python -m benchmarks.tokenizers --data PHOTOS --quick          # seconds: that it runs; says nothing of quality
    python -m benchmarks.tokenizers --plot benchmarks/results/tokenizers-cpu.json docs/tokenizers.png

PHOTOS is a folder with splits, as `python -m data.prepare photos` makes it. Each contestant is trained on random crops
of 64 pixels of the training split's pictures for so many minutes of its own processor time, on one thread, in bfloat16
by autocast, on one schedule, and then encodes the test split's pictures whole, 256x256 in 32x32
codes of K. Distortion is of 8-bit pictures; usage is counted on the test split. Image GPT's palette (one token a pixel)
and JPEG and WebP stand beside it: at the bytes that the codes take, and at a range of rates.

The squared error over that of DALLE-pytorch and the dB over the best of vector-quantize-pytorch are printed against the
goals. The last line is JSON, and `--out` writes the same to a file.
"""

import argparse
import io
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `python benchmarks/tokenizers.py` finds it all

from benchmarks.record import circumstances, rounded
from benchmarks.tokenizer_contestants import Contestant, bf16_loss, contestants
from data.folder import FolderSource
from data.samples import evaluation_picture
from metrics import mean_interval, psnr, ssim
from pipeline import to_pil_images
from vqvae.code_use import code_use, count_codes
from vqvae.palette import Palette, PaletteConfig, sample_pixels
from whole_files import write_object

SIDE, CROP, FACTOR = 256, 64, 8
GOALS = {"error over DALLE-pytorch": 0.5, "dB over the best library variant": 1.0, "usage": 0.95}
WHOSE = ("ours", "dalle", "vqp:", "vqp by Muon:")  # how the contestants' names begin
ON_EQUAL_TERMS = "dB over the best library variant by Muon too"  # no goal: what is left once the optimiser is the same
QUALITIES = {"JPEG": (1, 5, 10, 20, 40, 70, 90), "WEBP": (0, 1, 5, 10, 20, 40, 70, 90)}
PALETTES = (8, 64, 512)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.plot:
        from benchmarks.tokenizer_plot import plot

        return plot(*args.plot)
    torch.manual_seed(args.seed)
    names = [name for name in contestants(1, 1, args.codebook_size) if not args.only or args.only in name]
    train, test = load(args.data, "train", args.pictures), load(args.data, "test", args.pictures)
    print(f"{len(train)} pictures to learn from, {len(test)} to judge by; K={args.codebook_size}", flush=True)
    jobs = [(name, train, test, args) for name in names]
    with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=1) as pool:
        found = list(pool.imap(train_and_judge, jobs))
    rows, absent = ([row for row in found if ("absent" in row) == missing] for missing in (False, True))
    bits = math.log2(args.codebook_size) / FACTOR**2
    rows += [palette_row(k, train, test) for k in PALETTES]
    rows += [codec_row(codec, quality, test) for codec, of in QUALITIES.items() for quality in of]
    rows += [codec_at(codec, bits, test) for codec in QUALITIES]
    for row in rows:
        print(line(row), flush=True)
    reached = goals(rows)
    for name, value in reached.items():
        print(f"{name}: {value:.3g}" + (f" (goal {GOALS[name]})" if name in GOALS else ""))
    settings = {name: getattr(args, name) for name in SETTINGS}
    result = {"benchmark": "tokenizers", **circumstances("cpu"), "settings": settings, "goals": reached}
    result |= {"rows": rows, "absent": absent}
    if args.out is not None:
        write_object(args.out, rounded(result))
    print(json.dumps(rounded(result)))
    return None


SETTINGS = ("minutes", "codebook_size", "n_hid", "hidden_dim", "batch_size", "seed", "quick")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenizers", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of photographs with splits train and test")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training each, in processor time")
    parser.add_argument("--jobs", type=int, default=1, help="contestants side by side, each on one thread")
    parser.add_argument("--codebook-size", type=int, default=1024, help="K")
    parser.add_argument("--n-hid", type=int, default=24, help="first width of the autoencoder")
    parser.add_argument("--hidden-dim", type=int, default=32, help="width of DALLE-pytorch's network")
    parser.add_argument("--batch-size", type=int, default=16, help="crops an update")
    parser.add_argument("--pictures", type=int, help="at most so many of each split")
    parser.add_argument("--only", help="contestants that have this in their name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a second of training each on 16 pictures: no measure")
    parser.add_argument(
        "--plot",
        nargs=2,
        type=Path,
        metavar=("JSON", "PNG"),
        help="draw a result, print its tables, and do nothing else",
    )
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args(argv)
    if args.plot is None and args.data is None:
        parser.error("--data is missing: a folder of photographs, as `python -m data.prepare photos` makes it")
    if args.quick:
        args.minutes, args.pictures, args.n_hid, args.hidden_dim, args.batch_size = 1 / 60, 16, 8, 16, 4
    return args


def load(folder: Path, split: str, most: int | None) -> Tensor:
    """Pictures of a split, uint8 (N, 3, 256, 256)."""
    try:
        source = FolderSource(folder, need_captions=False)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    rows = [i for i in range(len(source)) if source.split(i) == split][:most]
    if not rows:
        sys.exit(f"{folder} has no pictures of split {split}")
    return torch.stack([(evaluation_picture(source, i, SIDE) * 255).round().to(torch.uint8) for i in rows])


def train_and_judge(job: tuple[str, Tensor, Tensor, argparse.Namespace]) -> dict[str, Any]:
    """One contestant from scratch, in a process of its own; "absent" says why where it is not there or fails."""
    name, train, test, args = job
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    try:
        row = _row(name, train, test, args)
    except Exception as error:  # one of others may not ruin the run
        if name.startswith("ours"):
            raise
        print(f"{name:<42}absent: {type(error).__name__}: {error}", flush=True)
        return {"name": name, "absent": f"{type(error).__name__}: {error}"}
    print(line(row), flush=True)
    return row


def _row(name: str, train: Tensor, test: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    contestant = contestants(args.n_hid, args.hidden_dim, args.codebook_size)[name]()
    updates = fit(contestant, train, 60 * args.minutes, args)
    contestant.eval()
    with torch.inference_mode():
        indices = torch.cat([contestant.encode(part.float() / 255) for part in test.split(8)])
        recon = torch.cat([contestant.decode(part) for part in indices.split(8)])
    use = code_use(count_codes(indices, args.codebook_size))
    row = judged(name, test, recon, math.log2(args.codebook_size) / FACTOR**2)
    row |= {"parameters": sum(p.numel() for p in contestant.parameters()), "updates": updates}
    return row | {name: getattr(use, name).item() for name in ("usage", "entropy", "perplexity")}


def fit(contestant: Contestant, train: Tensor, seconds: float, args: argparse.Namespace) -> int:
    """Trains for so much processor time; the step size falls as a cosine over it. Returns the updates."""
    optimizer = contestant.optimizer()
    peaks = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(args.seed)
    contestant.train()
    start, updates = time.process_time(), 0
    while (progress := (time.process_time() - start) / seconds) < 1:
        warmup = min(1.0, (updates + 1) / 100)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        images = crops(train, args.batch_size, generator)
        loss = bf16_loss(contestant, images, progress)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(contestant.parameters(), 1.0)
        optimizer.step()
        updates += 1
    return updates


def crops(pictures: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n random crops (n, 3, 64, 64) in [0, 1], half of them mirrored."""
    rows = torch.randint(len(pictures), (n,), generator=generator)
    tops, lefts = torch.randint(SIDE - CROP + 1, (2, n), generator=generator)
    flips = torch.rand(n, generator=generator) < 0.5
    parts = []
    for row, top, left, flip in zip(rows, tops, lefts, flips, strict=True):
        part = pictures[row, :, top : top + CROP, left : left + CROP]
        parts.append(part.flip(2) if flip else part)
    return (torch.stack(parts).float() / 255).contiguous(memory_format=torch.channels_last)


def judged(name: str, test: Tensor, recon: Tensor, bits_per_pixel: float) -> dict[str, Any]:
    images, recon = test.float() / 255, (recon.float() * 255).round() / 255
    of_ssim = torch.cat([ssim(*part) for part in zip(images.split(8), recon.split(8), strict=True)])
    return {
        "name": name,
        "bits_per_pixel": bits_per_pixel,
        "mse": (images - recon).square().mean().item(),
        "psnr": mean_interval(psnr(images, recon))._asdict(),
        "ssim": of_ssim.mean().item(),
    }


def palette_row(k: int, train: Tensor, test: Tensor) -> dict[str, Any]:
    pixels = sample_pixels((picture.float() / 255 for picture in train), 200)
    palette = Palette.fit(PaletteConfig(image_size=SIDE, codebook_size=k), pixels, steps=20)
    recon = torch.cat([palette.decode(palette.encode(part.float() / 255)) for part in test.split(8)])
    return judged(f"palette of {k} colours", test, recon, math.log2(k))


def codec_row(codec: str, quality: int, test: Tensor) -> dict[str, Any]:
    """A picture format at one quality: the mean rate and distortion, headers included."""
    files = [_written(picture, codec, quality) for picture in to_pil_images(test.float() / 255)]
    row = judged(f"{codec} quality {quality}", test, torch.stack([_read(file) for file in files]), 0.0)
    return row | {"bits_per_pixel": 8 * sum(map(len, files)) / len(files) / SIDE**2}


def codec_at(codec: str, bits_per_pixel: float, test: Tensor) -> dict[str, Any]:
    """A picture format where each file takes at most the bytes of the codes, or as few as it can."""
    files, budget = [], bits_per_pixel * SIDE**2 / 8
    for picture in to_pil_images(test.float() / 255):
        low, high = 0, 100  # sizes grow with the quality, or near enough
        while low < high:
            quality = (low + high + 1) // 2
            low, high = (quality, high) if len(_written(picture, codec, quality)) <= budget else (low, quality - 1)
        files.append(_written(picture, codec, low))
    row = judged(f"{codec} at equal bytes", test, torch.stack([_read(file) for file in files]), 0.0)
    over = sum(len(file) > budget for file in files) / len(files)
    return row | {"bits_per_pixel": 8 * sum(map(len, files)) / len(files) / SIDE**2, "too_large": over}


def _written(picture: Image.Image, codec: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, codec, quality=quality, **({"optimize": True} if codec == "JPEG" else {"method": 4}))
    return buffer.getvalue()


def _read(file: bytes) -> Tensor:
    picture = Image.open(io.BytesIO(file)).convert("RGB")
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3).permute(2, 0, 1) / 255


def goals(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What is to be reached, of those contestants that took part: our best by squared error against the others'."""
    of = {whose: [row for row in rows if row["name"].startswith(whose)] for whose in WHOSE}
    reached = {}
    if of["ours"]:
        best = min(of["ours"], key=lambda row: row["mse"])
        reached["usage"] = best["usage"]
        if of["dalle"]:
            reached["error over DALLE-pytorch"] = best["mse"] / min(row["mse"] for row in of["dalle"])
        for whose, name in {"vqp:": "dB over the best library variant", "vqp by Muon:": ON_EQUAL_TERMS}.items():
            if of[whose]:
                reached[name] = best["psnr"]["value"] - max(row["psnr"]["value"] for row in of[whose])
    return reached


def line(row: dict[str, Any]) -> str:
    text = f"{row['name']:<42}{row['bits_per_pixel']:>8.4f} bpp{row['psnr']['value']:>8.2f} dB{row['ssim']:>8.3f}"
    if "usage" in row:
        text += f"{row['usage']:>8.1%}{row['parameters'] / 1e6:>7.2f} M{row['updates']:>7} updates"
    return text + (f"  {row['too_large']:.0%} too large" if row.get("too_large") else "")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
