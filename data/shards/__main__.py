"""Write a folder of captioned pictures as WebDataset tar shards.

    python -m data.shards pack pictures --out shards/pictures --size 1000

What is in them, packing.py says. `--data.shards shards/pictures` trains from them.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from data.folder import FolderSource
from data.shards.packing import pack, refuse_existing


def run(args: Sequence[str]) -> None:
    """What `python -m data.shards ARGS` does. Raises ValueError for a folder that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m data.shards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    packing = parser.add_subparsers(dest="command", required=True).add_parser("pack", help="a folder to shards")
    packing.add_argument("folder", help="captioned pictures")
    packing.add_argument("--out", required=True, help="folder to make, for the shards")
    packing.add_argument("--size", type=int, default=1000, help="pictures a shard (1000)")
    packing.add_argument("--no_captions", action="store_true", help="pictures without a caption are packed too")
    packing.add_argument("--max_rejected", type=float, default=0.05, help="largest part that may be unusable (0.05)")
    options = parser.parse_args(args)
    refuse_existing(options.out)
    source = FolderSource(
        options.folder,
        need_captions=not options.no_captions,
        max_rejected=options.max_rejected,
        report=f"{Path(options.out)}-rejects.json",  # beside it, also where a slash ends the name
    )
    shards = pack(source, options.out, size=options.size)
    print(f"{len(source):,} pictures in {shards:,} shards: {options.out}")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
