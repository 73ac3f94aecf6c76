"""TensorBoard's log of a run, on a disk that may be full, in a folder that may be removed."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger

log = logging.getLogger(__name__)
_usual_hook = threading.excepthook


class EventLog(TensorBoardLogger):
    """A TensorBoardLogger that ends no run: what keeps it from writing is said once, and nothing is logged after that.

    Its writer has a thread, which such an error ends: each later call would raise the same.
    """

    _failed = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        threading.excepthook = _show_unless_said

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self._try(super().log_metrics, *args, **kwargs)

    def save(self) -> None:
        self._try(super().save)

    def finalize(self, status: str) -> None:
        self._try(super().finalize, status)

    def _try(self, write: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if self._failed:
            return
        try:
            write(*args, **kwargs)
        except (OSError, ValueError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__  # Lightning makes a ValueError of any
            if not isinstance(cause, OSError):
                raise
            self._failed = True
            log.warning("TensorBoard's log in %s ends here (%s); the run goes on", self.log_dir, cause)


def _show_unless_said(failed: threading.ExceptHookArgs) -> None:
    """Not the traceback of TensorBoard's thread where it could not write: the run says so, in one line."""
    if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
        _usual_hook(failed)
