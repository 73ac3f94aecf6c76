"""Folders whose captions are out to hurt: files by name, and what `data.folder.FolderSource` has to make of them.

Each has the sound pictures a.png and b.png. `outcome` is a part of the error's message, or a reject's `Reason`, or None
where all is to be read.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from data.rejects import Reason

MEGABYTE = 2**20
BIDI = "\u202etac a\u202c\u2066x\u2069"
EMOJI = "👩‍👩‍👧‍👦 on a 🚲 é́́́"
DEEP = 100_000
LONG_NUMBER = "9" * 10_000


class Folder(NamedTuple):
    files: dict[str, bytes]
    outcome: str | Reason | None
    links: dict[str, str] = {}  # noqa: RUF012 (read only)


def table(*rows: str, header: str = "file_name,text", end: str = "\n") -> bytes:
    return end.join([header, *rows, ""]).encode()


def csv_files() -> Iterator[tuple[str, Folder]]:
    sound = table("a.png,a cat", "b.png,a dog")
    refused = {
        "empty": (b"", "no rows"),
        "only a header": (table(), "no rows"),
        "no column of names": (table("a.png,x", header="picture,text"), "no column file_name"),
        "no column of captions": (table("a.png,x", header="file_name,words"), "no column text"),
        "two columns of one name": (table("a.png,x,y", header="file_name,text,text"), "two columns of one name"),
        "two columns of names": (table("a.png,b.png,x", header="path,image,text"), "could each be file_name"),
        "a row too short": (table("a.png"), "1 fields, but the header has 2"),
        "a row too long": (table("a.png,a,b,c"), "4 fields, but the header has 2"),
        "a quote left open": (table('a.png,"a cat', "b.png,a dog"), "captions.csv line"),
        "a quote within": (table('a.png,"a "small" cat"'), "captions.csv line"),
        "a name that is none": (table(",a cat"), "expected the name of a picture"),
        "semicolons": (table("a.png;a cat", header="file_name;text"), "parted by commas"),
        "latin-1": ("file_name,text\na.png,ein Käse\n".encode("latin-1"), "line 2: not UTF-8"),
        "utf-16": (sound.decode().encode("utf-16"), "not UTF-8"),
        "utf-16 without a mark": (sound.decode().encode("utf-16-le"), "no column|two columns|line"),
        "utf-32": (sound.decode().encode("utf-32"), "not UTF-8|no column"),
        "shift-jis": ("file_name,text\na.png,猫\n".encode("shift-jis"), "not UTF-8"),
        "a compressed file": (b"\x1f\x8b\x08\x00" + bytes(range(256)), "not UTF-8"),
        "a field of a megabyte and a half": (table("a.png," + "x" * (3 * MEGABYTE // 2)), "line 2: .*field larger"),
        "no such split": (table("a.png,x,holdout", header="file_name,text,split"), "split is 'holdout'"),
        "two splits": (table("a.png,x,train", "a.png,y,val", header="file_name,text,split"), "several splits"),
        "out of the folder": (table("../a.png,x"), "none of the 1 files"),
        "an absolute path": (table("/etc/passwd,x"), "none of the 1 files"),
        "an absolute path of windows": (table(r"C:\a.png,x"), "none of the 1 files"),
        "a path of a network": (table(r"\\host\share\a.png,x"), "none of the 1 files"),
        "a name of ten thousand letters": (table("x" * 10_000 + ".png,x"), "none of the 1 files"),
        "a name with zeros": (table("a\0.png,x"), "none of the 1 files"),
        "a name with a line's end": (table('"a\n.png",x'), "none of the 1 files"),
        "a name with commands": (table("$(touch x).png,x"), "none of the 1 files"),
        "an address": (table("http://localhost:1/a.png,x"), "none of the 1 files"),
        "a file of the system": (table("/dev/zero,x"), "none of the 1 files"),
    }
    for name, (data, message) in refused.items():
        yield f"csv: {name}", Folder({"captions.csv": data}, message)
    rejected = {
        "one out of the folder": (table("a.png,x", "b.png,x", "../../a.png,y"), Reason.OUTSIDE),
        "one out of the folder by way of it": (table("a.png,x", "b.png,x", "sub/../../a.png,y"), Reason.OUTSIDE),
        "one out of the folder with backslashes": (table("a.png,x", "b.png,x", r"..\a.png,y"), Reason.OUTSIDE),
        "one absolute": (table("a.png,x", "b.png,x", "/a.png,y"), Reason.OUTSIDE),
        "one that is not there": (table("a.png,x", "b.png,x", "c.png,y"), Reason.NO_PICTURE),
        "one that is no picture": (table("a.png,x", "b.png,x", "captions.csv,y"), Reason.NO_PICTURE),
        "a caption of nothing": (table("a.png,", "b.png,x"), Reason.NO_CAPTION),
        "a caption of spaces": (table("a.png,  \t\u3000 ", "b.png,x"), Reason.NO_CAPTION),
        "a caption of nothing that is seen": (table("a.png,\u200b\u200d\ufeff", "b.png,x"), Reason.NO_CAPTION),
        "one picture without a row": (table("a.png,x"), Reason.NO_CAPTION),
    }
    for name, (data, reason) in rejected.items():
        yield f"csv: {name}", Folder({"captions.csv": data}, reason)
    read = {
        "a byte order mark": b"\xef\xbb\xbf" + sound,
        "ends of lines of old macs": table("a.png,a cat", "b.png,a dog", end="\r"),
        "ends of lines of windows": table("a.png,a cat", "b.png,a dog", end="\r\n"),
        "one caption twice": table("a.png,x", "a.png,x", "b.png,x"),
        "right to left": table(f"a.png,{BIDI}", "b.png,x"),
        "emoji": table(f"a.png,{EMOJI}", "b.png,x"),
        "zeros in a caption": table("a.png,a\0cat", "b.png,x"),
        "controls in a caption": table("a.png,a\x1b[31mcat\x07", "b.png,x"),
        "a formula": table("a.png,\"=cmd|'/c calc'!A1\"", "b.png,x"),
        "a caption of 100 kilobytes": table("a.png," + "x" * 100_000, "b.png,x"),
        "a line's end in a caption": table('a.png,"a\ncat"', "b.png,x"),
        "what is no letter": table("a.png,\ufffe\uffff\U0010ffff", "b.png,x"),
    }
    for name, data in read.items():
        yield f"csv: {name}", Folder({"captions.csv": data}, None)
    yield "tsv: commas", Folder({"captions.tsv": sound}, "parted by tabs")


def json_lines() -> Iterator[tuple[str, Folder]]:
    def lines(*rows: str) -> bytes:
        return "\n".join(rows).encode()

    b = '{"file_name": "b.png", "text": "x"}'
    refused = {
        "empty": ("", "no rows"),
        "not JSON": ("a.png: a cat", "line 1: not JSON"),
        "half an object": ('{"file_name": "a.png", "te', "line 1: not JSON"),
        "a list": ('["a.png", "a cat"]', "expected an object"),
        "a number": ("7", "expected an object"),
        "lists in lists": ("[" * DEEP + "]" * DEEP, "line 1: not JSON"),
        "objects in objects": ('{"a":' * DEEP + "1" + "}" * DEEP, "line 1: not JSON"),
        "a number of ten thousand digits": (f'{{"file_name": "a.png", "text": {LONG_NUMBER}}}', "line 1: not JSON"),
        "a number for a caption": ('{"file_name": "a.png", "text": 7}', "text is 7"),
        "not a number for a caption": ('{"file_name": "a.png", "text": NaN}', "text is nan"),
        "an object for a caption": ('{"file_name": "a.png", "text": {"en": "x"}}', "text is {"),
        "numbers for captions": ('{"file_name": "a.png", "text": ["x", 7]}', "text is 7"),
        "a list for a name": ('{"file_name": ["a.png"], "text": "x"}', "file_name is"),
        "null for a name": ('{"file_name": null, "text": "x"}', "file_name is None"),
        "true for a split": ('{"file_name": "a.png", "text": "x", "split": true}', "split is True"),
        "a list for a split": ('{"file_name": "a.png", "text": "x", "split": ["val"]}', "split is"),
        "half of a pair": ('{"file_name": "a.png", "text": "\\ud83d"}', "surrogate"),
        "half of a pair in a name": ('{"file_name": "\\ud83d.png", "text": "x"}', "none of the 1 files|surrogate"),
        "no names": ('{"text": "x"}', "no column file_name"),
        "no captions": ('{"file_name": "a.png"}', "no column text"),
        "out of the folder": ('{"file_name": "../../etc/passwd", "text": "x"}', "none of the 1 files"),
    }
    for name, (text, message) in refused.items():
        yield f"jsonl: {name}", Folder({"captions.jsonl": lines(text)}, message)
    rejected = {
        "no captions in a list": '{"file_name": "a.png", "text": []}',
        "null for a caption": '{"file_name": "a.png", "text": null}',
        "captions of nothing": '{"file_name": "a.png", "text": ["", " ", "\\u200b"]}',
    }
    for name, text in rejected.items():
        yield f"jsonl: {name}", Folder({"captions.jsonl": lines(text, b)}, Reason.NO_CAPTION)
    read = {
        "a caption of a megabyte": f'{{"file_name": "a.png", "text": "{"x" * MEGABYTE}"}}',
        "ten thousand captions": f'{{"file_name": "a.png", "text": {json.dumps([str(i) for i in range(10_000)])}}}',
        "one key twice": '{"file_name": "c.png", "file_name": "a.png", "text": "x"}',
        "zeros": '{"file_name": "a.png", "text": "a\\u0000cat"}',
        "separators of lines": '{"file_name": "a.png", "text": "a\u2028cat\u0085"}',
    }
    for name, text in read.items():
        yield f"jsonl: {name}", Folder({"captions.jsonl": lines(text, "", b)}, None)


def texts() -> Iterator[tuple[str, Folder]]:
    rejected = {
        "empty": (b"", Reason.NO_CAPTION),
        "ends of lines": (b"\n\r\n\r\n", Reason.NO_CAPTION),
        "a mark alone": (b"\xef\xbb\xbf", Reason.NO_CAPTION),
        "zeros": (bytes(100), Reason.NO_CAPTION),
        "latin-1": ("Käse".encode("latin-1"), Reason.BAD_CAPTION),
        "utf-16": ("a cat".encode("utf-16"), Reason.BAD_CAPTION),
        "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), Reason.BAD_CAPTION),
        "half of a pair": (b"\xed\xa0\xbd", Reason.BAD_CAPTION),
        "a letter cut off": ("猫".encode()[:2], Reason.BAD_CAPTION),
    }
    for name, (data, reason) in rejected.items():
        yield f"txt: {name}", Folder({"a.txt": data, "b.txt": b"x"}, reason)
    for name, data in {"a megabyte": b"x" * MEGABYTE, "bidi": BIDI.encode(), "emoji": EMOJI.encode()}.items():
        yield f"txt: {name}", Folder({"a.txt": data, "b.txt": b"x"}, None)
    yield "txt: of no picture", Folder({"a.txt": b"x", "b.txt": b"x", "c.txt": b"x"}, Reason.NO_PICTURE)


def coco() -> Iterator[tuple[str, Folder]]:
    def annotations(images: object, captions: object) -> str:
        return json.dumps({"images": images, "annotations": captions})

    image, caption = {"id": 1, "file_name": "a.png"}, {"image_id": 1, "caption": "x"}
    refused = {
        "empty": ("", "not JSON"),
        "a list": ("[]", "no list of 'images'"),
        "no pictures": (annotations([], [caption]), "no list of 'images'"),
        "no captions": (annotations([image], []), "no list of 'annotations'"),
        "an object for a list": (annotations({"1": image}, [caption]), "no list of 'images'"),
        "numbers for pictures": (annotations([1, 2], [caption]), r"images\[0\]: expected an object"),
        "an id that is a list": (annotations([image | {"id": [1]}], [caption]), r"images\[0\]: expected an object"),
        "an id that is a fraction": (annotations([image | {"id": 0.5}], [caption]), r"images\[0\]: expected"),
        "one id twice": (annotations([image, image], [caption]), "a second image with id 1"),
        "a caption of another": (annotations([image], [caption | {"image_id": 2}]), "the id of no image"),
        "a number for a caption": (annotations([image], [caption | {"caption": 7}]), "expected a string"),
        "null for a caption": (annotations([image], [caption | {"caption": None}]), "expected an object"),
        "half of a pair": (annotations([image], [caption | {"caption": "\ud83d"}]), "surrogate"),
        "half of a pair in a name": (
            annotations([image | {"file_name": "\ud83d.png"}], [caption]),
            "none of|surrogate",
        ),
        "lists in lists": ('{"images":' + "[" * DEEP + "]" * DEEP + "}", "not JSON"),
        "a number of ten thousand digits": (f'{{"images": [{{"id": {LONG_NUMBER}}}]}}', "not JSON"),
        "out of the folder": (annotations([image | {"file_name": "../../a.png"}], [caption]), "none of the 1 files"),
        "an absolute path": (annotations([image | {"file_name": "/etc/passwd"}], [caption]), "none of the 1 files"),
    }
    for name, (text, message) in refused.items():
        yield f"coco: {name}", Folder({"captions_train.json": text.encode()}, message)


def links() -> Iterator[tuple[str, Folder]]:
    """What is in a folder beside plain files."""
    sound = {"captions.csv": table("a.png,a cat", "b.png,a dog")}
    more = {"captions.csv": table("a.png,a cat", "b.png,a dog", "c.png,x")}
    yield "link to nothing", Folder(more, Reason.BROKEN, {"c.png": "nowhere.png"})
    yield "link to itself", Folder(more, Reason.BROKEN, {"c.png": "c.png"})
    yield "link to a file that is no picture", Folder(more, Reason.BROKEN, {"c.png": "/etc/passwd"})
    yield "link to endless zeros", Folder(more, Reason.BROKEN, {"c.png": "/dev/zero"})
    yield "link to a folder that holds it", Folder(sound, None, {"sub": "."})
    yield (
        "table that links to endless zeros",
        Folder({}, "captions.csv: not a regular file", {"captions.csv": "/dev/zero"}),
    )
    yield "table that links to itself", Folder({}, "captions.csv", {"captions.csv": "captions.csv"})


GROUPS: tuple[Callable[[], Iterator[tuple[str, Folder]]], ...] = (csv_files, json_lines, texts, coco, links)
FOLDERS: dict[str, Folder] = {name: folder for group in GROUPS for name, folder in group()}


def write(folder: Folder, place: Path, pictures: dict[str, bytes]) -> None:
    place.mkdir()
    for name, data in (pictures | folder.files).items():
        (place / name).write_bytes(data)
    for name, target in folder.links.items():
        (place / name).symlink_to(target)
