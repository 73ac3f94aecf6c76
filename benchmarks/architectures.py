"""Does the architecture earn its keep: which block, which masks, and pads seen or skipped, at equal time?

Trains a prior of each kind on the same batches for the same time, and follows the validation loss of image and text
tokens. One change at a time from the defaults of `PriorConfig`, and once two; a second run of the defaults from another
seed shows what chance does alone.

    python -m benchmarks.architectures --minutes 5 --out benchmarks/results/architectures-cpu.json
    python -m benchmarks.architectures --codes runs/demo/codes --batch-size 16 --text-len 12    # codes of one's own
    python -m benchmarks.architectures --quick    # seconds: that it runs; says nothing of architectures

Without `--codes` the data are drawings of one to three objects, one token a pixel of 32x32 out of a palette of 64
colours: 1,024 of them, a length at which sparse masks can save time. The clock is the processor time of this process on
one thread, training only. The variants take turns of some 10 s of 5 minutes, in an order that changes, so that
whatever else the machine does hits all alike, and the step size follows the clock. The last line is JSON; `--out`
writes the same to a file.
"""

import json
import os
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

import cli
from benchmarks.blocks import Contestant, open_data
from benchmarks.record import circumstances, hardware, rounded, write_json
from data.datamodule import PriorData
from data.shapes import ShapesConfig, ShapesSource
from data.transforms import evaluation_crop
from encoding import encode_source
from transformer.config import PriorConfig
from transformer.embeddings import PAD
from vqvae.palette import Palette, PaletteConfig, sample_pixels

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
TURNS = 32  # of each
VALIDATE_EVERY = 4  # turns: a validation of 64 pictures takes as long as half a turn
QUARTERS = (1, 2, 3, 4)
SIZES = {"n_layer": 4, "n_head": 3, "n_embd": 192}  # of configs/prior/demo.yaml, as are the step sizes below
QUICK_SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 32}
LR, MUON_LR = 2e-3, 4e-3
COLOURS, PICTURES_OF_PALETTE, PIXELS_A_PICTURE = 64, 1_000, 64


class Point(NamedTuple):
    """Of a curve: processor seconds of training, updates, and validation losses in nats a token."""

    seconds: float
    updates: int
    image: float
    text: float


class Variant(Contestant):
    """A contestant of blocks.py whose clock is the process's, and which is validated on text tokens too."""

    def __init__(self, config: PriorConfig, data: PriorData, args: Namespace) -> None:
        super().__init__(config, data, args)
        self.points: list[Point] = []

    def train_until(self, seconds: float) -> None:
        """Updates, until so many seconds of processor time have been spent on them in all."""
        self.prior.train()
        while self.seconds < seconds:
            tokens = self._on_device(next(self.batches))
            start = time.process_time()
            self._step(*tokens)
            self.seconds += time.process_time() - start
            self.steps += 1

    @torch.no_grad()
    def validate(self) -> Point:
        """Adds a point and returns it: means over all tokens, pads aside."""
        self.prior.eval()
        image, pictures, text, words = 0.0, 0, 0.0, 0
        for batch in self.validation:
            text_tokens, image_tokens = self._on_device(batch)
            loss, count = self._loss(text_tokens, image_tokens), int((text_tokens != PAD).sum())
            image, pictures = image + float(loss.image) * len(image_tokens), pictures + len(image_tokens)
            text, words = text + float(loss.text) * count, words + count
        self.points.append(Point(self.seconds, self.steps, image / pictures, text / words))
        return self.points[-1]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.codes is None:
            args.codes = f"{folder}/codes"
            encode_drawings(args.codes, quick=args.quick)
        data = open_data(args)
        variants = {name: make_variant(name, data, args) for name in VARIANTS}
        print(f"{hardware('cpu')}, one thread, load average {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
        compete(variants, 60 * args.minutes)
        report(variants, data, args)


def parse_args(argv: Sequence[str] | None) -> Namespace:
    parser = cli.Parser(prog="python -m benchmarks.architectures", description=__doc__.splitlines()[0])
    parser.add_argument("--codes", help="a folder that encode.py wrote, in the place of drawings")
    parser.add_argument("--minutes", type=float, default=5, help="of processor time, for each variant")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--text-len", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="small models, about a second each")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.set_defaults(lr=LR, muon_lr=MUON_LR, vocab_size=512, val_count=64, device="cpu")
    args = parser.parse_args(argv)
    if not args.minutes > 0:
        parser.error(f"--minutes is {args.minutes}, expected more than 0")
    if args.quick:
        args.minutes, args.val_count = min(args.minutes, 0.02), 8
    return args


def encode_drawings(folder: str, *, quick: bool) -> None:
    """Writes the drawings' colours, of a palette fitted to the first of them, to `folder`."""
    side, count = (16, 400) if quick else (32, 10_000)
    source = ShapesSource(ShapesConfig(size=side, count=count))
    pictures = (evaluation_crop(source.image(i), side) for i in range(min(count, PICTURES_OF_PALETTE)))
    config = PaletteConfig(image_size=side, codebook_size=COLOURS)
    encode_source(source, Palette.fit(config, sample_pixels(pictures, PIXELS_A_PICTURE)), folder, image_size=side)


def make_variant(name: str, data: PriorData, args: Namespace) -> Variant:
    """The other seed is one of starting values and dropped captions; the batches stay the same."""
    config = PriorConfig(
        text_len=args.text_len,
        text_vocab_size=data.text_tokenizer.vocab_size,
        codebook_size=data.source.codebook_size,
        grid_size=data.source.grid_size,
        **(QUICK_SIZES if args.quick else SIZES),
        **VARIANTS[BASE] | VARIANTS[name],
    )
    seed = args.seed + (name == OTHER_SEED)
    return Variant(config, data, Namespace(**vars(args) | {"seed": seed}))


def compete(variants: Mapping[str, Variant], budget: float) -> None:
    """Turns until the time of each, `budget` seconds, is used up; a validation after some of them."""
    order = list(variants.values())
    for variant in order:
        variant.validate()
    for turn in range(1, TURNS + 1):
        for variant in order:
            variant.train_until(budget * turn / TURNS)
            if turn % VALIDATE_EVERY == 0:
                variant.validate()
        order.reverse()
        if turn % VALIDATE_EVERY == 0:
            losses = "   ".join(f"{name} {variant.points[-1].image:.4f}" for name, variant in variants.items())
            print(f"{budget * turn / TURNS:6.1f} s: {losses}", flush=True)


def at_quarters(points: Sequence[Point]) -> list[Point]:
    """Those where 25, 50, 75 and 100% of the time are spent."""
    return [points[quarter * (len(points) - 1) // 4] for quarter in QUARTERS]


def report(variants: Mapping[str, Variant], data: PriorData, args: Namespace) -> None:
    print("\n| | weights | updates | ms an update | nats an image token at 25% | 50% | 75% | 100% | a text token |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, variant in variants.items():
        losses = " | ".join(f"{point.image:.4f}" for point in at_quarters(variant.points))
        update = 1000 * variant.seconds / variant.steps
        text = variant.points[-1].text
        print(f"| {name} | {weights(variant):,} | {variant.steps:,} | {update:.0f} | {losses} | {text:.3f} |")
    if args.quick:
        print("--quick says nothing of architectures")
    result = {
        "benchmark": "architectures",
        **circumstances("cpu"),
        "clock": "processor time",
        "precision": "bf16-mixed" if variants[BASE].autocast else "32-true",
        "settings": {name: value for name, value in vars(args).items() if name not in ("out", "codes")},
        "data": {
            "fingerprint": data.fingerprint,
            "image_tokenizer": data.source.fingerprint,
            "training_pictures": len(data.train_indices),
            "validation_pictures": len(data.val_indices),
            "grid_size": list(data.source.grid_size),
            "codebook_size": data.source.codebook_size,
        },
        "sizes": QUICK_SIZES if args.quick else SIZES,
        "variants": {name: summary(variant) for name, variant in variants.items()},
    }
    result = rounded(result)
    if args.out is not None:
        write_json(args.out, result)
    print(json.dumps(result))


def weights(variant: Variant) -> int:
    return sum(parameter.numel() for parameter in variant.prior.parameters())


def summary(variant: Variant) -> dict[str, Any]:
    config = variant.prior.config
    return {
        "block": config.block,
        "masks": config.layer_kinds,
        "attend_pads": config.attend_pads,
        "seed": variant.seed,
        "parameters": weights(variant),
        "updates": variant.steps,
        "ms_per_update": 1000 * variant.seconds / variant.steps,
        "nats_image_at_quarters": [point.image for point in at_quarters(variant.points)],
        "nats_text_at_quarters": [point.text for point in at_quarters(variant.points)],
        "curve": [point._asdict() for point in variant.points],
    }


if __name__ == "__main__":
    cli.run(main)
