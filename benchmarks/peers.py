"""Packages of others that take part in benchmarks where they are installed, without what they import and do not use."""

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from unittest import mock


def import_peer(name: str, unused: Sequence[str] = ()) -> ModuleType:
    """The module `name`, while whose import all modules in `unused` are stood in for, whether or not they are there.

    For packages installed with --no-deps. What is there is not imported either: it costs time, and may itself look for
    others of `unused`. Raises ImportError where `name` is not there.
    """
    before = {module: sys.modules.get(module) for module in unused}
    sys.modules |= {module: mock.MagicMock() for module, there in before.items() if there is None}
    try:
        return importlib.import_module(name)
    finally:
        for module in (module for module, there in before.items() if there is None):
            del sys.modules[module]
