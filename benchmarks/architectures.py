"""Does the architecture earn its keep: which block, which masks, and pads seen or skipped, at equal time?

Trains a prior of each kind on the same batches for the same time (see contest.py), and follows the validation loss of
image and text tokens. One change at a time from the defaults of `PriorConfig`, and once two; a second run of the
defaults from another seed shows what chance does alone.

    python -m benchmarks.architectures --minutes 5 --out benchmarks/results/architectures-cpu.json
    python -m benchmarks.architectures --codes runs/demo/codes --batch-size 16 --text-len 12    # codes of one's own
    python -m benchmarks.architectures --only base "paper's block" --preset small --batch-size 64 --device cuda
    python -m benchmarks.architectures --quick    # seconds: that it runs; says nothing of architectures

Without `--codes` the data are drawings of one to three objects, one token a pixel of 32x32 out of a palette of 64
colours: 1,024 of them, a length at which sparse masks can save time. On a CPU all use one thread. The last line is
JSON; `--out` writes the same to a file, and the curves to a PNG beside it.
"""

import json
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

import cli
from benchmarks.contest import Contestant, Point, compete
from benchmarks.plot import save_curves
from benchmarks.record import circumstances, hardware, rounded
from data.datamodule import PriorData
from data.samples import evaluation_picture
from data.settings import Loading, TextConfig
from data.shapes import ShapesConfig, ShapesSource
from encoding import encode_source
from precision import default_precision
from transformer.config import PRESETS, PriorConfig
from vqvae.palette import Palette, PaletteConfig, sample_pixels
from whole_files import write_object

BASE = "base"
VARIANTS: Mapping[str, dict[str, Any]] = {
    BASE: {"block": "modern", "masks": "sparse", "attend_pads": True},
    "base, another seed": {},
    "paper's block": {"block": "paper"},
    "dense": {"masks": "causal"},
    "pads skipped": {"attend_pads": False},
    "dense, pads skipped": {"masks": "causal", "attend_pads": False},
}
"""What each differs in from the first."""
OTHER_SEED = "base, another seed"
QUARTERS = (1, 2, 3, 4)
SIZES = {"n_layer": 4, "n_head": 3, "n_embd": 192}  # of configs/prior/demo.yaml, as are the usual step sizes
QUICK_SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 32}
COLOURS, PICTURES_OF_PALETTE, PIXELS_A_PICTURE = 64, 1_000, 64


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.device == "cpu":
        torch.set_num_threads(1)  # threads that wait for each other would be on the clock
    with tempfile.TemporaryDirectory() as folder:
        if args.codes is None:
            args.codes = f"{folder}/codes"
            encode_drawings(args.codes, quick=args.quick)
        data = open_data(args)
        variants = {name: make_variant(name, data, args) for name in args.only}
        print(f"{hardware(args.device)}, load average {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
        compete(variants)
        report(variants, data, args)


def parse_args(argv: Sequence[str] | None) -> Namespace:
    parser = cli.Parser(prog="python -m benchmarks.architectures", description=__doc__.splitlines()[0])
    parser.add_argument("--codes", help="a folder that encode.py wrote, in the place of drawings")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--minutes", type=float, default=5, help="of training, for each variant")
    parser.add_argument("--preset", choices=PRESETS, help="sizes of the prior; without: those of the demo's")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak step size of AdamW")
    parser.add_argument("--muon-lr", type=float, default=4e-3, help="peak step size of Muon on the blocks' matrices")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--text-len", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small models, about a second each")
    parser.add_argument("--out", type=Path, help="also write the JSON here, and the curves to a .png beside it")
    args = parser.parse_args(argv)
    args.val_count = 64
    for name in ("minutes", "lr", "muon_lr"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected more than 0")
    if args.quick:
        args.minutes, args.val_count = min(args.minutes, 0.02), 8
    return args


def open_data(args: Namespace) -> PriorData:
    text = TextConfig(text_len=args.text_len, vocab_size=512, bpe_dropout=0.0)
    loading = Loading(batch_size=args.batch_size, workers=0, seed=args.seed, val_count=args.val_count)
    data = PriorData(codes=args.codes, text=text, loading=loading)
    data.setup()
    return data


def encode_drawings(folder: str, *, quick: bool) -> None:
    """Writes the drawings' colours, of a palette fitted to the first of them, to `folder`."""
    side, count = (16, 400) if quick else (32, 10_000)
    source = ShapesSource(ShapesConfig(size=side, count=count))
    pictures = (evaluation_picture(source, i, side) for i in range(min(count, PICTURES_OF_PALETTE)))
    config = PaletteConfig(image_size=side, codebook_size=COLOURS)
    encode_source(source, Palette.fit(config, sample_pixels(pictures, PIXELS_A_PICTURE)), folder)


def make_variant(name: str, data: PriorData, args: Namespace) -> Contestant:
    """The other seed is one of starting values and dropped captions; the batches stay the same."""
    config = PriorConfig(
        text_len=args.text_len,
        text_vocab_size=data.text_tokenizer.vocab_size,
        codebook_size=data.source.codebook_size,
        grid_size=data.source.grid_size,
        **sizes(args),
        **VARIANTS[BASE] | VARIANTS[name],
    )
    seed = args.seed + (name == OTHER_SEED)
    return Contestant(config, data, Namespace(**vars(args) | {"seed": seed}))


def sizes(args: Namespace) -> dict[str, Any]:
    if args.quick:
        return QUICK_SIZES
    return {"preset": args.preset} if args.preset else SIZES


def at_quarters(points: Sequence[Point]) -> list[Point]:
    """Those where 25, 50, 75 and 100% of the time are spent."""
    return [points[quarter * (len(points) - 1) // 4] for quarter in QUARTERS]


def report(variants: Mapping[str, Contestant], data: PriorData, args: Namespace) -> None:
    print("\n| | weights | updates | ms an update | nats an image token at 25% | 50% | 75% | 100% | a text token |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, variant in variants.items():
        losses = " | ".join(f"{point.image:.4f}" for point in at_quarters(variant.curve))
        update = 1000 * variant.seconds / variant.updates
        text = variant.curve[-1].text
        print(f"| {name} | {weights(variant):,} | {variant.updates:,} | {update:.0f} | {losses} | {text:.3f} |")
    if args.quick:
        print("--quick says nothing of architectures")
    result = {
        "benchmark": "architectures",
        **circumstances(args.device),
        "clock": "processor time" if args.device == "cpu" else "wall time",
        "precision": default_precision(args.device),
        "settings": {name: value for name, value in vars(args).items() if name not in ("out", "codes")},
        "data": {
            "fingerprint": data.fingerprint,
            "image_tokenizer": data.source.fingerprint,
            "training_pictures": len(data.train_indices),
            "validation_pictures": len(data.val_indices),
            "grid_size": list(data.source.grid_size),
            "codebook_size": data.source.codebook_size,
        },
        "sizes": sizes(args),
        "variants": {name: summary(variant) for name, variant in variants.items()},
    }
    result = rounded(result)
    if args.out is not None:
        write_object(args.out, result)
        plot_curves(variants, args.out.with_suffix(".png"))
    print(json.dumps(result))


def plot_curves(variants: Mapping[str, Contestant], path: Path) -> None:
    """From the second quarter on: the first, where all fall from the uniform guess, would flatten the rest."""
    curves = {
        name: [(point.seconds, point.image) for point in variant.curve[len(variant.curve) // QUARTERS[-1] :]]
        for name, variant in variants.items()
    }
    save_curves(path, curves, x_label="seconds of training", y_label="nats an image token")


def weights(variant: Contestant) -> int:
    return sum(parameter.numel() for parameter in variant.prior.parameters())


def summary(variant: Contestant) -> dict[str, Any]:
    config = variant.prior.config
    return {
        "block": config.block,
        "masks": config.layer_kinds,
        "attend_pads": config.attend_pads,
        "seed": variant.seed,
        "parameters": weights(variant),
        "updates": variant.updates,
        "ms_per_update": 1000 * variant.seconds / variant.updates,
        "nats_image_at_quarters": [point.image for point in at_quarters(variant.curve)],
        "nats_text_at_quarters": [point.text for point in at_quarters(variant.curve)],
        "curve": [point._asdict() for point in variant.curve],
    }


if __name__ == "__main__":
    cli.run(main)
