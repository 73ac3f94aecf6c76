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

from whole_files import append_lines, write_object

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
        write_object(path, self.record())

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


class FetchedRejects(NamedTuple):
    """What is left out of a streamed shard; found when it was fetched."""

    shard: str
    samples: int  # of the shard, those left out included
    rejects: tuple[Reject, ...]


class LateRejects:
    """What turns out to be unusable while a run reads: each logged, listed once, and too many of them stop the run.

    Of what lies on disk, all that the list names counts, also what other devices and earlier parts of the run have
    added. Of streams, what this process has fetched counts: more samples than `samples` are seen in several epochs.

    Args:
        path: a file of JSON lines, added to as they are found, also by a run that goes on and by other devices. None
            lists them nowhere; then each device counts its own.
        max_rejected: the largest fraction that is put up with, in [0, 1]; more are a ValueError.
        samples: that the fraction is of, where no more have been fetched.
        data: names the data (`data.split.fingerprint`); it stands in each line, and lines of other data, of before it
            was mended for example, do not count.
    """

    def __init__(self, path: Path | None, max_rejected: float, samples: int, data: str = "") -> None:
        self.path, self.max_rejected, self.samples, self.data = path, max_rejected, samples, data
        self._listed: set[str] = set()  # files
        self._unusable: set[str] = set()  # of these, without what is sound and left out by design
        self._found: set[str] = set()  # unusable ones that this process has found
        self._last: Reject | None = None
        self._shards: set[str] = set()  # fetched
        self._fetched = 0  # samples of them
        self._told: Counter[str] = Counter()
        self._read_to = 0  # of the list, in bytes
        self._read_list()

    def add(self, found: Iterable[Reject | FetchedRejects]) -> None:
        """Take note of rejects; those that are known already cost nothing."""
        for each in found:
            if isinstance(each, FetchedRejects):
                self._fetched += 0 if each.shard in self._shards else each.samples
                self._shards.add(each.shard)
                for reject in each.rejects:
                    held_back = reject.reason == Reason.HELD_BACK
                    self._note(reject, "not trained on" if held_back else "unusable, and left out of its shard")
            else:
                self._note(each, "unusable, and another sample in its place")
        self._enforce()

    def _note(self, reject: Reject, said: str) -> None:
        if reject.reason != Reason.HELD_BACK:
            self._found.add(reject.file)
            self._last = reject
        if reject.file in self._listed:
            return
        self._take(reject.file, reject.reason)
        self._list(reject)
        self._read_list()
        self._told[said] += 1
        count = self._told[said]
        if count <= SHOWN or count & (count - 1) == 0:  # then at every doubling
            log.warning("%s: %s; %s so far", said, printable(reject), f"{count:,}")

    def _take(self, file: str, reason: str) -> None:
        self._listed.add(file)
        if reason != Reason.HELD_BACK:
            self._unusable.add(file)

    def _enforce(self) -> None:
        unusable = self._found if self._shards else self._unusable
        seen = max(self.samples, self._fetched)
        most = int(self.max_rejected * seen)
        if len(unusable) > most:
            raise ValueError(
                f"{len(unusable):,} samples turned out unusable, --data.loading.max_rejected allows {most:,} of "
                f"{seen:,}; "
                + (
                    f"all are in {self.path}: mend them, and if the run is refused nevertheless, remove that file"
                    if self.path
                    else f"the last is {printable(self._last)}"
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

    def _read_list(self) -> None:
        """Takes up what has been added to the list since; a line that the end of a run has cut off is none."""
        if self.path is None or not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read_to += len(whole)
        for line in whole.splitlines():
            with suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                if record["data"] == self.data:
                    self._take(record["file"], record["reason"])
