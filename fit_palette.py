"""Fit Image GPT's palette: a tokenizer of one token a pixel, in a minute, to compare learnt codes with.

    python fit_palette.py --folder pictures --out runs/palette
    python fit_palette.py --drawings.count 2000 --drawings.size 32 --codebook_size 64 --out runs/palette
    python train.py prior fit --config small --data.folder pictures --tokenizer runs/palette --run runs/pixel-prior

Of the pictures that a training would see, the middle squares are made `image_size` pixels wide, and k-means finds
`codebook_size` colours among their pixels. The prior's sequence is as long as a picture has pixels: 1,024 at the
default of 32.
"""

import start_signals

if __name__ == "__main__":  # before what takes seconds to import
    start_signals.install()


import logging
import sys
import time
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from tqdm import tqdm

import cli
from data.filters import Filters
from data.opening import check_drawn_large_enough, check_one_given, open_pictures
from data.samples import evaluation_picture
from data.settings import Loading
from data.shapes import ShapesConfig
from data.shards.config import ShardsConfig
from data.split import split_by_key
from vqvae.palette import Palette, PaletteConfig, sample_pixels

PIXELS = 1_000_000  # that k-means sees at most


def parse(args: list[str]) -> Namespace:
    """The command line. Raises ValueError for a wrong one."""
    parser = ArgumentParser(prog="fit_palette.py", description="Fit a palette of colours.", exit_on_error=False)
    parser.add_argument("--folder", type=str | None, help="one's own pictures")
    parser.add_argument("--shards", type=str | ShardsConfig | None, help="tar shards: a path, or --shards.sets '[...]'")
    parser.add_argument("--filters", type=Filters, default=Filters(), help="what is left out though it is sound")
    parser.add_argument("--drawings", type=ShapesConfig | None, help="the built-in ones: --drawings.count 2000, ...")
    parser.add_argument("--out", type=str, required=True, help="model folder to make")
    parser.add_argument("--image_size", type=int, default=32, help="side of the pictures, in pixels and in tokens")
    parser.add_argument("--codebook_size", type=int, default=512, help="colours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--val_fraction", type=float, default=Loading.val_fraction, help="held back where the data has no splits"
    )
    parser.add_argument(
        "--max_rejected", type=float, default=0.05, help="largest part of a folder that may be unusable"
    )
    try:
        return parser.instantiate(parser.parse_args(args))
    except ArgumentError as error:
        raise ValueError(str(error)) from error


def fit_palette(args: list[str]) -> None:
    """What `python fit_palette.py ARGS` does. Raises ValueError for a wrong command line or wrong input."""
    options = parse(args)
    check_one_given(folder=options.folder, drawings=options.drawings, shards=options.shards)
    config = PaletteConfig(image_size=options.image_size, codebook_size=options.codebook_size)
    if Path(options.out).exists():
        raise ValueError(f"{options.out} exists already: name another --out")
    check_drawn_large_enough(options.drawings, config.image_size)
    loading = Loading(
        max_rejected=options.max_rejected,
        val_fraction=options.val_fraction,
        report=f"{options.out}-rejects.json" if options.drawings is None else None,
    )
    pictures = {"shards": options.shards, "filters": options.filters}
    source = open_pictures(options.folder, options.drawings, loading, need_captions=False, **pictures)
    start = time.perf_counter()
    train = split_by_key(source, options.val_fraction)[0].tolist()
    if not train:
        raise ValueError(f"{len(source):,} pictures and none to fit on: all are held back")
    pictures = (evaluation_picture(source, i, config.image_size) for i in tqdm(train, "read", disable=None))
    pixels = sample_pixels(pictures, max(1, PIXELS // max(len(train), 1)), options.seed)
    palette = Palette.fit(config, pixels, seed=options.seed)
    error = (palette.colours[palette.encode(pixels.t()[None, :, :, None])[0, :, 0]] - pixels).square().mean()
    palette.save_pretrained(options.out)
    seconds = time.perf_counter() - start
    psnr = -10 * error.log10().item()
    print(f"{config.codebook_size} colours of {len(pixels):,} pixels, {psnr:.1f} dB, {seconds:.0f} s: {options.out}")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(sys.argv) < 2:
        print(__doc__)
        sys.exit(2)
    fit_palette(sys.argv[1:])


if __name__ == "__main__":
    cli.run(main)
