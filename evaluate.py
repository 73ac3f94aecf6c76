"""Measure a tokenizer or a prior, best on pictures it has not seen.

    python evaluate.py tokenizer --model runs/my-tokenizer --data pictures --split val --out runs/my-tokenizer/val
    python evaluate.py tokenizer --model runs/palette --drawings.count 200 --drawings.size 64 --out report
    python evaluate.py tokenizer --model runs/my-tokenizer --data pictures --out report \\
        --lpips weights/lpips --inception default_1.pt

    python evaluate.py prior --model runs/my-prior --data pictures --split val --out runs/my-prior/val
    python evaluate.py prior --model runs/my-prior --codes runs/my-codes --split val --weights bfloat16 --out report
    python evaluate.py prior --model runs/demo/prior --out report --samples 128 --n 4 --guidance_scale 1 3 \\
        --drawings.size 40 --drawings.count 500 --drawings.max_objects 1 --drawings.backgrounds plain --drawings.seed 11

Of a tokenizer: PSNR, SSIM, LPIPS, rFID, KID, the use of the codes, bits a pixel and pictures a second
(evaluation/tokenizer.py). OUT gets report.json and worst.png: pairs of picture and reconstruction, the largest error
first. Of a prior: nats and bits a token of pictures, with and without their captions, and of captions, milliseconds of
each layer and of a token of sampling, and where the captions are those of drawings, how many samples show what they
say, at each guidance scale, all of them and the best of n by the prior itself (evaluation/prior.py). OUT gets
report.json and positions.png: the nats at each place of the picture.
"""

import start_signals

if __name__ == "__main__":  # before what takes seconds to import
    start_signals.install()


import logging
import sys
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

import cli
from data.filters import Filters
from data.settings import Loading
from data.shapes import ShapesConfig
from data.shards.config import ShardsConfig
from data.worker_signals import killed_workers_said
from evaluation.prior import evaluate_prior
from evaluation.tokenizer import evaluate_tokenizer
from transformer.sampling import GuidanceSchedule, SamplingConfig
from transformer.serving import Weights


def parse(args: list[str]) -> Namespace:
    """The command line. Raises ValueError for a wrong one."""
    parser = ArgumentParser(prog="evaluate.py", description="Measure a model.", exit_on_error=False)
    subcommands = parser.add_subcommands()
    subcommands.add_subcommand("tokenizer", _tokenizer_parser())
    subcommands.add_subcommand("prior", _prior_parser())
    try:
        return parser.instantiate(parser.parse_args(args))
    except ArgumentError as error:
        raise ValueError(str(error)) from error


def _parser(of: str, description: str) -> ArgumentParser:
    """With what all reports are told."""
    parser = ArgumentParser(description=description, exit_on_error=False)
    parser.add_argument("--model", type=str, required=True, help=f"run or model folder of the {of}")
    parser.add_argument("--data", type=str | None, help="a folder of pictures")
    parser.add_argument("--drawings", type=ShapesConfig | None, help="the built-in ones: --drawings.count 200, ...")
    parser.add_argument("--filters", type=Filters, default=Filters(), help="what is left out, as in training")
    parser.add_argument("--split", type=str | None, help="only what the data calls so: train, val or test")
    parser.add_argument(
        "--val_fraction", type=float, default=Loading.val_fraction, help="as in training, where the data has no splits"
    )
    parser.add_argument("--count", type=int | None, help="at most so many pictures, evenly spread")
    parser.add_argument("--out", type=str, required=True, help="folder for the report")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--max_rejected", type=float, default=0.05, help="largest part of a folder that may be unusable"
    )
    return parser


def _tokenizer_parser() -> ArgumentParser:
    parser = _parser("image tokenizer", "Reconstructions of an image tokenizer.")
    parser.add_argument("--shards", type=str | ShardsConfig | None, help="tar shards, in the place of --data")
    parser.add_argument("--lpips", type=str | None, help="folder of converted LPIPS weights")
    parser.add_argument("--lpips_net", type=str, default="alex", help="alex (the usual metric) or vgg")
    parser.add_argument("--inception", type=str | None, help="file of the Inception network")
    parser.add_argument("--bf16", type=bool, default=False, help="encode and decode in bfloat16")
    return parser


def _prior_parser() -> ArgumentParser:
    parser, usual = _parser("prior", "Likelihoods, times and samples of a prior."), SamplingConfig()
    parser.add_argument("--codes", type=str | None, help="a folder of encode.py, in the place of --data")
    parser.add_argument("--weights", type=Weights, default="float32", help="of the prior: float32, bfloat16 or int8")
    parser.add_argument("--samples", type=int | None, help="captions of drawings to sample from and judge; 64, if any")
    parser.add_argument("--n", type=int, default=1, help="pictures a caption; from 2 on, the best are judged too")
    parser.add_argument("--clip", type=str | None, help="folder of an open_clip model, to choose by beside the prior")
    parser.add_argument(
        "--clip_architecture", type=str | None, help="where it is a checkpoint file: what open_clip calls its model"
    )
    parser.add_argument("--guidance_scale", type=float, nargs="+", default=[1.0, 3.0], help="one or more; 1 is none")
    parser.add_argument("--seed", type=int, default=0, help="of the first sample; each has the next one")
    parser.add_argument("--temperature", type=float, default=usual.temperature)
    parser.add_argument("--top_k", type=int | None, help="sample from so many of the likeliest codes only")
    parser.add_argument("--top_p", type=float | None, help="from the fewest codes that have this probability together")
    parser.add_argument("--min_p", type=float | None, help="from codes with this part of the likeliest one's chance")
    parser.add_argument("--guidance_schedule", type=GuidanceSchedule, default=usual.guidance_schedule)
    parser.add_argument("--compile", type=bool, default=False, help="have the steps that sample compiled")
    return parser


REPORTS = {"tokenizer": evaluate_tokenizer, "prior": evaluate_prior}


def evaluate(args: list[str]) -> dict[str, Any]:
    """What `python evaluate.py ARGS` does; returns the report. Raises ValueError for wrong arguments or input."""
    parsed = parse(args)
    with killed_workers_said():
        return REPORTS[parsed.subcommand](parsed[parsed.subcommand])


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(sys.argv) < 2:
        print(__doc__)
        sys.exit(2)
    evaluate(sys.argv[1:])


if __name__ == "__main__":
    cli.run(main)
