"""Samples that are sound but not wanted, by their captions, by the shape of their pictures, or as seen before.

The paper (https://arxiv.org/abs/2102.12092, section 2.3 and appendix C) leaves out captions that are too short, not
English, or boilerplate, and pictures whose aspect ratio is not in [1/2, 2]. Which captions are English is asked of a
function of one's own, which may find boilerplate too: no package for it is bundled. Everything is off unless set.
"""

import importlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.near_duplicates import MOST_BITS, Hashes, near_duplicates
from data.rejects import Reason, Reject, Report
from data.source import Source
from data.split import SPLITS, SplitTable, table_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What is left out.

    Attributes:
        min_caption_length, max_caption_length: in characters; of a picture with several captions, those outside are
            left out, and the picture with the last of them.
        wanted_caption: MODULE:FUNCTION, called with each caption, says by True whether it is wanted; whether it is of
            some language, for example.
        max_aspect_ratio: of the longer to the shorter side; 2 in the paper.
        near_duplicates: a picture is left out that differs from an earlier one in at most so many of the 64 bits that
            tell what it looks like (near_duplicates.py), 0 to 7.
    """

    min_caption_length: int | None = None
    max_caption_length: int | None = None
    wanted_caption: str | None = None
    max_aspect_ratio: float | None = None
    near_duplicates: int | None = None

    def __post_init__(self) -> None:
        least, most = self.min_caption_length, self.max_caption_length
        if (least is not None and least < 1) or (most is not None and most < (least or 1)):
            raise ValueError(f"caption lengths from {least} to {most}, expected 1 or more, and the smaller one first")
        if self.max_aspect_ratio is not None and not 1 <= self.max_aspect_ratio < math.inf:
            raise ValueError(
                f"max_aspect_ratio={self.max_aspect_ratio}, expected 1 or more: the longer side to the shorter"
            )
        if self.near_duplicates is not None and not 0 <= self.near_duplicates <= MOST_BITS:
            raise ValueError(f"near_duplicates={self.near_duplicates}, expected 0 to {MOST_BITS} bits")
        if self.wanted_caption is not None:
            imported(self.wanted_caption)

    @property
    def any(self) -> bool:
        return self.of_captions or self.of_pictures

    @property
    def of_captions(self) -> bool:
        return (self.min_caption_length, self.max_caption_length, self.wanted_caption) != (None, None, None)

    @property
    def of_pictures(self) -> bool:
        return self.max_aspect_ratio is not None or self.near_duplicates is not None


def imported(path: str) -> Callable[[str], object]:
    """The function MODULE:FUNCTION. Raises ValueError where there is none such."""
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ValueError(f"{path!r}, expected MODULE:FUNCTION, as in langs:is_english")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"{path!r} is a {type(found).__name__}, expected a function")
    return found


class Filterable(Source, Protocol):
    """A source that knows its pictures, with a report of what it rejected: folders and shards."""

    report: Report

    def sizes(self) -> np.ndarray:
        """(N, 2) uint32, width and height of each picture, turned or not; no picture is decoded for it."""
        ...

    def hashes(self) -> Hashes:
        """What each picture looks like, and which are broken; they may be decoded for it."""
        ...


class NothingLeft(ValueError):
    """Raised where filters leave no sample; the report has been written then."""


class FilteredSource:
    """The samples of a source that filters leave, in its order; a `data.source.Source` itself.

    Every caption is asked once when this is made. Aspect ratios are known without decoding a picture: of shards, from
    the pictures' headers, so that a broken one stays until it is read. For near duplicates all pictures are decoded,
    and the broken ones rejected: once, for what they look like is kept in the shards' indexes, or beside a folder's
    report, and serves every later start and other settings. What is left out is not held against the source
    (`max_rejected`), but counted and listed by reason in its report.

    Args:
        source: of pictures, with a report.
        filters: at least one of them set.
        max_rejected: the largest fraction of the source that may turn out broken, in [0, 1].
        report: a JSON file that is given the report, in the place of the source's own.

    Raises NothingLeft where nothing is left, ValueError where more is broken or the function for captions fails.
    """

    def __init__(
        self, source: Filterable, filters: Filters, *, max_rejected: float = 0.05, report: str | Path | None = None
    ) -> None:
        self.source, self.filters = source, filters
        self._shortened: dict[int, tuple[str, ...]] = {}  # captions of the samples that lost some
        filtered = self._by_captions() if filters.of_captions else {}
        broken: dict[int, Reject] = {}
        if filters.of_pictures:
            of_pictures, broken = self._by_pictures(np.setdiff1d(np.arange(len(source)), list(filtered)))
            filtered |= of_pictures
        self._rows = np.setdiff1d(np.arange(len(source)), [*filtered, *broken])
        self._table = SplitTable(*(part[self._rows] for part in table_of(source)))
        self.report = self._report(filtered, broken)
        if report is not None:
            self.report.save(Path(report))
        log.info(self.report.filtered_summary())
        if not len(self._rows):
            raise NothingLeft(f"{self.report.folder}: the filters leave nothing; {self.report.filtered_summary()}")
        self.report.enforce(max_rejected)

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        return self.source.key(int(self._rows[index]))

    def image(self, index: int, least: int | None = None) -> Image.Image:
        return self.source.image(int(self._rows[index]), least)

    def captions(self, index: int) -> tuple[str, ...]:
        row = int(self._rows[index])
        return self._shortened[row] if row in self._shortened else self.source.captions(row)

    def split(self, index: int) -> str | None:
        return self.source.split(int(self._rows[index]))

    def split_table(self) -> SplitTable:
        """As `data.split.Tabled` has it."""
        return self._table

    def identity(self) -> Iterator[str]:
        """Which rows are left and which captions of those that lost some, then the source's."""
        yield json.dumps([self._rows.tolist(), sorted(self._shortened.items())])
        yield from self.source.identity()

    def by_set(self, indices: Tensor) -> list[Tensor]:
        """As `ShardsSource.by_set`, of filtered shards."""
        sets = self.source.by_set(torch.from_numpy(self._rows)[indices])
        return [torch.from_numpy(np.searchsorted(self._rows, rows.numpy())) for rows in sets]

    def _by_captions(self) -> dict[int, Reject]:
        """What is left out, by row of the source; notes what is left of captions."""
        wanted = imported(self.filters.wanted_caption) if self.filters.wanted_caption else None
        least, most = self.filters.min_caption_length or 0, self.filters.max_caption_length or math.inf
        filtered = {}
        for row in range(len(self.source)):  # of millions: nothing is made of a row that stays as it is
            texts = self.source.captions(row)
            left = [
                text for text in texts if least <= len(text) <= most and (wanted is None or self._asked(wanted, text))
            ]
            if len(left) == len(texts):
                continue
            if left:
                self._shortened[row] = tuple(left)
                continue
            length, reason = len(texts[0]), Reason.UNWANTED_CAPTION
            if not least <= length <= most:
                reason = Reason.SHORT_CAPTION if length < least else Reason.LONG_CAPTION
            filtered[row] = Reject(self.source.key(row), reason, f"{texts[0][:80]!r}, {length:,} characters")
        return filtered

    def _asked(self, wanted: Callable[[str], object], text: str) -> bool:
        try:
            answer = wanted(text)
        except Exception as error:  # somebody's function
            raise ValueError(f"{self.filters.wanted_caption} failed on the caption {text[:80]!r}: {error!r}") from error
        if not isinstance(answer, bool):
            raise ValueError(f"{self.filters.wanted_caption} says {answer!r} of {text[:80]!r}, expected True or False")
        return answer

    def _by_pictures(self, rows: np.ndarray) -> tuple[dict[int, Reject], dict[int, Reject]]:
        """Of these rows of the source, (n,) int64, what is left out, and what turns out broken."""
        most_bits = self.filters.near_duplicates
        hashes = None if most_bits is None else self.source.hashes()
        broken = {row: hashes.broken[row] for row in rows.tolist() if row in hashes.broken} if hashes else {}
        rows = np.setdiff1d(rows, list(broken))
        filtered = {} if self.filters.max_aspect_ratio is None else self._too_long(rows)
        if hashes is not None:
            filtered |= self._repeated(np.setdiff1d(rows, list(filtered)), hashes.bits)
        return filtered, broken

    def _too_long(self, rows: np.ndarray) -> dict[int, Reject]:
        sizes = self.source.sizes()[rows]
        long = sizes.max(axis=1) > self.filters.max_aspect_ratio * sizes.min(axis=1)
        return {
            row: Reject(self.source.key(row), Reason.ASPECT_RATIO, f"{width}x{height} pixels")
            for row, (width, height) in zip(rows[long].tolist(), sizes[long].tolist(), strict=True)
        }

    def _repeated(self, rows: np.ndarray, bits: np.ndarray) -> dict[int, Reject]:
        hashes, filtered = bits[rows], {}
        first = near_duplicates(hashes, self.filters.near_duplicates)
        for place in np.flatnonzero(first >= 0).tolist():
            row, before = int(rows[place]), int(rows[first[place]])
            differing = int(hashes[place] ^ hashes[first[place]]).bit_count()
            detail = f"{differing} of 64 bits from {self.source.key(before)}"
            filtered[row] = Reject(self.source.key(row), Reason.NEAR_DUPLICATE, detail)
        return filtered

    def _report(self, filtered: dict[int, Reject], broken: dict[int, Reject]) -> Report:
        report = self.source.report
        counts = np.bincount(self._table.splits, minlength=len(SPLITS)).tolist()
        return replace(
            report,
            kept=len(self._rows),
            splits={split: counts[place] for place, split in enumerate(SPLITS) if counts[place]},
            rejects=(*report.rejects, *broken.values()),
            filtered=tuple(filtered[row] for row in sorted(filtered)),
        )
