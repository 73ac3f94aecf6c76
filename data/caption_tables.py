"""Caption tables to rows: csv, tsv and json lines with the columns `file_name` and `text`.

Form: https://huggingface.co/docs/datasets/image_dataset#imagefolder. Several rows for a file, or in JSON
a list of texts, give it several captions. A column `split` is honoured, others are ignored. A mistake in the form is a
ValueError with file and line, never a row left out.
"""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data.pictures import PictureError, read_file

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
# The first name is the documented one and wins; another is taken where it stands alone.
_FILE_COLUMNS = ("file_name", "filename", "file", "image", "path")
_TEXT_COLUMNS = ("text", "caption")


class SplitError(ValueError):
    """A split that is unknown or contradicts itself: to pass over it could train on what was to be held back."""


class Row(NamedTuple):
    """One statement of a caption file."""

    where: str  # "captions.csv line 3"
    file: str  # as written, relative to the folder
    texts: tuple[str, ...]
    split: str | None


def table_rows(folder: Path, name: str, *, need_text: bool) -> list[Row]:
    """The rows of the table `folder / name`; the files in it count from the table's own folder.

    Raises:
        ValueError: naming file and line: not UTF-8, a column missing or ambiguous, a ragged row, an open quote, a file
            without a name, a text that is none, an unknown split; or no rows at all. `need_text` asks for captions.
    """
    path = folder / name
    records = _json_lines(path) if path.suffix == ".jsonl" else _csv_records(path)
    rows = [_row(path, name, line, record, need_text) for line, record in records]
    if not rows:
        raise ValueError(f"{path}: no rows; expected columns file_name and text, one row a caption")
    return rows


def _row(path: Path, name: str, line: int, record: Mapping[str, object], need_text: bool) -> Row:
    where = f"{path} line {line}"
    file = _column(record, _FILE_COLUMNS, where, needed=True)
    if not isinstance(file, str) or not file.strip():
        raise ValueError(f"{where}: file_name is {file!r}, expected the name of a picture")
    texts = _column(record, _TEXT_COLUMNS, where, needed=need_text)
    texts = texts if isinstance(texts, list) else [] if texts is None else [texts]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{where}: text is {text!r}, expected a string or a list of strings")
        if not is_unicode(text):
            raise ValueError(f"{where}: text {text!r} holds half of a surrogate pair, which is no character")
    file = _from_table_folder(name, file.strip())
    return Row(f"{name} line {line}", file, tuple(texts), _split(record.get("split"), where))


def _from_table_folder(table: str, file: str) -> str:
    """An absolute path stays one, so that it is seen to leave the folder."""
    parent = PurePosixPath(table).parent
    return file if is_absolute(file) or str(parent) == "." else f"{parent}/{file}"


def _column(record: Mapping[str, object], names: tuple[str, ...], where: str, *, needed: bool) -> object:
    found = [name for name in names if name in record]
    if len(found) == 1 or names[0] in found:
        return record[found[0]]
    if found:
        raise ValueError(f"{where}: columns {', '.join(found)} could each be {names[0]}; name one of them so")
    if needed:
        raise ValueError(f"{where}: no column {names[0]}; the columns are {', '.join(map(repr, record))}")
    return None


def _split(value: object, where: str) -> str | None:
    if value is None or value == "":
        return None
    split = SPLITS.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None:
        raise SplitError(f"{where}: split is {value!r}, expected one of {', '.join(SPLITS)}, or nothing")
    return split


def _csv_records(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """(number of the row's last line, fields by column)."""
    tabs = path.suffix == ".tsv"
    # strict: a quote left open would swallow all the rows below it.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter="\t" if tabs else ",", strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        _check_header(path, header, "tabs" if tabs else "commas")
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(header):
                raise ValueError(
                    f"{path} line {reader.line_num}: {len(fields)} fields, but the header has {len(header)} "
                    f"({', '.join(header)}); a field with a {'tab' if tabs else 'comma'} in it needs double quotes"
                )
            yield reader.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num}: {error} (double quotes inside quotes are doubled)") from error


def _check_header(path: Path, header: Sequence[str], separators: str) -> None:
    """Columns without a name, as spreadsheets leave them behind, are put up with."""
    if len(header) == 1 and any(mark in header[0] for mark in ",;\t"):
        raise ValueError(
            f"{path} line 1: one column {header[0]!r}; the columns of a {path.suffix} are parted by {separators}"
        )
    named = [name for name in header if name]
    if len(set(named)) < len(named):
        raise ValueError(f"{path} line 1: two columns of one name in {named}")


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    # Not splitlines(): a JSON string may hold U+2028 as it is.
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if text.strip():
            record = parse_json(text, f"{path} line {line}")
            if not isinstance(record, dict):
                raise ValueError(f"{path} line {line}: expected an object with file_name and text, got {text[:40]!r}")
            yield line, record


def is_absolute(file: str) -> bool:
    """Whether a path counts from a root, on any system. A colon alone makes no drive: "a:b.png" is a name elsewhere."""
    return file.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", file) is not None


def same_form(name: str) -> str:
    """Accents composed: some systems store "é" as two characters where a table has one."""
    return unicodedata.normalize("NFC", name)


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8: JSON escapes and file names may hold what is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without byte order mark.

    Raises ValueError with file and line where it is something else, and with the file where it cannot be read.
    """
    try:
        data = read_file(path)
    except PictureError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8") from error


def parse_json(text: str, where: str) -> object:
    """json.loads whose ValueError begins with `where`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError alone: a number of more digits than Python will read
        raise ValueError(f"{where}: not JSON ({error})") from error
