"""A line now and then on how far something long has come."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

log = logging.getLogger(__name__)
EVERY = 10.0  # seconds between two lines
T = TypeVar("T")


def with_progress(results: Iterable[T], total: int, where: object, *, done: str, things: str) -> Iterator[T]:
    """The results as they come; every ten seconds the log is told "WHERE: checked 1 of 2 pictures", in words given."""
    start = last = time.monotonic()
    for count, result in enumerate(results, start=1):
        if time.monotonic() - last > EVERY:
            last = time.monotonic()
            left = (last - start) / count * (total - count)
            log.info("%s: %s %s of %s %s, about %.0f s left", where, done, f"{count:,}", f"{total:,}", things, left)
        yield result
