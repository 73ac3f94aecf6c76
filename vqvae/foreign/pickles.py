"""Pickles of other people, read without calling anything that they name.

A pickle is a program for a stack machine, and some of its instructions import and call what it likes. Here is that
machine (the instructions are those of `pickletools`) with records in place of imports and calls: what the pickle names
is a `Global`, what it would call a `Built` that has the arguments. Afterwards those who know a name read its record.

So nothing can run, whatever is named. Still, a file that names what no checkpoint needs is refused: it is not what it
was taken for.
"""

import pickletools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch


class UnsafePickle(ValueError):
    """A pickle that names what no checkpoint needs."""


@dataclass(frozen=True)
class Global:
    """A name in a module, which was not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Built:
    """What `what` would have made of `args`, with what would have been put into it afterwards."""

    what: Global
    args: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Persistent:
    """Something that the file keeps outside of the pickle: torch's storages."""

    id: Any


KNOWN = {
    *(f"builtins.{n}" for n in ("set", "frozenset", "list", "dict", "tuple", "int", "float", "bool", "str", "bytes")),
    *(f"builtins.{n}" for n in ("bytearray", "complex", "object", "slice", "range")),
    *(f"collections.{n}" for n in ("OrderedDict", "defaultdict", "Counter", "deque")),
    *(f"pathlib.{n}" for n in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"datetime.{n}" for n in ("datetime", "date", "time", "timedelta", "timezone")),
    *("copyreg._reconstructor", "_codecs.encode", "functools.partial", "types.SimpleNamespace", "typing.Any"),
    *("argparse.Namespace", "uuid.UUID"),
    *(f"{m}.{n}" for m in ("numpy.core.multiarray", "numpy._core.multiarray") for n in ("scalar", "_reconstruct")),
    *("numpy.ndarray", "numpy.dtype"),
    *(f"torch._utils.{n}" for n in ("_rebuild_tensor", "_rebuild_tensor_v2")),
    *(f"torch._utils.{n}" for n in ("_rebuild_parameter", "_rebuild_parameter_with_state")),
    *("torch.device", "torch.Size", "torch.Tensor"),
}
"""Of the standard library, of torch and of numpy: what checkpoints hold."""

MODULES_OF_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # as protocols up to 2 name them
TYPES_OF_PYTHON_2 = {"long": "int", "unicode": "str", "xrange": "range"}
DTYPES = {name for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
MOST_COPIED = 1_000_000  # entries of dictionaries that are made of others at once; a checkpoint has some thousands
DICTIONARIES = {Global("collections", "OrderedDict"), Global("builtins", "dict")}


def read_pickle(stream: BinaryIO) -> Any:
    """The next pickle in `stream`, which is left behind it: containers and constants, Global, Built and Persistent.

    Raises UnsafePickle, a ValueError, where it names what no checkpoint needs, and ValueError where it is damaged.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except UnsafePickle:
        raise
    except Exception as error:  # a damaged program runs into anything
        raise ValueError(f"it is damaged or no pickle: {error or type(error).__name__}") from error
    raise AssertionError("genops ends at STOP or raises")


def checked_global(module: str, name: str) -> Global:
    """Raises UnsafePickle where the name is not one that data need.

    Of the standard library and torch those are the names in KNOWN and torch's classes of modules, optimisers and
    storages; of other packages whatever is spelt like a class. A dot in the name would reach through the module into
    others.
    """
    module = MODULES_OF_PYTHON_2.get(module, module)
    if module == "builtins":
        name = TYPES_OF_PYTHON_2.get(name, name)
    if f"{module}.{name}" not in KNOWN and ("." in name or not _may_be_data(module, name)):
        raise UnsafePickle(f"it names {module}.{name}, which no weights need; nothing in it was run")
    return Global(module, name)


def _may_be_data(module: str, name: str) -> bool:
    spelt_as_class = name.lstrip("_")[:1].isupper()
    package = module.partition(".")[0]
    if module == "torch":
        return name.endswith("Storage") or name in DTYPES
    if package == "torch":
        return module.startswith(("torch.nn.", "torch.optim.")) and spelt_as_class
    return package not in sys.stdlib_module_names and spelt_as_class


MARK = object()

CONSTANTS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
CONSTANTS |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
CONSTANTS |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
NEW: dict[str, Callable[[], Any]] = {
    "MARK": lambda: MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
FROM_MARK: dict[str, Callable[[list[Any]], Any]] = {
    "LIST": list,
    "TUPLE": tuple,
    "FROZENSET": frozenset,
    "DICT": lambda values: dict(_pairs(values)),
    "POP_MARK": lambda values: None,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in CONSTANTS:
            stack.append(argument)
        elif name in NEW:
            stack.append(NEW[name]())
        elif name in FROM_MARK:
            made = FROM_MARK[name](self._from_mark())
            if name != "POP_MARK":
                stack.append(made)
        elif name in TUPLES:
            stack.append(tuple(self._pop(TUPLES[name])))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            self._step_of_objects(name, argument)

    def _step_of_objects(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("GLOBAL", "INST"):
            named = checked_global(*argument.split(" ", 1))
            stack.append(self._build(named, tuple(self._from_mark())) if name == "INST" else named)
        elif name == "OBJ":
            what, *args = self._from_mark()
            stack.append(self._build(what, tuple(args)))
        elif name == "STACK_GLOBAL":
            stack.append(checked_global(*self._pop(2)))
        elif name in ("REDUCE", "NEWOBJ"):
            stack.append(self._build(*self._pop(2)))
        elif name == "NEWOBJ_EX":
            what, args, _ = self._pop(3)
            stack.append(self._build(what, args))
        elif name in ("PERSID", "BINPERSID"):
            stack.append(_persistent(argument if name == "PERSID" else stack.pop()))
        elif name == "BUILD":
            state = stack.pop()
            _set_state(stack[-1], state)
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            values = self._pop(1) if name == "APPEND" else self._from_mark()
            _extend(stack[-1], values)
        elif name in ("SETITEM", "SETITEMS"):
            values = self._pop(2) if name == "SETITEM" else self._from_mark()
            container = stack[-1]
            (container.items if isinstance(container, Built) else container).update(_pairs(values))
        else:
            raise UnsafePickle(f"it has the instruction {name}, which no weights need; nothing in it was run")

    def _build(self, what: Any, args: Any) -> Any:
        if isinstance(what, Built):
            raise UnsafePickle(f"it calls what it made of {what.what}; nothing in it was run")
        if not isinstance(what, Global) or not isinstance(args, tuple):
            raise UnsafePickle(f"it calls a {type(what).__name__}; nothing in it was run")
        if what in DICTIONARIES:
            self.copied += len(args[0]) if args else 0
            if self.copied > MOST_COPIED:
                raise ValueError(f"it copies more than {MOST_COPIED:,} entries of dictionaries")
            return dict(args[0]) if args else {}
        if what == Global("copyreg", "_reconstructor"):
            return self._build(args[0], ())
        return Built(what, args)

    def _pop(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise ValueError("its stack is empty")
        values = self.stack[-n:]
        del self.stack[-n:]
        return values

    def _from_mark(self) -> list[Any]:
        at = next((i for i in reversed(range(len(self.stack))) if self.stack[i] is MARK), None)
        if at is None:
            raise ValueError("it takes what follows a mark, and there is none")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values


def _pairs(values: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _persistent(id: Any) -> Any:
    """torch.save from before 1.6 gives the source of a module's class along with its name."""
    of_class = isinstance(id, tuple) and id[:1] == ("module",)
    return id[1] if of_class else Persistent(id)


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, Built):
        target.state = state
    elif not isinstance(target, dict):  # a dictionary's attributes, as of a state_dict's metadata, are not needed
        raise UnsafePickle(f"it changes a {type(target).__name__}; nothing in it was run")


def _extend(container: Any, values: list[Any]) -> None:
    if isinstance(container, Built):
        container.elements.extend(values)
    elif isinstance(container, set):
        container.update(values)
    else:
        container.extend(values)
