"""How good a tokenizer's reconstructions are.

PSNR, SSIM, LPIPS (with weights: vqvae/lpips.py), rFID and KID (with the Inception network: metrics.py), the use of the
codes, bits a pixel and pictures a second. Every figure is of the same N pictures, their middle squares at the
tokenizer's size. PSNR is the mean of the pictures' own, which is no less than that of the mean error over all, as
training logs it.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import cli
from data.opening import check_drawn_large_enough, check_one_given, open_pictures
from data.samples import evaluation_picture
from data.source import Source
from evaluation.shared import REPORT, choose, loading, now, report_folder, which_split, write_report
from grids import reconstruction_grid, save_png
from metrics import InceptionFeatures, Interval, frechet_interval, kernel_distance, mean_interval, psnr, ssim
from pipeline import ImageTokenizer, fingerprint, to_pil_images, usable_device
from vqvae.code_use import CodeUse, code_use
from vqvae.folders import load_image_tokenizer
from vqvae.lpips import LPIPS, SMALLEST_SIDE

FRECHET_RESAMPLES = 20
WORST = 32  # pictures in worst.png
PICTURES = "worst.png"
SSIM_SIDE = 6  # pixels that its window needs at least


class _Chosen(Dataset):
    """Number and evaluation crop of some pictures of a source."""

    def __init__(self, source: Source, rows: list[int], size: int) -> None:
        self.source, self.rows, self.size = source, rows, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        return evaluation_picture(self.source, self.rows[i], self.size)


class Measured(NamedTuple):
    """Of N pictures: values (N,) by name, features (N, D) of pictures and reconstructions, counts of the K codes."""

    values: dict[str, Tensor]
    features: tuple[Tensor, Tensor] | None
    counts: Tensor
    encode_seconds: float
    decode_seconds: float
    timed: int
    """Pictures of which the seconds are: all but the first batch, where there are more."""


def evaluate_tokenizer(options: Namespace) -> dict[str, Any]:
    """What `python evaluate.py tokenizer` does; returns the report. Raises ValueError for wrong input."""
    check_one_given(data=options.data, drawings=options.drawings, shards=options.shards)
    device = usable_device(options.device)
    model = load_image_tokenizer(cli.model_folder(options.model)).to(device)
    size = model.config.image_size
    check_drawn_large_enough(options.drawings, size)
    if size < (least := SSIM_SIDE if options.lpips is None else SMALLEST_SIDE):
        raise ValueError(f"the tokenizer's pictures have {size} pixels a side, these measures need at least {least}")
    out = report_folder(options.out)
    lpips = None if options.lpips is None else LPIPS.from_pretrained(options.lpips, options.lpips_net).to(device)
    inception = None if options.inception is None else InceptionFeatures(options.inception).to(device)
    source = open_pictures(
        options.data,
        options.drawings,
        loading(options, out),
        need_captions=False,
        shards=options.shards,
        filters=options.filters,
    )
    rows = choose(source, options.split, options.count, options.val_fraction)
    loader = DataLoader(_Chosen(source, rows, size), batch_size=options.batch_size, num_workers=options.workers)
    measured = measure(model, tqdm(loader, "measured", disable=None), lpips, inception, options.bf16)
    report = summary(model, measured) | {
        "model": str(options.model),
        "fingerprint": fingerprint(model),
        "data": options.data or (str(source.report.folder) if options.shards else "drawings"),
        "split": options.split,
        "device": str(device),
        "bf16": options.bf16,
        "lpips_net": None if lpips is None else options.lpips_net,
        "threads": torch.get_num_threads(),
    }
    worst = measured.values["psnr"].argsort()[:WORST].tolist()
    report["worst"] = [
        {"key": source.key(rows[i])} | {name: round(values[i].item(), 4) for name, values in measured.values.items()}
        for i in worst
    ]
    images = torch.stack([evaluation_picture(source, rows[i], size) for i in worst])
    parts = images.to(device).split(options.batch_size)
    recon = torch.cat([_coded(model, part, options.bf16)[1] for part in parts])
    save_png(reconstruction_grid(to_pil_images(images), to_pil_images(recon)), out / PICTURES)
    write_report(report, out)
    print(table(report))
    print(f"written: {out / REPORT}, {out / PICTURES}")
    return report


@torch.inference_mode()
def measure(
    model: ImageTokenizer,
    batches: Iterator[Tensor],
    lpips: LPIPS | None,
    inception: InceptionFeatures | None,
    bf16: bool,
) -> Measured:
    """Encodes and decodes batches of images (B, 3, H, W) in [0, 1] and compares."""
    device = next(model.parameters()).device
    values: dict[str, list[Tensor]] = {name: [] for name in ("psnr", "ssim", *(["lpips"] if lpips else []))}
    features: list[list[Tensor]] = [[], []]
    counts = torch.zeros(model.codebook_size, dtype=torch.int64)
    seconds: list[tuple[float, float, int]] = []
    for batch in batches:
        images = batch.to(device)
        indices, recon, taken = _coded(model, images, bf16)
        seconds.append((*taken, len(images)))
        counts += torch.bincount(indices.flatten().cpu(), minlength=len(counts))
        # What is shown is an 8-bit picture.
        recon = (recon.float().clamp(0, 1) * 255).round() / 255
        values["psnr"].append(psnr(images, recon).cpu())
        values["ssim"].append(ssim(images, recon).cpu())
        if lpips is not None:
            values["lpips"].append(lpips(images, recon).cpu())
        if inception is not None:
            for kept, pictures in zip(features, (images, recon), strict=True):
                kept.append(inception(pictures).cpu())
    timed = seconds[1:] or seconds
    return Measured(
        {name: torch.cat(parts) for name, parts in values.items()},
        tuple(torch.cat(parts) for parts in features) if inception is not None else None,
        counts,
        *(sum(row[i] for row in timed) for i in (0, 1, 2)),
    )


def _coded(model: ImageTokenizer, images: Tensor, bf16: bool) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """Indices, reconstructions, and the seconds that encoding and decoding took."""
    device = images.device
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        start = now(device)
        indices = model.encode(images)
        between = now(device)
        recon = model.decode(indices)
        return indices, recon, (between - start, now(device) - between)


def summary(model: ImageTokenizer, measured: Measured) -> dict[str, Any]:
    """The report's figures, each with its interval where it has one."""
    use = CodeUse(*(value.item() for value in code_use(measured.counts)))
    size = model.config.image_size
    tokens_a_pixel = math.prod(model.grid_size) / size**2
    report: dict[str, Any] = {"pictures": len(measured.values["psnr"]), "image_size": size}
    report |= {name: mean_interval(values)._asdict() for name, values in measured.values.items()}
    if measured.features is not None:
        report["rfid"] = frechet_interval(*measured.features, FRECHET_RESAMPLES)._asdict()
        report["kid"] = kernel_distance(*measured.features)._asdict()
    return report | {
        "tokens": math.prod(model.grid_size),
        "codebook_size": model.codebook_size,
        "codes_used": int(use.codes_used),
        "usage": use.usage,
        "perplexity": use.perplexity,
        "entropy_bits": use.entropy,
        "bits_per_pixel": tokens_a_pixel * math.log2(model.codebook_size),
        "entropy_bits_per_pixel": tokens_a_pixel * use.entropy,
        "encode_images_per_s": measured.timed / measured.encode_seconds,
        "decode_images_per_s": measured.timed / measured.decode_seconds,
    }


LINES = {
    "psnr": ("PSNR", "dB", 2),
    "ssim": ("SSIM", "", 4),
    "lpips": ("LPIPS", "", 4),
    "rfid": ("rFID", "", 2),
    "kid": ("KID x 1000", "", 3),
}


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    size, which = report["image_size"], which_split(report)
    lines = [f"{report['pictures']:,} pictures of {size} pixels ({which}), intervals of 95 %"]
    for name, (label, unit, digits) in LINES.items():
        if name in report:
            value, low, high = Interval(**report[name])
            interval = "" if math.isnan(low) else f"  ({low:.{digits}f} to {high:.{digits}f})"
            lines.append(f"{label:<14}{value:>10.{digits}f} {unit}{interval}".rstrip())
    if "rfid" in report:
        lines.append("rFID falls with the number of pictures: to be compared at equal numbers only; KID does not")
    used, size = report["codes_used"], report["codebook_size"]
    lines += [
        f"{'codes used':<14}{used:>10,} of {size:,} ({used / size:.1%})",
        f"{'perplexity':<14}{report['perplexity']:>10.1f}",
        f"{'entropy':<14}{report['entropy_bits']:>10.3f} bits a token, {math.log2(size):.3f} at most",
        f"{'rate':<14}{report['bits_per_pixel']:>10.4f} bits a pixel, {report['entropy_bits_per_pixel']:.4f} if coded",
        f"{'encode':<14}{report['encode_images_per_s']:>10.1f} pictures/s",
        f"{'decode':<14}{report['decode_images_per_s']:>10.1f} pictures/s",
    ]
    return "\n".join(lines)
