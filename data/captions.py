"""Captions of a folder of pictures: which files hold them, and what they say of which picture.

Three layouts are known; the first one found is read:

1. a table, `captions.csv`, `.tsv`, `.jsonl` or `metadata.csv`, `.jsonl`, in the folder, or one in each of `train/`,
   `validation/`, `test/` as Hugging Face's imagefolder has it (caption_tables.py);
2. a `.txt` beside each picture, one caption a line;
3. COCO's `captions_*.json`, in the folder or in `annotations/` (coco.py).

A mistake in the form of a table is a ValueError; a caption whose picture is not there, or a picture whose `.txt` cannot
be read, is a reject.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.caption_tables import SPLITS, Row, SplitError, is_absolute, read_text, same_form, table_rows
from data.coco import coco_rows, is_annotations
from data.pictures import PICTURE_SUFFIXES
from data.rejects import Reason, Reject
from data.text import is_visible

TABLES = ("captions.csv", "captions.tsv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
LOOKED_FOR = (
    f"a table ({', '.join(TABLES)}; columns file_name and text), a .txt beside each picture, "
    "or COCO's captions_*.json (here or in annotations/)"
)
_NOT_CAPTIONS = {"readme", "license", "licence", "notice"}  # .txt files that often lie about
_LINE_END = re.compile(r"\r\n|\r|\n")  # str.splitlines() would also cut at U+2028 and the like


@dataclass(frozen=True, kw_only=True)
class Captions:
    """What the caption files of one folder say, by picture (its path relative to the folder)."""

    origin: str  # names the files they were read from
    by_picture: dict[str, tuple[str, ...]]  # also pictures that are named with empty captions only: ()
    splits: dict[str, str]  # "train", "val" or "test", of the pictures that have one
    rejects: tuple[Reject, ...]
    doubled: int  # captions given twice for a picture and kept once
    notes: tuple[str, ...]


def read_captions(
    folder: Path, pictures: Sequence[str], others: AbstractSet[str], *, need_text: bool
) -> Captions | None:
    """The captions of `pictures`, or None where the folder has no known layout.

    Args:
        folder: where the paths begin.
        pictures: paths of the pictures, relative to `folder`, with forward slashes.
        others: the other files, in the same form: the caption files are looked for among them.
        need_text: False accepts a table without a column of captions (it may still name splits).

    Raises:
        ValueError: naming file and line, where a caption file is malformed or not one caption names a picture.
    """
    if tables := _find_tables(others):
        unread = [name for name in TABLES if name in others and name not in tables]
        notes = [f"{name} is not read, {tables[0]} comes first" for name in unread]
        rows = [row for name in tables for row in table_rows(folder, name, need_text=need_text)]
        return _join(folder, pictures, rows, origin=" and ".join(tables), notes=notes)
    if beside := _find_texts(pictures, others):
        rows, rejects = _text_rows(folder, beside, others)
        return _join(folder, pictures, rows, origin=".txt files beside the pictures", rejects=rejects)
    if annotations := sorted(name for name in others if is_annotations(name)):
        by_file = {name: coco_rows(folder, name, pictures) for name in annotations}
        used, notes = _present(by_file, set(pictures))
        rows = [row for name in used for row in by_file[name]]
        if len({row.split for row in rows}) == 1:  # one part of COCO alone is no split: it holds its own validation
            rows = [row._replace(split=None) for row in rows]
        return _join(folder, pictures, rows, origin=" and ".join(used), notes=notes)
    return None


def _find_tables(files: AbstractSet[str]) -> list[str]:
    """The folder's own table, else one of each subfolder that is called like a split."""
    if at_top := [name for name in TABLES if name in files]:
        return at_top[:1]
    parents = sorted({name.split("/")[0] for name in files if name.count("/") == 1})
    nested = ([f"{parent}/{name}" for name in TABLES] for parent in parents if parent.lower() in SPLITS)
    return [name for names in nested for name in [n for n in names if n in files][:1]]


class _Names:
    """Finds a name as it is written, else in another Unicode form where that is the form of one name only."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = set(names)
        self._by_form = defaultdict(list)
        for name in self.names:
            self._by_form[same_form(name)].append(name)

    def find(self, name: str) -> str | None:
        if name in self.names:
            return name
        found = self._by_form.get(same_form(name), ())
        return found[0] if len(found) == 1 else None


def _find_texts(pictures: Sequence[str], others: AbstractSet[str]) -> dict[str, str]:
    """The .txt of each picture that has one; of several, that of the same name to the letter, before a.TXT a.txt."""
    stems = _Names(_stem(picture) for picture in pictures)
    texts = (name for name in others if name.lower().endswith(".txt"))
    by_stem: dict[str | None, str] = {}
    for name in sorted(texts, key=lambda name: (_stem(name) not in stems.names, not name.endswith(".txt"), name)):
        by_stem.setdefault(stems.find(_stem(name)), name)
    return {picture: by_stem[_stem(picture)] for picture in pictures if _stem(picture) in by_stem}


def _text_rows(folder: Path, beside: Mapping[str, str], others: AbstractSet[str]) -> tuple[list[Row], list[Reject]]:
    """Rows of the .txt files beside pictures; rejects of those that cannot be read or stand alone."""
    rows, rejects = [], []
    for picture, name in beside.items():
        try:
            rows.append(Row(name, picture, tuple(_LINE_END.split(read_text(folder / name))), None))
        except ValueError as error:
            rejects.append(Reject(picture, Reason.BAD_CAPTION, str(error)))
    first = {same_form(_stem(name)): name for name in beside.values()}
    for name in sorted(others - set(beside.values())):
        path = PurePosixPath(name)
        if path.suffix.lower() == ".txt" and path.stem.lower() not in _NOT_CAPTIONS:
            chosen = first.get(same_form(_stem(name)))
            detail = f"{chosen} comes first" if chosen else "no picture of that name beside it"
            rejects.append(Reject(name, Reason.NO_PICTURE, detail))
    return rows, rejects


def _present(by_file: Mapping[str, Sequence[Row]], pictures: AbstractSet[str]) -> tuple[list[str], list[str]]:
    """COCO's annotations come for train and val together; a file none of whose pictures is there was not meant."""
    used = [name for name, rows in by_file.items() if any(row.file in pictures for row in rows)] or list(by_file)
    return used, [f"{name} is not used, none of its pictures is here" for name in by_file if name not in used]


def _join(
    folder: Path,
    pictures: Sequence[str],
    rows: Sequence[Row],
    *,
    origin: str,
    rejects: Iterable[Reject] = (),
    notes: Iterable[str] = (),
) -> Captions:
    """Rows by picture; a file that is not there is rejected once, however many rows name it."""
    names = _Names(pictures)
    found: dict[str, list[Row]] = {}
    lost: dict[str, Reject] = {}
    for row in rows:
        picture = _locate(row, names)
        if isinstance(picture, Reject):
            lost.setdefault(picture.file, picture)
        else:
            found.setdefault(picture, []).append(row)
    if rows and not found:
        raise ValueError(
            f"{folder}: none of the {len(lost):,} files that {origin} names is a picture here. Looked for "
            f"{folder / rows[0].file} ({rows[0].where}) and so on: a path relative to the folder of its table, with "
            f"the picture's suffix. A picture that is there: {next(iter(pictures), 'none')}"
        )
    said = {picture: _texts(rows) for picture, rows in found.items()}
    by_picture = {picture: tuple(dict.fromkeys(texts)) for picture, texts in said.items()}
    splits = {picture: _one_split(folder, picture, rows) for picture, rows in found.items()}
    return Captions(
        origin=origin,
        by_picture=by_picture,
        splits={picture: split for picture, split in splits.items() if split is not None},
        rejects=(*rejects, *lost.values()),
        doubled=sum(len(said[picture]) - len(texts) for picture, texts in by_picture.items()),
        notes=tuple(notes),
    )


def _texts(rows: Iterable[Row]) -> list[str]:
    return [text.strip() for row in rows for text in row.texts if is_visible(text)]


def _one_split(folder: Path, picture: str, rows: Iterable[Row]) -> str | None:
    """SplitError where two rows put one picture into two splits: it would leak from one to the other."""
    where = {row.split: row.where for row in rows if row.split is not None}
    if len(where) > 1:
        claims = ", ".join(f"{split} ({row})" for split, row in where.items())
        raise SplitError(f"{folder}: {picture} is put in several splits: {claims}; a picture belongs to one")
    return next(iter(where), None)


def _locate(row: Row, names: _Names) -> str | Reject:
    file = PurePosixPath(row.file.replace("\\", "/"))
    if is_absolute(row.file) or ".." in file.parts:
        return Reject(row.file, Reason.OUTSIDE, f"{row.where}; names are relative to the folder")
    picture = names.find(str(file))
    if picture is not None:
        return picture
    known = file.suffix.lower() in PICTURE_SUFFIXES
    detail = row.where if known else f"{row.where}; the name of a picture ends in {', '.join(PICTURE_SUFFIXES)}"
    return Reject(str(file), Reason.NO_PICTURE, detail)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
