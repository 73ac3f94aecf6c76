"""Encode pictures once, so that the prior trains from their codes.

    python encode.py --tokenizer runs/my-tokenizer --folder pictures --out codes/pictures
    python encode.py --tokenizer runs/my-tokenizer --folder pictures --crops 8 --device cuda --devices 4 --out codes/8
    python encode.py --tokenizer runs/my-tokenizer --shards 'laion/{00000..00999}.tar' --out codes/laion
    python encode.py --tokenizer runs/my-tokenizer --drawings.count 20000 --drawings.size 64 --out codes/drawings
    python encode.py --verify codes/pictures
    python train.py prior fit --config small --data.codes codes/pictures --tokenizer runs/my-tokenizer --run runs/prior

Each picture is cropped to its middle square and encoded; captions, keys and splits come along. With --crops K each is
encoded K times, in other crops of the paper's augmentation too, of which training draws one each time.

Codes are written shard by shard. However an encoding ends (Ctrl-C, SIGTERM, kill -9, a full disk, power), the same
command goes on with the shards that are not there yet, on another number of devices if you like. Other pictures,
another tokenizer or other settings in a folder that was begun are refused. --verify reads every byte of a folder.
"""

import start_signals

if __name__ == "__main__":  # before what takes seconds to import
    start_signals.install()


import logging
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from types import FrameType, ModuleType

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from tqdm import tqdm

import cli
from data.codes import verify
from data.filters import Filters
from data.opening import check_drawn_large_enough, check_one_given, open_pictures
from data.pictures import PictureError
from data.rejects import Rejected
from data.settings import Loading
from data.shapes import ShapesConfig
from data.shards.config import ShardsConfig, shards_config
from encoding import EncodeConfig, Encoding, begin, encode_shards
from locks import only_writer
from pipeline import ImageTokenizer, usable_device
from resume_command import same_command
from vqvae.folders import load_image_tokenizer

VERIFY = "--verify"


def parse(args: list[str]) -> Namespace:
    """The command line. Raises ValueError for a wrong one."""
    parser = ArgumentParser(
        prog="encode.py",
        description="Pictures to an image tokenizer's codes; or, alone, --verify FOLDER: read every byte of it.",
        exit_on_error=False,
    )
    usual = EncodeConfig(workers=2)
    parser.add_argument("--tokenizer", type=str, required=True, help="run or model folder of the image tokenizer")
    parser.add_argument("--folder", type=str | None, help="one's own captioned pictures")
    parser.add_argument("--shards", type=str | ShardsConfig | None, help="tar shards: a path, or --shards.sets '[...]'")
    parser.add_argument("--drawings", type=ShapesConfig | None, help="the built-in ones: --drawings.count 20000, ...")
    parser.add_argument("--out", type=str, required=True, help="folder for the codes")
    parser.add_argument("--crops", type=int, default=usual.crops, help="of each picture; the first is its middle")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of the other crops")
    parser.add_argument("--rows_per_shard", type=int, default=usual.rows_per_shard, help="pictures in a file")
    parser.add_argument("--batch_size", type=int, default=usual.batch_size, help="pictures encoded at a time")
    parser.add_argument("--workers", type=int, default=usual.workers, help="processes that read, for each device")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--devices", type=int, default=1, help="so many GPUs or CPU processes")
    parser.add_argument("--filters", type=Filters, default=Filters(), help="what is left out though it is sound")
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
    """What `python encode.py ARGS` does. Raises ValueError for a wrong command line or wrong input.

    With several devices, sys.argv is run once more for each but the first: it has to be the script with these ARGS.
    """
    if VERIFY in args:
        verify_folder(args)
        return
    options = parse(args)
    check_one_given(folder=options.folder, drawings=options.drawings, shards=options.shards)
    config = EncodeConfig(**{field.name: getattr(options, field.name) for field in fields(EncodeConfig)})
    device = usable_device(options.device)
    cli.check_devices(device, options.devices)
    image_tokenizer = load_image_tokenizer(cli.model_folder(options.tokenizer))
    if options.devices > 1 and not _processes().is_first_process():
        _make(None, image_tokenizer, device, options.devices, args)
        return
    with only_writer(options.out), _going_on_after(args):
        _encode(options, config, image_tokenizer, device, args)


def verify_folder(args: list[str]) -> None:
    """Reads a whole folder of codes. Raises ValueError naming what is damaged."""
    if len(args) != 2 or args[0] != VERIFY:
        raise ValueError(f"got {shlex.join(args)}, expected {VERIFY} and a folder of codes, and nothing else")
    manifest = verify(args[1])
    print(f"{manifest.recipe.count:,} pictures in {len(manifest.shards):,} shards, all as they were written: {args[1]}")


def _encode(
    options: Namespace, config: EncodeConfig, image_tokenizer: ImageTokenizer, device: torch.device, args: list[str]
) -> None:
    check_drawn_large_enough(options.drawings, image_tokenizer.config.image_size)
    report = options.report or (f"{Path(options.out)}-rejects.json" if options.drawings is None else None)
    loading = Loading(max_rejected=options.max_rejected, report=report)
    pictures = {"shards": options.shards, "filters": options.filters}
    source = open_pictures(options.folder, options.drawings, loading, need_captions=True, **pictures)
    start = time.perf_counter()
    encoding = begin(source, image_tokenizer.to(device), options.out, config, _described(options))
    if encoding.pictures < len(source):
        there = len(source) - encoding.pictures
        said = "" if encoding.pictures else f"; {VERIFY} {options.out} reads every byte of them"
        print(f"{there:,} of {len(source):,} pictures are there already{said}", flush=True)
    _make(encoding, image_tokenizer, device, options.devices, args)
    codes = encoding.finish()
    height, width = codes.grid_size
    crops = f" of {codes.crops} crops" if codes.crops > 1 else ""
    print(
        f"{len(codes):,} pictures, {height}x{width} codes{crops} each, in {time.perf_counter() - start:.0f} s: "
        f"{options.out}"
    )


def _described(options: Namespace) -> str:
    if options.folder is not None:
        return f"folder {Path(options.folder).resolve().name}"
    if options.shards is not None:
        return f"shards {', '.join(Path(each.path).name for each in shards_config(options.shards).all_sets)}"
    return f"drawings {asdict(options.drawings)}"


def _make(
    encoding: Encoding | None, image_tokenizer: ImageTokenizer, device: torch.device, devices: int, args: list[str]
) -> None:
    """Makes shards; None: its share of those that the first process says."""

    def make(device: torch.device, share: Encoding) -> None:
        whose = f"device 1 of {devices}" if devices > 1 else "encoded"
        with tqdm(desc=whose, total=share.pictures, unit="", disable=encoding is None or None) as bar:
            encode_shards(share, image_tokenizer.to(device), bar.update)

    if devices == 1:
        make(device, encoding)
    else:
        _processes().do_on_devices(encoding, make, device.type, devices, _to_go_on(args))


def _processes() -> ModuleType:
    import device_processes  # and Lightning with it, which takes as long as some pictures do

    return device_processes


def _to_go_on(args: list[str]) -> str:
    return f"finished shards stay; to go on: {same_command('encode.py', args)}"


@contextmanager
def _going_on_after(args: list[str]) -> Iterator[None]:
    """Ends at a SIGTERM as at Ctrl-C, but with exit code 0; says what goes on where it ended before its end.

    Where a picture has gone or broken since it was checked, it has to be as it was first: others are other data.
    """
    terminated = False

    def terminate(signum: int, frame: FrameType | None) -> None:
        nonlocal terminated
        if not terminated:  # once: the second one comes while workers and other devices are being ended
            terminated = True
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except (KeyboardInterrupt, SystemExit, OSError):
        print(_to_go_on(args), flush=True)
        if not terminated:
            raise
    except (PictureError, Rejected):
        print(f"put the picture back as it was; {_to_go_on(args)}", flush=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(sys.argv) < 2:
        print(__doc__)
        sys.exit(2)
    encode(sys.argv[1:])


if __name__ == "__main__":
    cli.run(main)
