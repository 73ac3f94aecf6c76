"""Pieces -> a folder of pictures with `captions.csv`, held-out pairs and a report.

Interrupted, it goes on where it was: pictures are renamed into place when whole, the table and the report come last.
"""

import csv
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.prepare.packages import Package, PrepareError, sha256_of
from data.prepare.render import Unusable
from data.prepare.splits import Pair
from whole_files import write_object, written_beside

TABLE, REPORT, RECIPE, PAIRS = "captions.csv", "report.json", "recipe.json", "held_out_pairs.csv"
COLUMNS = ("file_name", "text", "split", "style", "concept", "licence", "source")
Make = Callable[[Any, int], bytes]  # (content, size) -> the picture's file
Job = tuple[Make, Any, int, Path]
EXAMPLES = 5  # of each reason for leaving a picture out, named in the report


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One picture to be made: a worker process writes what `make(content, size)` returns.

    `file_name` is relative, with "/" between folders, and its suffix fits what `make` returns.
    """

    file_name: str
    content: Any
    make: Make
    captions: tuple[str, ...]
    split: str
    style: str
    concept: str
    licence: str
    source: str

    @property
    def pair(self) -> Pair:
        return Pair(self.concept, self.style)


class Rejects:
    """What was left out and why: counts, and a few names of each reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        names = self.examples.setdefault(reason, [])
        if len(names) < EXAMPLES:
            names.append(name)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Count and examples by reason, the commonest first."""
        return {reason: {"count": n, "examples": self.examples[reason]} for reason, n in self.counts.most_common()}


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Where to, the pictures' side in pixels, and how many processes draw."""

    out: Path
    size: int
    workers: int = 2

    def __post_init__(self) -> None:
        if self.size < 8:
            raise ValueError(f"size must be at least 8 pixels, got {self.size}")
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")


@dataclass(frozen=True, kw_only=True)
class Collection:
    """All that a set is made of: pieces, the packages they come from, what was left out, and the pairs to hold out."""

    pieces: Sequence[Piece]
    packages: Sequence[Package]
    rejects: Rejects
    held_out: Set[Pair] = frozenset()
    renderer: str = ""


def build(collection: Collection, settings: BuildSettings) -> dict[str, Any]:
    """Makes the pictures that are not there yet, then the table, the held-out pairs and, last, the report it returns.

    A piece whose (concept, style) is held out gets the split "test". Raises PrepareError where the folder was begun
    with other packages, another size or another renderer, and ValueError where two pieces have one file name.
    """
    began = time.perf_counter()
    _refuse_twins(collection.pieces)
    begin(settings.out, settings.size, collection.packages, collection.renderer)
    made = _make_all(collection.pieces, settings, collection.rejects)
    different = _drop_same_pictures(made, settings.out, collection.rejects)
    pieces = [replace(piece, split="test") if piece.pair in collection.held_out else piece for piece in different]
    held_out = [piece for piece in pieces if piece.pair in collection.held_out]
    pair_rows = ((piece.concept, piece.style, piece.captions[0]) for piece in held_out)
    write_table(settings.out / PAIRS, ("concept", "style", "caption"), pair_rows)
    write_table(settings.out / TABLE, COLUMNS, (row for piece in pieces for row in _rows(piece)))
    report = {
        **count(pieces),
        "held_out_pairs": len({piece.pair for piece in held_out}),
        "size": settings.size,
        "rejects": collection.rejects.describe(),
        "packages": [package.describe() for package in collection.packages],
        "renderer": collection.renderer,
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_object(settings.out / REPORT, report)
    return report


def count(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Pictures, captions and concepts in all; pictures by split, by style, and by both."""
    both: dict[str, Counter[str]] = {}
    for piece in pieces:
        both.setdefault(piece.style, Counter())[piece.split] += 1
    return {
        "pictures": len(pieces),
        "captions": sum(len(piece.captions) for piece in pieces),
        "concepts": len({piece.concept for piece in pieces}),
        "splits": dict(Counter(piece.split for piece in pieces)),
        "styles": {style: splits.total() for style, splits in both.items()},
        "styles_by_split": {style: dict(splits) for style, splits in both.items()},
    }


def _rows(piece: Piece) -> Iterable[tuple[str, ...]]:
    """A row for each caption; one with an empty text for a picture that has none."""
    for caption in piece.captions or ("",):
        yield piece.file_name, caption, piece.split, piece.style, piece.concept, piece.licence, piece.source


def _refuse_twins(pieces: Iterable[Piece]) -> None:
    for name, times in Counter(piece.file_name for piece in pieces).items():
        if times > 1:
            raise ValueError(f"{times} pictures would be written to {name}; file names must differ")


def begin(out: Path, size: int, packages: Iterable[Package], renderer: str) -> None:
    """Notes what the folder is made from and with; PrepareError where it was begun with something else.

    Packages may join.
    """
    path = out / RECIPE
    now = {"size": size, "renderer": renderer, "packages": {package.file: package.sha256 for package in packages}}
    if path.exists():
        found = _read_recipe(path)
        # The first recipes did not name the renderer.
        same = found["size"] == size and found.get("renderer", renderer) == renderer
        if not same or not found["packages"].items() <= now["packages"].items():
            raise PrepareError(f"{path}: begun with {found}, but now asked for is {now}; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_object(path, now)


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        recipe = None
    if not isinstance(recipe, dict) or "size" not in recipe or not isinstance(recipe.get("packages"), dict):
        raise PrepareError(f"{path}: damaged, so nobody knows what the folder was begun with; choose another folder")
    return recipe


def _make_all(pieces: Sequence[Piece], settings: BuildSettings, rejects: Rejects) -> list[Piece]:
    """The pieces whose picture is on disk at the end, in the order of `pieces`, whoever made them."""
    todo = [piece for piece in pieces if not _is_made(settings.out / piece.file_name)]
    jobs = [(piece.make, piece.content, settings.size, settings.out / piece.file_name) for piece in todo]
    failed = set()
    with tqdm(total=len(pieces), initial=len(pieces) - len(todo), desc="pictures", unit="", disable=None) as bar:
        for piece, reason in zip(todo, _outcomes(jobs, settings.workers), strict=True):
            if reason is not None:
                rejects.add(reason, piece.file_name)
                failed.add(piece.file_name)
            bar.update()
    return [piece for piece in pieces if piece.file_name not in failed]


def _is_made(path: Path) -> bool:
    """After a power cut there may be names of pictures whose content never came to the disk."""
    return path.is_file() and path.stat().st_size > 0


def _outcomes(jobs: Sequence[Job], workers: int) -> Iterator[str | None]:
    """For each job, in order, None or why there is no picture. One worker is this process."""
    if workers == 1:
        yield from map(_make_one, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_ignore_ctrl_c) as pool:
        yield from pool.map(_make_one, jobs, chunksize=16)


def _ignore_ctrl_c() -> None:
    """The terminal tells all processes of it; the one that waits for the others ends them and says so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _make_one(job: Job) -> str | None:
    make, content, size, path = job
    try:
        picture = make(content, size)
    except Unusable as reason:
        return str(reason)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.part")
    beside.write_bytes(picture)
    beside.replace(path)  # not synced, which takes twenty times as long: it can be made again
    return None


def _drop_same_pictures(pieces: Iterable[Piece], out: Path, rejects: Rejects) -> list[Piece]:
    """Of pictures that are the same to the byte the first stays: a twin could sit on the other side of a split."""
    kept: dict[str, Piece] = {}
    for piece in pieces:
        path = out / piece.file_name
        if kept.setdefault(sha256_of(path), piece) is not piece:
            rejects.add("same picture as another", piece.file_name)
            path.unlink()
    return list(kept.values())


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """CSV in UTF-8, written beside and renamed."""
    with written_beside(path) as part, part.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
