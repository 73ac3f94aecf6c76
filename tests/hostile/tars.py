"""Tar shards that are out to hurt, and what `data.shards.source.ShardsSource` has to make of each.

`outcome` is a part of the error's message, or the `Reason` that a sample is counted by, or None where all is read. Each
tar that is not refused has the sound samples 0 and 1 too.
"""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from data.rejects import Reason
from tests.data.shards.tars import picture, sample
from tests.hostile.pictures import PICTURES

DEEP, BLOCK, MEGABYTE = 100_000, 512, 2**20


class Shard(NamedTuple):
    content: bytes
    outcome: str | Reason | None


def tar(*members: tuple[str, bytes] | tarfile.TarInfo, **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as archive:
        for member in members:
            info, content = (
                (member, b"") if isinstance(member, tarfile.TarInfo) else (tarfile.TarInfo(member[0]), member[1])
            )
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


SAMPLES = [*sample(0), *sample(1)]
SOUND = tar(*SAMPLES)


def with_third(**members: bytes) -> bytes:
    """By suffix, underscores for dots."""
    return tar(*SAMPLES, *((f"2.{suffix.replace('_', '.')}", content) for suffix, content in members.items()))


def special(kind: bytes, name: str = "2.png", target: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return tar(*SAMPLES, info)


def edited(at: int, new: bytes, *, summed: bool = True) -> bytes:
    """The first header changed, with the sum that it should then have."""
    header = bytearray(SOUND[:BLOCK])
    header[at : at + len(new)] = new
    if summed:
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * ord(" ") + sum(header[156:]))
    return bytes(header) + SOUND[BLOCK:]


def cut() -> Iterator[tuple[str, Shard]]:
    for length in (1, 100, 511, 512, 513, 1023, 1500, 2048, 3072, 5000):
        yield f"cut at {length}", Shard(SOUND[:length], "damaged|cut off|not an uncompressed tar|closed")
    end = len(SOUND.rstrip(b"\0"))
    yield "without the zeros at its end", Shard(SOUND[: -(-end // BLOCK) * BLOCK], "cut off")
    yield "two in one", Shard(SOUND + SOUND, "several in one")
    yield "a megabyte of rubbish behind it", Shard(SOUND + b"\xff" * MEGABYTE, "several in one")


def no_tars() -> Iterator[tuple[str, Shard]]:
    contents = {
        "nothing": b"",
        "text": b"not a tar" * 100,
        "a page": b"<html>404 Not Found</html>" * 50,
        "gzip": gzip.compress(SOUND),
        "bzip2": bz2.compress(SOUND),
        "xz": lzma.compress(SOUND),
        "a zip": b"PK\x03\x04" + bytes(2000),
        "a picture": picture(0) * 10,
        "0xff": b"\xff" * 4096,
    }
    for name, content in contents.items():
        yield name, Shard(content, "damaged")
    yield "zeros", Shard(bytes(4096), "nothing is left|no samples|0 of")


def headers() -> Iterator[tuple[str, Shard]]:
    wrong = {
        "wrong sum": edited(0, b"9", summed=False),
        "size of no digits": edited(124, b"99999999999\0"),
        "size of eight gigabytes": edited(124, b"77777777777\0"),
        "size of 2^88": edited(124, b"\x80" + b"\xff" * 11),
        "negative size": edited(124, b"\xff" * 12),
        "size of nothing": edited(124, bytes(12)),
        "a long name of eight gigabytes": edited(124, b"77777777777\0" + b"0" * 20 + b"L"),
        "records of eight gigabytes": edited(156, b"x"),
    }
    for name, content in wrong.items():
        yield name, Shard(content, "damaged|cut off|several in one")
    for name, records in {
        "records without lengths": b"path=../a\n",
        "records of length 0": b"0 path=a\n",
        "records that end in each other": b"9999999 path=a\n",
        "records of negative length": b"-5 a=b\n",
        "records of half a line": b"20 path=2.png",
        "a size that is none": b"12 size=abc\n",
        "a size of ten thousand digits": b"10011 size=" + b"9" * 10_000 + b"\n",
    }.items():
        info = tarfile.TarInfo("2.png")
        yield name, Shard(_with_records(records, info), "damaged")
    many = b"6 a=b\n" * 150_000
    yield "150,000 records", Shard(_with_records(many, tarfile.TarInfo("2.txt")), Reason.NO_PICTURE)


def _with_records(records: bytes, info: tarfile.TarInfo) -> bytes:
    header = tarfile.TarInfo("records")
    header.type, header.size = b"x", len(records)
    padded = records + bytes(-len(records) % BLOCK)
    sound = tar(*SAMPLES)
    at = sound.index(b"000000001.png") // BLOCK * BLOCK
    return sound[:at] + header.tobuf(tarfile.USTAR_FORMAT) + padded + info.tobuf(tarfile.USTAR_FORMAT) + sound[at:]


def links() -> Iterator[tuple[str, Shard]]:
    kinds = {
        "a symbolic link": tarfile.SYMTYPE,
        "a hard link": tarfile.LNKTYPE,
        "a character device": tarfile.CHRTYPE,
        "a block device": tarfile.BLKTYPE,
        "a pipe": tarfile.FIFOTYPE,
        "of no such type": b"Z",
    }
    for name, kind in kinds.items():
        yield name, Shard(special(kind, target="/etc/passwd"), Reason.NO_FILE)
    yield "a link to itself", Shard(special(tarfile.SYMTYPE, target="2.png"), Reason.NO_FILE)
    yield "a link out of the folder", Shard(special(tarfile.SYMTYPE, target="../../x"), Reason.NO_FILE)
    yield "a folder called as a picture", Shard(special(tarfile.DIRTYPE), None)


def names() -> Iterator[tuple[str, Shard]]:
    for name in (
        "../2.png",
        "a/../../2.png",
        "/2.png",
        "/etc/passwd.png",
        r"C:\2.png",
        r"\\host\2.png",
        "..\\2.png".replace("\\", "/"),
    ):
        yield f"the name {name}", Shard(tar(*SAMPLES, (name, picture(2))), Reason.OUTSIDE)
    yield (
        "a name that is no UTF-8",
        Shard(tar(*SAMPLES, ("\udcff.png", picture(2)), errors="surrogateescape"), Reason.BAD_NAME),
    )
    yield "a name twice", Shard(tar(*SAMPLES, ("2.png", picture(2)), ("2.png", picture(3))), Reason.DOUBLED_NAME)
    yield "two pictures", Shard(tar(*SAMPLES, ("2.png", picture(2)), ("2.jpg", picture(3))), Reason.TWO_PICTURES)
    for name in ("2", ".png", "..", ".", "a/", "__meta__", "a/.png/b"):
        yield f"the name {name!r}, which is no sample's", Shard(tar(*SAMPLES, (name, picture(2))), None)
    for letters in ("/", "a/", "a.", "./", "//a.b/"):
        long = letters * (900_000 // len(letters))
        shard = Shard(
            tar(*SAMPLES, (long, b""), format=tarfile.GNU_FORMAT), Reason.NO_PICTURE if letters == "a." else None
        )
        yield f"a name of 900,000 letters, {letters!r}", shard


def contents() -> Iterator[tuple[str, Shard]]:
    for name in ("nothing", "text", "png of 50000x50000", "postscript", "gif of 65535x65535", "svg"):
        yield f"a picture of {name}", Shard(with_third(png=PICTURES[name].data, txt=b"x"), Reason.BROKEN)
    for name, text in {
        "that is none": b"{",
        "in lists": b"[" * DEEP + b"]" * DEEP,
        "in objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        "of ten thousand digits": b'{"a": ' + b"9" * 10_000 + b"}",
        "as a list": b"[]",
        "in utf-16": '{"caption": "x"}'.encode("utf-16") + b"\0",
        "of half a pair": b'{"key": "\\ud83d"}',
        "over 16 megabytes": b"{" + b" " * (16 * MEGABYTE) + b"}",
    }.items():
        yield f"json {name}", Shard(with_third(png=picture(2), txt=b"x", json=text), Reason.BAD_METADATA)
    for name, text in {
        "nothing": b"",
        "spaces": b" \n ",
        "zeros": bytes(100),
        "latin-1": "Käse".encode("latin-1"),
        "over 16 megabytes": b"x" * (16 * MEGABYTE + 1),
    }.items():
        reasons = Reason.NO_CAPTION if name in ("nothing", "spaces", "zeros") else Reason.BAD_CAPTION
        yield f"a caption of {name}", Shard(with_third(png=picture(2), txt=text), reasons)
    for name, value in {"a number": 7, "a list": ["a"], "an object": {"a": 1}, "half a pair": "\ud83d"}.items():
        text = json.dumps({"caption": value}).encode()
        yield f"a caption that is {name}", Shard(with_third(png=picture(2), json=text), Reason.BAD_CAPTION)
    yield (
        "no such split",
        Shard(with_third(png=picture(2), json=b'{"split": "holdout", "caption": "x"}'), Reason.BAD_METADATA),
    )
    yield (
        "a key twice",
        Shard(with_third(png=picture(2), json=b'{"key": "000000000", "caption": "x"}'), Reason.DOUBLED_KEY),
    )
    yield "a key that leads out", Shard(with_third(png=picture(2), json=b'{"key": "../../x", "caption": "x"}'), None)
    yield "a key of zeros", Shard(with_third(png=picture(2), json=b'{"key": "\\u0000", "caption": "x"}'), None)
    yield "no picture", Shard(with_third(txt=b"x"), Reason.NO_PICTURE)


GROUPS: tuple[Callable[[], Iterator[tuple[str, Shard]]], ...] = (cut, no_tars, headers, links, names, contents)
SHARDS: dict[str, Shard] = {name: shard for group in GROUPS for name, shard in group()}
