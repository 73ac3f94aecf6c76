"""The same small thing done for very many items on threads, of which few wait at a time; what threads may take."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

QUEUED = 4096  # items handed to threads at once: each that waits takes 1.8 kB
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The result of each item, in their order; worth it where `function` releases the interpreter's lock."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), QUEUED):
            yield from pool.map(function, items[start : start + QUEUED])


class Budget:
    """An amount that is shared out over threads; who asks for more than is left waits. One alone always gets its part.

    Args:
        amount: of anything.
    """

    def __init__(self, amount: int) -> None:
        self.amount, self._taken = amount, 0
        self._given_back = threading.Condition()

    @contextmanager
    def taken(self, part: int) -> Iterator[None]:
        """While it lasts, `part` of the amount is this thread's."""
        with self._given_back:
            self._given_back.wait_for(lambda: not self._taken or self._taken + part <= self.amount)
            self._taken += part
        try:
            yield
        finally:
            with self._given_back:
                self._taken -= part
                self._given_back.notify_all()
