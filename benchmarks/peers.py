"""Packages of others that take part in benchmarks where they are installed, without what they import and do not use."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from unittest import mock


def import_peer(name: str, unused: Sequence[str] = ()) -> ModuleType:
    """The module `name`; of the modules in `unused`, those that are absent are stood in for while it is imported.

    For packages installed with --no-deps. Raises ImportError where it is not there.
    """
    absent = {module: mock.MagicMock() for module in unused if not _is_there(module)}
    with mock.patch.dict(sys.modules, absent):
        return importlib.import_module(name)


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # what it is a part of is absent
        return False
