"""Files of weights that are out to hurt: pickles that would run code, and such that are endless or lie about tensors.

Those that run code would make a file called MARKER where they are run, or would reach for what can.
"""

import io
import pickle
import struct
import zipfile
from collections.abc import Iterator

MARKER = "MARKER"
DEEP = 20_000
TOUCH = f"touch {MARKER}"
WRITE = f"open({MARKER!r}, 'w')"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(module: str, name: str, *arguments: str) -> bytes:
    return f"c{module}\n{name}\n(".encode() + b"".join(map(text, arguments)) + b"tR."


def running() -> Iterator[tuple[str, bytes]]:
    """One a way of running code, of opening files or of reaching others."""
    calls = {
        "os.system": (TOUCH,),
        "posix.system": (TOUCH,),
        "nt.system": (TOUCH,),
        "os.popen": (TOUCH,),
        "os.execl": ("/bin/touch", "touch", MARKER),
        "os.remove": ("a.pt",),
        "subprocess.getoutput": (TOUCH,),
        "subprocess.check_output": (TOUCH,),
        "builtins.eval": (WRITE,),
        "builtins.exec": (WRITE,),
        "builtins.compile": (WRITE, "a", "exec"),
        "builtins.open": (MARKER, "w"),
        "builtins.__import__": ("os",),
        "builtins.getattr": ("a", "__class__"),
        "builtins.breakpoint": (),
        "__builtin__.execfile": (MARKER,),
        "importlib.import_module": ("os",),
        "runpy.run_path": ("a.pt",),
        "code.interact": (),
        "pty.spawn": ("/bin/sh",),
        "shutil.rmtree": (".",),
        "shutil.copy": ("a.pt", MARKER),
        "webbrowser.open": ("http://localhost:1",),
        "urllib.request.urlretrieve": ("http://localhost:1", MARKER),
        "socket.create_connection": ("localhost",),
        "ctypes.CDLL": ("libc.so.6",),
        "pickle.loads": ("cos\nsystem\n",),
        "_pickle.loads": ("cos\nsystem\n",),
        "marshal.loads": ("c",),
        "types.CodeType": (),
        "operator.methodcaller": ("system", TOUCH),
        "operator.attrgetter": ("system",),
        "pathlib.Path.write_text": (MARKER, "x"),
        "io.FileIO": (MARKER, "w"),
        "logging.FileHandler": (MARKER,),
        "sqlite3.connect": (MARKER,),
        "bdb.Bdb": (),
        "timeit.timeit": (WRITE,),
        "cProfile.run": (WRITE,),
        "doctest.debug_script": (WRITE,),
        "asyncio.create_subprocess_shell": (TOUCH,),
        "multiprocessing.Process": (),
        "torch.load": ("a.pt",),
        "torch.save": (MARKER, MARKER),
        "torch.hub.load": ("localhost", "x"),
        "torch.jit.load": ("a.pt",),
        "torch.storage._load_from_bytes": ("x",),
        "torch.utils.cpp_extension.load_inline": ("x", WRITE),
        "torch.serialization.load": ("a.pt",),
        "numpy.load": ("a.pt",),
        "numpy.save": (MARKER, "x"),
        "numpy.fromfile": ("/dev/zero",),
        "numpy.memmap": (MARKER,),
        "yaml.unsafe_load": (f"!!python/object/apply:os.system [{TOUCH!r}]",),
        "jsonargparse.CLI": (),
        "PIL.Image.open": ("/dev/zero",),
    }
    for name, arguments in calls.items():
        module, _, attribute = name.rpartition(".")
        yield name, call(module, attribute, *arguments)
    yield (
        "a method reached by dots",
        b"\x80\x04" + text("torch") + text("os.system") + b"\x93" + text(TOUCH) + b"\x85R.",
    )
    yield (
        "a state that becomes a method",
        b"cargparse\nNamespace\n)\x81}V__setstate__\ncposix\nsystem\nsb" + text(TOUCH) + b"b.",
    )
    yield "code in what a dictionary is made of", b"ccollections\nOrderedDict\n(cos\nsystem\n(" + text(TOUCH) + b"tRtR."
    yield "code behind the weights", pickle.dumps({}, 2)[:-1] + call("os", "system", TOUCH)
    yield "code in an instruction of old", b"(" + text(TOUCH) + b"ios\nsystem\n."
    yield "code as an object of old", b"(cos\nsystem\n" + text(TOUCH) + b"o."
    yield "code in the identity of a storage", b"cos\nsystem\n(" + text(TOUCH) + b"tRQ."


def damaged() -> Iterator[tuple[str, bytes]]:
    """Pickles that are too deep, too long, or none."""
    yield "nothing", b""
    yield "the end alone", b"."
    yield "a list in a list, and so on", b"]" * DEEP + b"a" * (DEEP - 1) + b"."
    yield "a tuple in a tuple, and so on", b")" + b"\x85" * DEEP + b"."
    yield "a key of tuples in tuples", b"})" + b"\x85" * DEEP + b"Ns."
    yield "a text of eight exabytes", b"\x80\x04\x8d" + struct.pack("<Q", 2**63 - 1) + b"abc."
    yield "a text of four gigabytes", b"X\xff\xff\xff\xffabc."
    yield "bytes of eight exabytes", b"\x80\x04\x8e" + struct.pack("<Q", 2**63 - 1) + b"abc."
    yield "a number of two gigabytes", b"\x8b\xff\xff\xff\x7fabc."
    yield "a number of negative length", b"\x8b\xff\xff\xff\xffabc."
    yield "a number of ten thousand digits", b"I" + b"9" * 10_000 + b"\n."
    yield "a frame of eight exabytes", b"\x80\x04\x95" + struct.pack("<Q", 2**63 - 1) + b"N."
    yield "a memory that is not there", b"h\x07."
    yield "marks without an end", b"(" * DEEP
    yield "protocol 200", b"\x80\xc8N."
    yield "a list that holds itself", b"]\x94h\x00a."
    yield "a dictionary that holds itself", b"}\x94" + text("state_dict") + b"h\x00s."
    yield "a text", b"epoch: 7"
    yield "a number for weights", pickle.dumps(7)
    yield "tensors whose names are numbers", tensor().replace(text("encoder.conv_in.weight"), b"K\x07")
    yield (
        "a module with a name of tuples in tuples",
        (b"ctorch.nn.modules.linear\nLinear\n)\x81})" + b"\x85" * DEEP + b"Nsb."),
    )
    yield "a list for weights", pickle.dumps([1, 2])
    yield "weights that are texts", pickle.dumps({"state_dict": {"a": "b"}})
    yield "weights under another name", pickle.dumps({"weights": {}})
    yield (
        "doubling eighty times",
        b"]\x94" + b"".join(b"(h%sh%sl\x94" % (bytes([i]), bytes([i])) for i in range(80)) + b".",
    )


def tensor(
    key: str = "0", values: int = 4, size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), offset: int = 0
) -> bytes:
    """A checkpoint of one tensor, whose storage is `key`."""

    def number(value: int) -> bytes:
        return b"\x8a" + struct.pack("<B", 9) + value.to_bytes(9, "little", signed=True)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(values) + b"tQ"
    arguments = storage + number(offset) + numbers(size) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)R"
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"
    return b"\x80\x02}" + text("state_dict") + b"}" + text("encoder.conv_in.weight") + made + b"ss."


def lying() -> Iterator[tuple[str, bytes]]:
    """Pickles of tensors that are not in their storages, which hold four numbers."""
    yield "a tensor of 2^40 numbers", tensor(size=(2**40,))
    yield "a tensor of 2^62 by 2^62", tensor(size=(2**62, 2**62), stride=(1, 1))
    yield "a tensor of negative size", tensor(size=(-4,))
    yield "a tensor that begins behind its end", tensor(offset=2**40)
    yield "a tensor that begins before", tensor(offset=-8)
    yield "a tensor of giant steps", tensor(stride=(2**40,))
    yield "a tensor of steps backwards", tensor(stride=(-1,))
    yield "a storage of 2^40 numbers", tensor(values=2**40, size=(2**40,))
    yield "a storage of negative length", tensor(values=-4)
    yield "a storage that is not there", tensor(key="7")
    yield "a storage of another place", tensor(key="../../../etc/passwd")
    yield "a tensor of more steps than sizes", tensor(stride=(1, 1, 1))


def zipped(content: bytes, folder: str = "archive") -> bytes:
    """As torch.save writes it today."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", content)
        archive.writestr(f"{folder}/byteorder", b"little")
        archive.writestr(f"{folder}/data/0", struct.pack("<4f", 1, 2, 3, 4))
        archive.writestr(f"{folder}/version", b"3\n")
    return buffer.getvalue()


def legacy(content: bytes) -> bytes:
    """As torch.save wrote it before 1.6."""
    about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, about))
    return head + content + pickle.dumps(["0"], 2) + struct.pack("<q4f", 4, 1, 2, 3, 4)


def archives() -> Iterator[tuple[str, bytes]]:
    """Around the pickle."""
    sound = zipped(tensor())
    yield "zip cut in half", sound[: len(sound) // 2]
    yield "zip without its end", sound[:-22]
    yield "zip of nothing", zipfile_of({})
    yield "zip without a pickle", zipfile_of({"archive/version": b"3"})
    yield "zip with two pickles", zipfile_of({"a/data.pkl": tensor(), "b/data.pkl": tensor()})
    yield "zip that leads out of its folder", zipped(tensor(), folder="../../..")
    yield "zip that leads to the root", zipped(tensor(), folder="/tmp")
    yield "zip whose pickle is compressed zeros", zipfile_of({"archive/data.pkl": bytes(2**22)}, zipfile.ZIP_DEFLATED)
    yield "zip of numbers the other way round", sound.replace(b"little", b"big\0\0\0")
    yield (
        "zip as a torchscript",
        zipfile_of({"archive/code/a.py": WRITE.encode(), "archive/constants.pkl": b"N.", "archive/data.pkl": b"N."}),
    )
    for at in (0, 26, 28, 30):
        yield (
            f"zip with bits flipped at {at}",
            sound[:at] + bytes(255 - byte for byte in sound[at : at + 4]) + sound[at + 4 :],
        )


def zipfile_of(contents: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def files() -> Iterator[tuple[str, bytes]]:
    for group in (running, damaged, lying):
        for name, content in group():
            yield f"{name}, zipped", zipped(content)
            yield f"{name}, as before torch 1.6", legacy(content)
    for name, content in (*running(), *damaged()):
        yield f"{name}, bare", content
    yield from archives()


PICKLES: dict[str, bytes] = dict(files())
