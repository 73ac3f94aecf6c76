"""What was left out of a folder of pictures, and why: counted, listed once, and too much of it stops the run.

A sample that is quietly swapped for another skews a training run without a trace; so a file is either used as it is or
stands in this report.
"""

import json
import uuid
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

SHOWN = 5  # files that a message names; the report file names all


class Reason(StrEnum):
    BROKEN = "broken picture"
    DUPLICATE = "duplicate picture"
    NO_CAPTION = "no caption"
    NO_PICTURE = "caption without a picture"
    OUTSIDE = "path leaves the folder"
    BAD_CAPTION = "unreadable caption file"
    BAD_NAME = "file name is not UTF-8"


class Reject(NamedTuple):
    """One file that is not used. `file` is relative to the folder; `detail` says what exactly was found, and where."""

    file: str
    reason: Reason
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.file} ({self.reason}: {self.detail})" if self.detail else f"{self.file} ({self.reason})"


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

    @property
    def counts(self) -> dict[str, int]:
        """Rejected files by reason, the most frequent first."""
        return {str(reason): count for reason, count in Counter(r.reason for r in self.rejects).most_common()}

    @property
    def fraction(self) -> float:
        """Rejected files over all files seen, in [0, 1]."""
        return len(self.rejects) / max(1, self.kept + len(self.rejects))

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
        return "; ".join(parts).encode("utf-8", "backslashreplace").decode()

    def save(self, path: Path) -> None:
        """Writes the full list as JSON, beside `path` first, so that a reader never sees half of it.

        Raises ValueError where `path` is a folder.
        """
        if path.is_dir():
            raise ValueError(f"report {path} is a folder, expected a file to write")
        record = {
            "folder": str(self.folder),
            "captions_from": self.captions_from,
            "kept": self.kept,
            "splits": self.splits,
            "rejected": len(self.rejects),
            "counts": self.counts,
            "doubled_captions": self.doubled_captions,
            "notes": self.notes,
            "rejects": [reject._asdict() for reject in self.rejects],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file name that is not UTF-8 holds lone surrogates; escaped, they stay valid JSON.
        content = json.dumps(record, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # each device may write the same report
        try:
            beside.write_bytes(content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def enforce(self, max_rejected: float) -> None:
        """ValueError where more than `max_rejected` (in [0, 1]) of the files were rejected, or nothing is left."""
        if self.kept and self.fraction <= max_rejected:
            return
        total = self.kept + len(self.rejects)
        remedy = (
            f"mend them or set max_rejected={min(1.0, self.fraction + 0.01):.2f}"
            if self.kept
            else "nothing is left to train on"
        )
        raise ValueError(
            f"{self.folder}: {len(self.rejects):,} of {total:,} files rejected ({self.fraction:.1%}; max_rejected="
            f"{max_rejected} allows {max_rejected:.1%}); {remedy}: {_listed(self.counts)}. {self._first()}"
        )

    def _first(self) -> str:
        more = len(self.rejects) - SHOWN
        return (
            "First: " + ", ".join(str(r) for r in self.rejects[:SHOWN]) + (f", and {more:,} more" if more > 0 else "")
        )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
