"""What a set holds: pictures, captions, splits, what is rejected and why, what repeats itself.

    python -m data.inspect pictures                          # a folder; also one that training would refuse
    python -m data.inspect "shards/{000..099}.tar"           # tar shards: one, a folder of them, a pattern
    python -m data.inspect codes/pictures                    # codes that encode.py wrote
    python -m data.inspect pictures --out looked-at          # report.json and contact.png there

Filters (--max_aspect_ratio 2, --min_caption_length 5, ...) show what would be left with them, and what they would take.

The exit code is 0 for a set that a prior can be trained on, 1 for one that training would refuse (shards damaged or
missing, pictures of codes damaged, no captions, too many rejects), after what there is has been shown, and 2 where
nothing can be, as of codes with a shard missing. Of codes, `encode.py --verify` reads every byte.
"""

import argparse
import json
import logging
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from data.code_manifest import MANIFEST, RECIPE
from data.codes import CodesSource
from data.filters import FilteredSource, Filters, NothingLeft
from data.folder import FolderSource, walk_files
from data.pictures import PICTURE_SUFFIXES, PictureError
from data.rejects import Rejected, Report
from data.shards.index import open_indexes
from data.shards.paths import check_shard, is_stream, named_shards
from data.shards.source import ShardsSource
from data.source import Source
from data.split import spread
from data.survey import survey_captions, survey_codes, survey_pictures, survey_splits
from data.text import TextTokenizer
from grids import captioned_grid, save_png
from whole_files import write_object

USUAL_MAX_REJECTED = 0.05
TILE = 128  # pixels a side of a picture on the contact sheet
COLUMNS = 8
LETTERS = 60  # of a name or a caption there
GREY, BROKEN = (160, 160, 160), (200, 60, 60)
REPORT, SHEET = "report.json", "contact.png"


def run(args: Sequence[str]) -> dict[str, Any]:
    """What `python -m data.inspect ARGS` prints, and its report; with "refused" where training would refuse the source.

    Raises ValueError for a wrong command line or a source that is none at all.
    """
    options = parse(args)
    filters = Filters(**{each.name: getattr(options, each.name) for each in fields(Filters)})
    count_tokens = None if options.tokenizer is None else _counter(options.tokenizer)
    if any((Path(options.source) / name).is_file() for name in (MANIFEST, RECIPE)):
        source, found = _codes(options.source, filters), {"kind": "codes"}
    else:
        source, found = _pictures(options.source, filters)
    if source is not None:
        rows = spread(torch.arange(len(source)), options.pictures).tolist()
        found |= {"samples": len(source), "splits": survey_splits(source)}
        found["captions"] = survey_captions(source, rows, count_tokens)
        if isinstance(source, CodesSource):
            found["codes"] = survey_codes(source, rows)
            if source.manifest.bare[0]:
                found["refused"] = f"{source.manifest.bare[0]:,} pictures without a caption"
            if damaged := [*found["captions"].get("first unreadable", ()), *found["codes"].get("first unreadable", ())]:
                found["refused"] = damaged[0]
        else:
            pictures = found["pictures"] = survey_pictures(source, rows, options.bits)
            if (broken := pictures["broken"] / max(1, pictures["looked at"])) > USUAL_MAX_REJECTED:
                found.setdefault("refused", f"{broken:.1%} broken, more than the usual {USUAL_MAX_REJECTED}")
    if options.out is not None:
        _write(options.out, found, source)
    return found


def parse(args: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a folder of pictures, tar shards, or a folder of codes")
    parser.add_argument("--out", type=Path, help=f"folder for {REPORT} and {SHEET}")
    parser.add_argument(
        "--tokenizer", help="a tokenizer.json, or a folder that holds it: captions are counted in tokens"
    )
    parser.add_argument("--pictures", type=int, default=20_000, help="samples looked at, evenly spread (20000)")
    parser.add_argument("--bits", type=int, default=3, help="of 64, in which near duplicates may differ (3)")
    parser.add_argument("--min_caption_length", type=int, help="in characters")
    parser.add_argument("--max_caption_length", type=int, help="in characters")
    parser.add_argument("--wanted_caption", help="MODULE:FUNCTION that says of a caption whether it is wanted")
    parser.add_argument("--max_aspect_ratio", type=float, help="of the longer to the shorter side; 2 in the paper")
    parser.add_argument("--near_duplicates", type=int, help="of 64 bits: leaves them out, as --data.filters does")
    options = parser.parse_args(args)
    if options.pictures < 1:
        raise ValueError(f"--pictures is {options.pictures}, expected at least 1")
    return options


def _counter(tokenizer: str) -> Callable[[str], int]:
    loaded = TextTokenizer.load(tokenizer)
    return lambda caption: len(loaded.encode(caption))


def _codes(folder: str, filters: Filters) -> CodesSource:
    if filters.any:
        raise ValueError(f"filters are given for the codes {folder}: pictures are filtered when they are encoded")
    return CodesSource(folder)


def _pictures(path: str, filters: Filters) -> tuple[Source | None, dict[str, Any]]:
    """The source with all that can be read of it, and its report; None where training could use nothing of it.

    Raises ValueError where there is nothing of that name, or it is a stream.
    """
    if is_stream(path):
        raise ValueError(f"{path}: streams are not looked at: store some of their shards on disk, and name those")
    folder = Path(path).expanduser()
    if not folder.exists() and "{" not in path:
        raise ValueError(f"{path}: no such file or folder")
    shards = not folder.is_dir() or (any(folder.glob("*.tar")) and not _has_pictures(folder))
    open_source = ShardsSource if shards else FolderSource
    found: dict[str, Any] = {"kind": "shards" if shards else "folder"}
    with tempfile.TemporaryDirectory() as place:
        settings = {"max_rejected": 1.0, "report": Path(place) / REPORT}
        for need_captions in (True, False):
            try:
                source = open_source(path if shards else folder, need_captions=need_captions, **settings)
            except ValueError as error:
                found.setdefault("refused", str(error))
                continue
            try:
                source = FilteredSource(source, filters, **settings) if filters.any else source
            except NothingLeft as error:
                found.setdefault("refused", str(error))
                break
            return source, _reported(source.report) | found
        with suppress(ValueError):  # another one than what is said already
            if shards and (sound := _sound_shards(path)) is not None:
                source = ShardsSource(sound, need_captions=False, max_rejected=1.0)
                return source, source.report.record() | found
        if settings["report"].is_file():
            found |= json.loads(settings["report"].read_text(encoding="utf-8"))
    return None, found


def _has_pictures(folder: Path) -> bool:
    """Other than the contact sheet of an earlier look."""
    return any(path.suffix.lower() in PICTURE_SUFFIXES and path.name != SHEET for path in walk_files(folder))


def _sound_shards(path: str) -> str | None:
    """A pattern of the shards that are whole, where others are damaged or missing; None where all are, or none is.

    They stay one set: as sets of their own they would be refused for a key that two of them have.
    """
    sound, paths = [], named_shards(path)
    for shard in dict.fromkeys(paths):
        with suppress(ValueError):  # named already, as what training would refuse
            check_shard(shard)
            open_indexes([shard], None, decode=False)
            sound.append(re.sub(r"([\\{},])", r"\\\1", str(shard)))
    if not 0 < len(sound) < len(paths):
        return None
    return f"{{{','.join(sound)}}}" if len(sound) > 1 else sound[0]


def _reported(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = report.record()
    if report.fraction > USUAL_MAX_REJECTED:
        found["refused"] = f"{report.fraction:.1%} rejected, more than the usual max_rejected={USUAL_MAX_REJECTED}"
    return found


def _write(out: Path, found: dict[str, Any], source: Source | CodesSource | None) -> None:
    """The report, and a contact sheet where there are pictures; each beside its place, then renamed."""
    write_object(out / REPORT, found)
    if source is not None and not isinstance(source, CodesSource):
        save_png(contact_sheet(source), out / SHEET)


def contact_sheet(source: Source) -> Image.Image:
    """64 pictures, evenly spread, whole on grey squares, each with its name and its first caption below."""
    groups = []
    for row in spread(torch.arange(len(source)), COLUMNS**2).tolist():
        try:
            caption = "".join(source.captions(row)[:1])[:LETTERS]
            picture = _on_a_square(source.image(row, TILE))
        except (PictureError, Rejected) as error:
            picture, caption = Image.new("RGB", (TILE, TILE), BROKEN), str(error)[:LETTERS]
        groups.append((f"{source.key(row)[-LETTERS:]} {caption}", [picture]))
    return captioned_grid(groups, columns=COLUMNS)


def _on_a_square(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.thumbnail((TILE, TILE), Image.Resampling.BOX)
    square = Image.new("RGB", (TILE, TILE), GREY)
    square.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
    return square


def lines(found: dict[str, Any]) -> list[str]:
    """A report in words, without its histograms and the long lists."""
    said = [f"{found['kind']}: {found.get('samples', 0):,} samples"]
    if "refused" in found:
        said.append(f"training would refuse it: {found['refused']}")
    for name in ("captions_from", "notes"):
        if found.get(name):
            said.append(
                f"{name.replace('_', ' ')}: {found[name] if isinstance(found[name], str) else '; '.join(found[name])}"
            )
    for name in ("rejected", "filtered"):
        if name in found:
            counts = found["counts" if name == "rejected" else "filtered_counts"]
            said.append(
                f"{name}: {found[name]:,}" + "".join(f"; {count:,} {reason}" for reason, count in counts.items())
            )
    if "splits" in found:
        said.append("splits: " + ", ".join(f"{count:,} {name}" for name, count in found["splits"].items()))
    for part in ("captions", "pictures", "codes"):
        said += [
            f"{part}: {name} {_in_words(value)}" for name, value in found.get(part, {}).items() if value not in ({}, [])
        ]
    return said


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each:,}" for name, each in value.items() if name != "histogram")
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        found = run(sys.argv[1:])
        print("\n".join(lines(found)).encode("utf-8", "backslashreplace").decode())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if "refused" in found:
        sys.exit(1)


if __name__ == "__main__":
    main()
