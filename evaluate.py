"""Measure a tokenizer, best on pictures it has not seen.

    python evaluate.py tokenizer --model runs/my-tokenizer --data pictures --split val --out runs/my-tokenizer/val
    python evaluate.py tokenizer --model runs/palette --drawings.count 200 --drawings.size 64 --out report
    python evaluate.py tokenizer --model runs/my-tokenizer --data pictures --out report \\
        --lpips weights/lpips --inception default_1.pt

PSNR, SSIM, LPIPS, rFID, KID, the use of the codes, bits a pixel and pictures a second (evaluation/tokenizer.py). OUT
gets report.json and worst.png: pairs of picture and reconstruction, the largest error first.
"""

import logging
import sys
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

import cli
from data.settings import Loading
from data.shapes import ShapesConfig
from evaluation.tokenizer import evaluate_tokenizer


def parse(args: list[str]) -> Namespace:
    """The command line. Raises ValueError for a wrong one."""
    parser = ArgumentParser(prog="evaluate.py", description="Measure a model.", exit_on_error=False)
    subcommands = parser.add_subcommands()
    tokenizer = ArgumentParser(description="Reconstructions of an image tokenizer.", exit_on_error=False)
    tokenizer.add_argument("--model", type=str, required=True, help="run or model folder of the image tokenizer")
    tokenizer.add_argument("--data", type=str | None, help="a folder of pictures")
    tokenizer.add_argument("--drawings", type=ShapesConfig | None, help="the built-in ones: --drawings.count 200, ...")
    tokenizer.add_argument("--split", type=str | None, help="only what the data calls so: train, val or test")
    tokenizer.add_argument(
        "--val_fraction", type=float, default=Loading.val_fraction, help="as in training, where the data has no splits"
    )
    tokenizer.add_argument("--count", type=int | None, help="at most so many pictures, evenly spread")
    tokenizer.add_argument("--out", type=str, required=True, help="folder for the report")
    tokenizer.add_argument("--lpips", type=str | None, help="folder of converted LPIPS weights")
    tokenizer.add_argument("--lpips_net", type=str, default="alex", help="alex (the usual metric) or vgg")
    tokenizer.add_argument("--inception", type=str | None, help="file of the Inception network")
    tokenizer.add_argument("--batch_size", type=int, default=16)
    tokenizer.add_argument("--workers", type=int, default=0, help="processes that read pictures")
    tokenizer.add_argument("--device", type=str, default="cpu", help="cpu, cuda, cuda:1, ...")
    tokenizer.add_argument("--bf16", type=bool, default=False, help="encode and decode in bfloat16")
    tokenizer.add_argument(
        "--max_rejected", type=float, default=0.05, help="largest part of a folder that may be unusable"
    )
    subcommands.add_subcommand("tokenizer", tokenizer)
    try:
        return parser.instantiate(parser.parse_args(args))
    except ArgumentError as error:
        raise ValueError(str(error)) from error


def evaluate(args: list[str]) -> dict[str, Any]:
    """What `python evaluate.py ARGS` does; returns the report. Raises ValueError for wrong arguments or input."""
    parsed = parse(args)
    return evaluate_tokenizer(parsed[parsed.subcommand])


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(sys.argv) < 2:
        print(__doc__)
        sys.exit(2)
    evaluate(sys.argv[1:])


if __name__ == "__main__":
    cli.run(main)
