"""Pickles are read without running them. The malicious ones would make a file, and do where Python's reader is used."""

import argparse
import collections
import functools
import io
import pickle
import struct
from pathlib import Path

import pytest
import torch

from vqvae.foreign.pickles import Built, Global, Persistent, UnsafePickle, read_pickle


def read(content: bytes):
    return read_pickle(io.BytesIO(content))


# ---- what there is to read

PLAIN = {
    "numbers": [0, 1, 255, 256, 65536, -1, 2**40, -(2**70), 1.5, float("inf"), True, False, None],
    "texts": ["", "a", "ü" * 300, b"", b"\x00\xff" * 200, bytearray(b"ab")],
    "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}, {"a": [{"b": ()}]}, {1: 2, (3, 4): 5}],
    "long": list(range(3000)),
    "wide": {str(i): i for i in range(3000)},
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["numbers", "containers", "long", "wide"])
def test_plain_values_in_every_protocol(protocol, name):
    assert read(pickle.dumps(PLAIN[name], protocol)) == PLAIN[name]


@pytest.mark.parametrize("protocol", [4, 5])
def test_texts_and_sets(protocol):
    value = [*PLAIN["texts"][:5], {1, 2}, frozenset("ab")]
    assert read(pickle.dumps(value, protocol)) == value
    if protocol == 5:
        assert read(pickle.dumps(PLAIN["texts"], protocol)) == PLAIN["texts"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_is_held_twice_is_one(protocol):
    shared = ["a"]
    first, second = read(pickle.dumps([shared, shared], protocol))
    assert first is second


def test_pickles_one_after_the_other():
    stream = io.BytesIO(pickle.dumps(1, 2) + pickle.dumps([2], 4) + b"rest")
    assert [read_pickle(stream), read_pickle(stream), stream.read()] == [1, [2], b"rest"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_objects_are_records(protocol):
    value = read(pickle.dumps(argparse.Namespace(seed=1, names=["a"]), protocol))
    assert isinstance(value, Built)
    assert (str(value.what), value.state) == ("argparse.Namespace", {"seed": 1, "names": ["a"]})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_calls_are_records(protocol):
    value = read(pickle.dumps(functools.partial(int, "7", base=8), protocol))
    assert (str(value.what), value.args) == ("functools.partial", (Global("builtins", "int"),))
    assert value.state[1:3] == (("7",), {"base": 8})


def test_dictionaries_are_dictionaries():
    assert read(pickle.dumps(collections.OrderedDict(a=1, b=2), 2)) == {"a": 1, "b": 2}
    with_metadata = torch.nn.Linear(1, 1, bias=False).state_dict()
    with_metadata["weight"] = 3
    assert read(pickle.dumps(with_metadata, 2)) == {"weight": 3}
    counted = read(pickle.dumps(collections.defaultdict(list, a=[1]), 2))
    assert (str(counted.what), counted.items) == ("collections.defaultdict", {"a": [1]})


class Run:
    pass


def test_classes_of_other_packages_are_names():
    content = pickle.dumps({Run: Run()}, 2).replace(Run.__module__.encode(), b"nowhere.else")
    ((key, value),) = read(content).items()
    assert key == value.what == Global("nowhere.else", "Run")


def test_what_is_kept_outside():
    value = read(b"\x80\x02(X\x07\x00\x00\x00storageX\x01\x00\x00\x000tQ.")
    assert isinstance(value, Persistent)
    assert value.id == ("storage", "0")


# ---- what is refused


def call(module: str, name: str, argument: str) -> bytes:
    """module.name(argument)"""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


def text(value: str) -> bytes:
    return b"\x8c" + struct.pack("B", len(value)) + value.encode()


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


class Reduced:
    """What `__reduce__` says is called."""

    def __init__(self, *reduced) -> None:
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


MARKER = "MARKER"
MALICIOUS = {
    "posix.system": call("posix", "system", f"touch {MARKER}"),
    "os.system": call("os", "system", f"touch {MARKER}"),
    "subprocess.Popen": b"csubprocess\nPopen\n((lVtouch\naV" + MARKER.encode() + b"\natR.",
    "builtins.eval": call("builtins", "eval", f"open('{MARKER}', 'w')"),
    "builtins.exec": b"\x80\x04" + stack_global("builtins", "exec") + text(f"open('{MARKER}', 'w')") + b"\x85R.",
    "builtins.open": b"c__builtin__\nopen\n(V" + MARKER.encode() + b"\nVw\ntR.",
    "io.FileIO": b"(V" + MARKER.encode() + b"\nVw\niio\nFileIO\n.",
    "_io.FileIO": b"\x80\x04" + stack_global("_io", "FileIO") + text(MARKER) + text("w") + b"\x86\x81.",
    "io.open": b"(cio\nopen\nV" + MARKER.encode() + b"\nVw\no.",
    "builtins.getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(Vos\ntRVsystem\ntR(Vtouch "
    + MARKER.encode()
    + b"\ntR.",
    "builtins.__import__": call("builtins", "__import__", "os"),
    "operator.attrgetter": call("operator", "attrgetter", "system"),
    "torch.load": call("torch", "load", MARKER),
    "torch.storage._load_from_bytes": call("torch.storage", "_load_from_bytes", "x"),
    "torch.hub.load": call("torch.hub", "load", MARKER),
    "torch.nn.modules.module.os.system": b"\x80\x04"
    + stack_global("torch.nn.modules.module", "os.system")
    + text(f"touch {MARKER}")
    + b"\x85R.",
    "collections.abc.sys.modules": b"\x80\x04" + stack_global("collections", "abc.sys.modules") + b".",
    "torch.nn.modules.module.Module.apply": b"\x80\x04"
    + stack_global("torch.nn.modules.module", "Module.apply")
    + b".",
    "pip.main": call("pip", "main", "download"),
    "numpy.testing._private.utils.runstring": call("numpy.testing._private.utils", "runstring", "x"),
    "runpy._run_code": call("runpy", "_run_code", "x"),
}


@pytest.mark.parametrize(("named", "content"), MALICIOUS.items(), ids=list(MALICIOUS))
def test_what_no_weights_need_is_refused(named, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafePickle) as error:
        read(content)
    first = "builtins.getattr" if named == "builtins.getattr" else named
    assert f"it names {first}," in str(error.value)
    assert not Path(MARKER).exists()


@pytest.mark.parametrize(
    "named", ["posix.system", "os.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "builtins.open"]
)
def test_those_do_harm_where_they_are_run(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = pickle.loads(MALICIOUS[named])
    if named == "subprocess.Popen":
        process.wait()
    assert Path(MARKER).exists()


def test_state_that_would_become_a_method(tmp_path, monkeypatch):
    """BUILD calls `__setstate__`, which an earlier BUILD can have set."""
    monkeypatch.chdir(tmp_path)
    begun = b"cargparse\nNamespace\n)\x81}V__setstate__\n"
    command = f"Vtouch {MARKER}\n".encode()
    pickle.loads(begun + b"cposix\nsystem\nsb" + command + b"b.")
    assert Path(MARKER).exists()
    Path(MARKER).unlink()
    with pytest.raises(UnsafePickle, match=r"it names posix.system,"):
        read(begun + b"cposix\nsystem\nsb" + command + b"b.")
    with pytest.raises(UnsafePickle, match=r"it names posix.system,"):
        read(pickle.dumps(Reduced(argparse.Namespace, (), {"__setstate__": pytest.importorskip("posix").system})))
    harmless = read(begun + b"cbuiltins\nint\nsb" + command + b"b.")
    assert harmless.state == f"touch {MARKER}"
    assert not Path(MARKER).exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cfunctools\npartial\n(cbuiltins\nint\ntR(V7\ntR.", "it calls what it made of functools.partial"),
        (b"(V7\nlV8\n\x85R.", "it calls a list"),
        (b"cbuiltins\nint\n}b.", "it changes a Global"),
        (b"]}b.", "it changes a list"),
        (b"\x82\x01.", "it has the instruction EXT1"),
    ],
)
def test_what_no_pickle_of_weights_does_is_refused(content, message):
    with pytest.raises(UnsafePickle, match=message):
        read(content)


def test_dictionaries_copied_without_end(monkeypatch):
    monkeypatch.setattr("vqvae.foreign.pickles.MOST_COPIED", 1000)
    entries = b"".join(b"V%d\nN" % i for i in range(100))
    copy = b"ccollections\nOrderedDict\nh\x00\x85R0"
    once = b"}\x94(" + entries + b"u"
    assert len(read(once + 10 * copy + b".")) == 100
    with pytest.raises(ValueError, match="it copies more than 1,000 entries"):
        read(once + 11 * copy + b".")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"PK\x03\x04",
        b"hello",
        b"\x80\x04K\x01",
        b"K\x01K\x02\x86K\x03K\x04s.",
        b"h\x05.",
        b"t.",
        b"cbuiltins\nint.",
        b"K\x01K\x02\x93.",
        b"]](K\x01sK\x01s.",
        b"}(]K\x01u.",
    ],
)
def test_a_damaged_pickle_is_a_value_error(content):
    with pytest.raises(ValueError, match="damaged or no pickle"):
        read(content)
