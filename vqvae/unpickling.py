"""Pickles of other people, read without running anything of theirs.

A pickle is a program: it names functions to call. Here the names that it may use are a list, none of which does more
than build an array, and every other one ends the reading.
"""

import io
import pickle
from typing import Any

import numpy as np


class UnsafePickle(ValueError):
    """A pickle that names something to call which is not on the list."""


def _empty_array(kind: Any, *_: Any) -> np.ndarray:
    # numpy gives the class to build, which might be any; its state comes afterwards.
    return np.empty(0)


ARRAYS: dict[tuple[str, str], Any] = {
    (module, name): what
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
    for name, what in {"_reconstruct": _empty_array, "ndarray": np.ndarray, "dtype": np.dtype}.items()
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ARRAYS[module, name]
        except KeyError:
            raise UnsafePickle(f"it names {module}.{name}, which arrays do not need") from None

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickle("it names things outside itself")


def load_arrays(content: bytes) -> Any:
    """The dictionaries and lists of numpy arrays in a pickle.

    Raises UnsafePickle, a ValueError, where it would call anything else, and ValueError where it is damaged.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content)).load()
    except UnsafePickle:
        raise
    except Exception as error:  # a damaged pickle raises whatever its broken program runs into
        raise ValueError(f"it is damaged or no pickle: {error or type(error).__name__}") from error
