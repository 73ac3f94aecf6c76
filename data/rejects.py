"""What was left out of a set of pictures, and why: counted, listed once, and too much of it stops the run.

A sample that is quietly swapped for another skews a training run without a trace; so a file is either used as it is or
stands in this report.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from whole_files import append_lines, write_file

log = logging.getLogger(__name__)
SHOWN = 5  # files that a message names; the report file names all


class Reason(StrEnum):
    BROKEN = "broken picture"
    DUPLICATE = "duplicate picture"
    NO_CAPTION = "no caption"
    NO_PICTURE = "caption without a picture"
    OUTSIDE = "path leaves the folder"
    BAD_CAPTION = "unreadable caption file"
    BAD_NAME = "file name is not UTF-8"
    DOUBLED_NAME = "name comes twice"
    DOUBLED_KEY = "key comes twice"
    TWO_PICTURES = "several pictures of one key"
    NO_FILE = "not a regular file"
    BAD_METADATA = "unreadable .json"
    HELD_BACK = "also validated on"
    # Sound, and left out by data/filters.py:
    SHORT_CAPTION = "caption too short"
    LONG_CAPTION = "caption too long"
    UNWANTED_CAPTION = "caption not wanted"
    ASPECT_RATIO = "too long for its height"
    NEAR_DUPLICATE = "near duplicate picture"


class Reject(NamedTuple):
    """One file that is not used. `file` is relative to the folder; `detail` says what exactly was found, and where."""

    file: str
    reason: Reason
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.file} ({self.reason}: {self.detail})" if self.detail else f"{self.file} ({self.reason})"


class Rejected(ValueError):
    """Raised where a sample that was thought usable turns out not to be when it is read."""

    def __init__(self, reject: Reject) -> None:
        super().__init__(str(reject))
        self.reject = reject

    def __reduce__(self) -> tuple:
        return Rejected, (self.reject,)  # by default an exception is sent between processes with its message alone


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a folder. `captions_from` names the caption files, "" where it has none."""

    folder: Path
    captions_from: str
    kept: int
    splits: dict[str, int]  # kept pictures of each split that the folder itself declares
    rejects: tuple[Reject, ...]
    doubled_captions: int  # the same text given twice for one picture: used once
    notes: tuple[str, ...] = ()
    filtered: tuple[Reject, ...] = ()  # sound, and not wanted (data/filters.py): seen, but not rejected

    @property
    def counts(self) -> dict[str, int]:
        """Rejected files by reason, the most frequent first."""
        return _by_reason(self.rejects)

    @property
    def seen(self) -> int:
        """All files: kept, left out by filters, rejected."""
        return self.kept + len(self.filtered) + len(self.rejects)

    @property
    def fraction(self) -> float:
        """Rejected files over all files seen, in [0, 1]."""
        return len(self.rejects) / max(1, self.seen)

    def summary(self) -> str:
        """One paragraph for the log; what of a file's name is no UTF-8 is escaped, as in the report."""
        parts = [f"{self.folder}: {self.kept:,} pictures, captions from {self.captions_from or 'nowhere'}"]
        if self.splits:
            parts.append("splits: " + _listed(self.splits))
        if self.doubled_captions:
            parts.append(f"{self.doubled_captions:,} repeated captions used once")
        parts += self.notes
        if self.rejects:
            parts.append(f"{len(self.rejects):,} files rejected: {_listed(self.counts)}. {self._first()}")
        return printable("; ".join(parts))

    def record(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        record = {
            "folder": str(self.folder),
            "captions_from": self.captions_from,
            "kept": self.kept,
            "splits": self.splits,
            "rejected": len(self.rejects),
            "counts": self.counts,
            "doubled_captions": self.doubled_captions,
            "notes": list(self.notes),
            "rejects": [reject._asdict() for reject in self.rejects],
        }
        if self.filtered:
            counts = {"filtered": len(self.filtered), "filtered_counts": _by_reason(self.filtered)}
            record |= counts | {"filtered_files": [reject._asdict() for reject in self.filtered]}
        return record

    def save(self, path: Path) -> None:
        """Writes the full list as JSON, beside `path` first, so that a reader never sees half of it.

        Raises ValueError where `path` is a folder.
        """
        if path.is_dir():
            raise ValueError(f"report {path} is a folder, expected a file to write")
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file name that is not UTF-8 holds lone surrogates; escaped, they stay valid JSON.
        content = json.dumps(self.record(), indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")
        write_file(path, content)

    def filtered_summary(self) -> str:
        """One paragraph for the log on what filters left out."""
        text = f"{self.folder}: {self.kept:,} pictures left, {len(self.filtered):,} left out by filters"
        return f"{text}: {_listed(_by_reason(self.filtered))}" if self.filtered else text

    def enforce(self, max_rejected: float) -> None:
        """ValueError where more than `max_rejected` (in [0, 1]) of the files were rejected, or nothing is left."""
        if self.kept and self.fraction <= max_rejected:
            return
        if not self.seen:
            raise ValueError(f"{self.folder}: there are no samples in it, so nothing to train on")
        remedy = (
            f"mend them or set max_rejected={min(1.0, self.fraction + 0.01):.2f} "
            "(--data.loading.max_rejected where a run is trained, else --max_rejected)"
            if self.kept
            else "nothing is left to train on"
        )
        raise ValueError(
            f"{self.folder}: {len(self.rejects):,} of {self.seen:,} files rejected ({self.fraction:.1%}; max_rejected="
            f"{max_rejected} allows {max_rejected:.1%}); {remedy}: {_listed(self.counts)}. {self._first()}"
        )

    def _first(self) -> str:
        more = len(self.rejects) - SHOWN
        return (
            "First: " + ", ".join(str(r) for r in self.rejects[:SHOWN]) + (f", and {more:,} more" if more > 0 else "")
        )


def _by_reason(rejects: Iterable[Reject]) -> dict[str, int]:
    return {str(reason): count for reason, count in Counter(reject.reason for reject in rejects).most_common()}


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def printable(said: object) -> str:
    """As text that every log takes: what of a file's name is no UTF-8 is escaped."""
    return str(said).encode("utf-8", "backslashreplace").decode()


class LateRejects:
    """What turns out to be unusable while a run reads: each logged, listed once, and too many of them stop the run.

    Args:
        path: a file of JSON lines, added to as they are found, also by a run that goes on. None lists them nowhere.
        most: more samples than so many are a ValueError.
        data: names the data (`data.split.fingerprint`); it stands in each line, and lines of other data, of before it
            was mended for example, do not count.
    """

    def __init__(self, path: Path | None, most: int, data: str = "") -> None:
        self.path, self.most, self.data = path, most, data
        self._seen = _files_in(path, data) if path is not None and path.is_file() else set()

    def add(self, rejects: Iterable[Reject]) -> None:
        """Take note of rejects; those that are known already cost nothing."""
        for reject in rejects:
            if reject.file in self._seen:
                continue
            self._seen.add(reject.file)
            self._list(reject)
            count = len(self._seen)
            if count <= SHOWN or count & (count - 1) == 0:  # then at every doubling
                log.warning("unusable, and another sample in its place: %s; %s so far", printable(reject), f"{count:,}")
        if len(self._seen) > self.most:
            raise ValueError(
                f"{len(self._seen):,} samples turned out unusable, --data.loading.max_rejected allows {self.most:,}; "
                + (
                    f"all are in {self.path}: mend them, and if the run is refused nevertheless, remove that file"
                    if self.path
                    else f"the last is {reject}"
                )
            )

    def _list(self, reject: Reject) -> None:
        if self.path is None:
            return
        record = reject._asdict() | {"data": self.data}
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            append_lines(self.path, line)
        except OSError as error:
            log.warning("%s cannot be written: %s", self.path, error.strerror)


def _files_in(path: Path, data: str) -> set[str]:
    """The files of this data that a list names; a line that was cut off by the end of a run is not one."""
    files = set()
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            if record["data"] == data:
                files.add(record["file"])
    return files
