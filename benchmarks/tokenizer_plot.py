"""Shows a result of benchmarks/tokenizers.py: distortion over rate, one point a contestant; and as Markdown tables."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from whole_files import written_beside

matplotlib.use("Agg")

MARKERS = {"ours": "o", "dalle-pytorch": "s", "vqp": "^", "palette": "D"}
CODECS = ("JPEG", "WEBP")


SHOWN = ("JPEG quality 10", "JPEG quality 40", "WEBP quality 0", "WEBP quality 10", "WEBP quality 40")


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Learnt tokenizers, best first; then palettes and picture formats."""
    learnt = sorted((row for row in rows if "updates" in row), key=lambda row: -row["psnr"]["value"])
    lines = ["| tokenizer | PSNR, dB (95 %) | SSIM | codes used | perplexity | parameters | updates |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in learnt:
        value, low, high = (row["psnr"][name] for name in ("value", "low", "high"))
        lines.append(
            f"| {row['name']} | {value:.2f} ({low:.2f} to {high:.2f}) | {row['ssim']:.3f} | {row['usage']:.1%} "
            f"| {row['perplexity']:.0f} | {row['parameters'] / 1e6:.2f} M | {row['updates']:,} |"
        )
    lines += ["", "| | bits a pixel | PSNR, dB | SSIM |", "|---|---|---|---|"]
    for row in rows:
        if row["name"] in SHOWN or row["name"].startswith("palette") or row["name"].endswith("equal bytes"):
            over = (
                f" ({row['too_large']:.0%} of the files larger: no less is to be had)" if row.get("too_large") else ""
            )
            rate, value = row["bits_per_pixel"], row["psnr"]["value"]
            lines.append(f"| {row['name']}{over} | {rate:.3f} | {value:.2f} | {row['ssim']:.3f} |")
    return "\n".join(lines)


def plot(result: Path, png: Path) -> None:
    """Writes `png`, beside its place and then renamed, and prints the tables."""
    rows = json.loads(result.read_text(encoding="utf-8"))["rows"]
    print(tables(rows))
    figure, (whole, near) = plt.subplots(1, 2, figsize=(11, 4.5))
    for axes in (whole, near):
        for codec in CODECS:
            points = sorted(
                (row["bits_per_pixel"], row["psnr"]["value"]) for row in rows if row["name"].startswith(f"{codec} qual")
            )
            grey = "0.6" if codec == "JPEG" else "0.3"
            axes.plot(*zip(*points, strict=True), "-", marker=".", color=grey, label=codec)
        for whose, marker in MARKERS.items():
            of = [row for row in rows if row["name"].startswith(whose)]
            for number, row in enumerate(of):
                label = row["name"] if axes is near or whose == "palette" else None
                colour = f"C{(number + 3 * list(MARKERS).index(whose)) % 10}"
                axes.plot(row["bits_per_pixel"], row["psnr"]["value"], marker, color=colour, label=label)
        axes.set_xlabel("bits a pixel")
        axes.set_ylabel("PSNR, dB")
        axes.grid(alpha=0.3)
    whole.set_xscale("log")
    learnt = [row for row in rows if "updates" in row]
    rate = learnt[0]["bits_per_pixel"]
    values = [row["psnr"]["value"] for row in learnt]
    near.set_xlim(0.9 * rate, 1.6 * rate)
    near.set_ylim(min(values) - 1, max(values) + 2)
    whole.legend(fontsize=7)
    near.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    with written_beside(png) as part:
        figure.savefig(part, format="png", dpi=110)
