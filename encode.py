"""Encode pictures once, so that the prior trains from their codes.

    python encode.py --tokenizer runs/my-tokenizer --folder pictures --out codes/pictures
    python encode.py --tokenizer runs/my-tokenizer --drawings.count 20000 --drawings.size 64 --out codes/drawings
    python train.py prior fit --config small --data.codes codes/pictures --tokenizer runs/my-tokenizer --run runs/prior

Each picture is cropped to its middle square and encoded; captions, keys and splits come along. Codes cost a small part
of the time that pictures do, but show each picture in one crop only: the augmentation of training is not there.
"""

import logging
import sys
import time
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from tqdm import tqdm

import cli
from data.codes import refuse_existing
from data.opening import check_drawn_large_enough, check_one_given, open_pictures
from data.settings import Loading
from data.shapes import ShapesConfig
from encoding import encode_source
from pipeline import usable_device
from vqvae.folders import load_image_tokenizer


def parse(args: list[str]) -> Namespace:
    """The command line. Raises ValueError for a wrong one."""
    parser = ArgumentParser(
        prog="encode.py", description="Encode pictures as an image tokenizer's codes.", exit_on_error=False
    )
    parser.add_argument("--tokenizer", type=str, required=True, help="run or model folder of the image tokenizer")
    parser.add_argument("--folder", type=str | None, help="one's own captioned pictures")
    parser.add_argument("--drawings", type=ShapesConfig | None, help="the built-in ones: --drawings.count 20000, ...")
    parser.add_argument("--out", type=str, required=True, help="folder to make, for the codes")
    parser.add_argument("--batch_size", type=int, default=32, help="pictures encoded at a time")
    parser.add_argument("--workers", type=int, default=2, help="processes that read pictures")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--max_rejected", type=float, default=0.05, help="largest part of a folder that may be unusable"
    )
    parser.add_argument(
        "--report", type=str | None, help="a JSON file for the list of a folder's unusable files (OUT-rejects.json)"
    )
    try:
        return parser.instantiate(parser.parse_args(args))
    except ArgumentError as error:
        raise ValueError(str(error)) from error


def encode(args: list[str]) -> None:
    """What `python encode.py ARGS` does. Raises ValueError for a wrong command line or wrong input."""
    options = parse(args)
    check_one_given(folder=options.folder, drawings=options.drawings)
    loading = Loading(
        batch_size=options.batch_size,
        workers=options.workers,
        max_rejected=options.max_rejected,
        report=options.report or (f"{Path(options.out)}-rejects.json" if options.folder else None),
    )
    refuse_existing(options.out)
    device = usable_device(options.device)
    image_tokenizer = load_image_tokenizer(cli.model_folder(options.tokenizer)).to(device)
    image_size = image_tokenizer.config.image_size
    check_drawn_large_enough(options.drawings, image_size)
    source = open_pictures(options.folder, options.drawings, loading, need_captions=True)
    start = time.perf_counter()
    with tqdm(total=len(source), desc="encoded", unit="", disable=None) as bar:
        codes = encode_source(
            source,
            image_tokenizer,
            options.out,
            image_size=image_size,
            batch_size=loading.batch_size,
            workers=loading.workers,
            progress=lambda done, _: bar.update(done - bar.n),
        )
    height, width = codes.grid_size
    print(
        f"{len(codes):,} pictures, {height}x{width} codes each, in {time.perf_counter() - start:.0f} s: {options.out}"
    )


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(sys.argv) < 2:
        print(__doc__)
        sys.exit(2)
    encode(sys.argv[1:])


if __name__ == "__main__":
    cli.run(main)
