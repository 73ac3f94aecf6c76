"""The command line of sample.py: what can be asked for, and what is wrong before anything is loaded or started."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

import cli
from pipeline import BATCH_SIZE, usable_device
from sample_files import Sample
from transformer.sampling import GUIDANCE_SCHEDULES, SamplingConfig
from transformer.serving import WEIGHTS

STAGES = 5  # about so many of a picture are shown unless told otherwise
RULES = ("keep_rows", "mask", "strength")


def parse(args: Sequence[str], about: str) -> argparse.Namespace:
    """Checked options, with the name of a device where none was asked for.

    Raises ValueError for a wrong command line.

    Args:
        about: what the help says of the script: a line, and all else.
    """
    options = _parser(about).parse_intermixed_args(args)
    _check(options)
    return options


def _parser(about: str) -> cli.Parser:
    summary, _, rest = about.partition("\n")
    parser = cli.Parser(
        prog="sample.py", description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = SamplingConfig()
    parser.add_argument("caption", nargs="*", help="captions; - reads them from standard input, one a line")
    parser.add_argument("--captions", metavar="FILE", help="a file of captions, one a line; - is standard input")
    parser.add_argument("--model", required=True, help="run of a prior, or the model folder it exported")
    parser.add_argument("--n", type=int, default=4, help="pictures a caption (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of a caption's first picture (%(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=usual.temperature, help="0 takes the likeliest code (%(default)s)"
    )
    parser.add_argument("--top_k", type=int, help="draw from so many of the likeliest codes only")
    parser.add_argument("--top_p", type=float, help="draw from the fewest codes that have this probability together")
    parser.add_argument(
        "--min_p", type=float, help="draw from codes with at least this part of the likeliest one's chance"
    )
    parser.add_argument(
        "--guidance_scale", type=float, default=usual.guidance_scale, help="above 1: closer to captions (%(default)s)"
    )
    parser.add_argument(
        "--guidance_schedule",
        choices=GUIDANCE_SCHEDULES,
        default=usual.guidance_schedule,
        help="how guidance grows from a picture's first code, not guided, to its last (%(default)s)",
    )
    parser.add_argument("--keep", type=int, metavar="K", help="keep the K best of a caption's n pictures")
    parser.add_argument(
        "--clip", metavar="FOLDER", help="choose them by this model of open_clip instead of by the prior itself"
    )
    parser.add_argument(
        "--clip_architecture", metavar="NAME", help="where --clip is a checkpoint file: what open_clip calls its model"
    )
    parser.add_argument("--picture", metavar="FILE", help="a picture of which a part is kept, by one of the next three")
    parser.add_argument(
        "--keep_rows", type=int, metavar="N", help="keep its first N rows of pixels, once it is resized"
    )
    parser.add_argument("--mask", metavar="FILE", help="keep it where this picture is black, draw where it is white")
    parser.add_argument("--strength", type=float, metavar="S", help="draw each of its codes with the chance S, 0 to 1")
    parser.add_argument("--stream", action="store_true", help="show pictures while they are drawn")
    parser.add_argument(
        "--stream_rows", type=int, metavar="K", help=f"after every K rows of codes (about {STAGES} times a picture)"
    )
    parser.add_argument("--out", type=Path, default=Path("samples"), metavar="DIR", help="where to write (%(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (cuda where there is one, else cpu)")
    parser.add_argument("--devices", type=int, default=1, help="so many GPUs or CPU processes (%(default)s)")
    parser.add_argument(
        "--batch_size", type=int, default=BATCH_SIZE, help="pictures a device draws at a time (%(default)s)"
    )
    parser.add_argument(
        "--weights", choices=WEIGHTS, default=Sample.weights, help="the prior's weights as these (%(default)s)"
    )
    parser.add_argument("--compile", action="store_true", help="compile the drawing of a code: quicker after a minute")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError; names the device where none was asked for."""
    device = usable_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options.device = str(device)
    if options.batch_size < 1:
        raise ValueError(f"batch_size is {options.batch_size}, expected at least 1")
    for name in RULES if options.picture is None else ():
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} says what is kept of a picture: expected --picture FILE too")
    if options.stream_rows is not None and not options.stream:
        raise ValueError(f"stream_rows is {options.stream_rows}, expected --stream too")
    if options.stream_rows is not None and options.stream_rows < 1:
        raise ValueError(f"stream_rows is {options.stream_rows}, expected at least 1")
    if options.guidance_schedule != SamplingConfig.guidance_schedule and options.guidance_scale == 1:
        raise ValueError(
            f"guidance_schedule is {options.guidance_schedule}, expected a --guidance_scale other than 1 too"
        )
    _check_ranking(options)
    cli.check_devices(device, options.devices)


def _check_ranking(options: argparse.Namespace) -> None:
    if options.keep is not None and not 1 <= options.keep <= options.n:
        raise ValueError(f"keep is {options.keep}, expected 1 to the number of pictures a caption, --n {options.n}")
    if options.clip is not None and options.keep is None:
        raise ValueError(f"--clip {options.clip} is to choose among pictures: expected --keep K too")
    if options.clip_architecture is not None and options.clip is None:
        raise ValueError(f"--clip_architecture is {options.clip_architecture}, expected --clip FILE too")
