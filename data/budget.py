"""What threads may take of something at once, such as memory."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


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
