"""The members of a shard put together to samples, as the webdataset library does it and img2dataset writes them.

A sample is all members whose names are the same up to the first dot of the last part, its key: `00/17.jpg`,
`00/17.txt` and `00/17.json` are the sample `00/17`. Its picture is the one member with the suffix of a picture, in
capitals or not; other suffixes (`17.mask.png`, `17.cls`) are passed over, and so are folders, names without a dot and
those that begin with two underscores and end so.

- Key: "key" in the `.json` where that is a text (`python -m data.shards pack` keeps the names of files there), else the
  members' own.
- Captions: "captions" in the `.json`, a list, where it is there; else the whole `.txt` is one; else "caption" in the
  `.json`. Those of which nothing is seen do not count.
- Split: "split" in the `.json`, in the words of caption tables (train, val, test and the like).

What cannot be used is rejected: a sample with two pictures, with none, or with one whose header says that it is none
or too large; a `.json` that is none or names a split that is none; members that are links or sparse files, whose names
lead elsewhere (nothing is ever extracted, but whoever wrote that meant harm) or come twice, with all of their sample. A
caption that is not UTF-8 or over 16 megabytes counts against its sample only where captions are needed. Pixels are not
decoded here: what is broken in them is found when a picture is read.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from enum import IntEnum
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple, Protocol

from PIL import Image

from data.caption_tables import SPLITS, is_absolute, is_unicode
from data.pictures import PICTURE_SUFFIXES, PictureError, decode_picture, size_in_header
from data.rejects import Reason, Reject, Rejected
from data.shards.tar import DamagedShard, Member, members
from data.text import is_visible

MAX_TEXT = 1 << 24  # bytes of a .txt or .json
MAX_PICTURE = 1 << 28  # bytes of a picture
_META = re.compile(r"__[^/]*__($|/)")  # the library's: members about the shard itself
_PICTURES = tuple(suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES)


class Form(IntEnum):
    """How a sample's captions are written down."""

    NONE = 0
    TEXT = 1  # a .txt
    LISTED = 2  # "captions" of a .json
    SINGLE = 3  # "caption" of a .json
    UNREADABLE = 4


CAPTIONED = (Form.TEXT, Form.LISTED, Form.SINGLE)


class Sample(NamedTuple):
    """One usable sample.

    `picture` and `caption` are first byte and length in the shard, `size` is the picture's as its header has it.
    """

    key: str
    split: str | None
    texts: tuple[str, ...]
    picture: tuple[int, int]
    size: tuple[int, int]
    digest: bytes  # of the picture's bytes
    caption: tuple[int, int]
    form: Form


class Opened(Protocol):
    """An open file, as far as reading at a place needs it."""

    def fileno(self) -> int: ...


class _Picture(NamedTuple):
    """What is read of a picture: its size as the header has it, and a digest of its bytes."""

    size: tuple[int, int]
    digest: bytes


class _Part(NamedTuple):
    """A member and what was read of it: of a picture, or what is wrong with it; the bytes of a text.

    None for other suffixes, and for texts over MAX_TEXT.
    """

    member: Member
    read: _Picture | bytes | PictureError | None


_Parts = dict[str, _Part]  # of one sample, by suffix


def read_samples(file: BinaryIO, shard: str) -> tuple[list[Sample], list[Reject]]:
    """All samples of a shard in the order in which they begin, and what was rejected.

    Args:
        file: the shard.
        shard: its name, for the rejects.

    Raises DamagedShard where it is no whole tar.
    """
    groups, rejects = _grouped(file, shard)
    samples = []
    for key, parts in groups.items():
        found = _sample(f"{shard}: {key}", key, parts)
        if isinstance(found, Reject):
            rejects.append(found)
        else:
            samples.append(found)
    return samples, rejects


def read_bytes(file: Opened, offset: int, size: int) -> bytes:
    """Bytes of a shard, whatever else reads it at the same time. Raises DamagedShard where the file ends before."""
    content = os.pread(file.fileno(), size, offset)
    if len(content) < size:
        raise DamagedShard(f"cut off: {size:,} bytes expected from byte {offset:,} on, {len(content):,} are there")
    return content


def texts_of(content: bytes, form: Form) -> tuple[str, ...]:
    """The captions in the bytes that hold them: stripped, none twice, none of which nothing is seen.

    Raises ValueError where they cannot be read.
    """
    if form == Form.TEXT:
        return _visible([content.decode("utf-8-sig")])
    meta = json.loads(content)
    return _visible(meta["captions"] if form == Form.LISTED else [meta["caption"]])


def captioned(content: bytes, form: Form, where: str) -> tuple[str, ...]:
    """As `texts_of`, of bytes that held captions when they were indexed. Raises `Rejected` where they no longer do."""
    try:
        texts = texts_of(content, form)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Rejected(Reject(where, Reason.BAD_CAPTION, f"not what was indexed: {error!r}")) from error
    if not texts:
        raise Rejected(Reject(where, Reason.BAD_CAPTION, "not what was indexed: nothing is seen of it"))
    return texts


def without_caption(where: str, form: int) -> Reject:
    """The reject of a sample whose form is none of CAPTIONED, where captions are needed."""
    if form == Form.UNREADABLE:
        return Reject(where, Reason.BAD_CAPTION, "not UTF-8, no text, or over 16 megabytes")
    return Reject(where, Reason.NO_CAPTION, "neither in a .txt nor in a .json")


def decoded(content: bytes, where: str, least: int | None) -> Image.Image:
    """The picture in the bytes, as `decode_picture` gives it. Raises `Rejected` where it is broken."""
    try:
        return decode_picture(content, least)
    except PictureError as error:
        raise Rejected(Reject(where, Reason.BROKEN, str(error))) from error


def _visible(texts: list[str]) -> tuple[str, ...]:
    if not all(isinstance(text, str) and is_unicode(text) for text in texts):
        raise ValueError("no text, or half of a surrogate pair, which is no character")
    return tuple(dict.fromkeys(text.strip() for text in texts if is_visible(text)))


def _grouped(file: BinaryIO, shard: str) -> tuple[dict[str, _Parts], list[Reject]]:
    """Members by key and suffix; without those of samples of which a member was rejected."""
    groups: dict[str, _Parts] = {}
    rejects, spoilt = [], set()
    for member in members(file):
        named = key_and_suffix(member.name)
        if named is None or _META.match(member.name) or member.kind == "a folder":
            continue
        key, suffix = named[0], named[1].lower()
        parts = groups.setdefault(key, {})
        reason = _fault(member, suffix in parts)
        if reason is not None:
            rejects.append(Reject(f"{shard}: {member.name}", reason, member.kind))
            spoilt.add(key)
            continue
        parts[suffix] = _Part(member, _read(file, member, suffix))
    return {key: parts for key, parts in groups.items() if key not in spoilt}, rejects


def key_and_suffix(name: str) -> tuple[str, str] | None:
    """The two parts of a name, or None where it has no suffix.

    The library's `^((?:.*/|)[^.]+)[.]([^/]*)$` in a time that grows with the name alone: of a million slashes that
    pattern tries each with each.
    """
    slash = name.rfind("/")
    dot = name.find(".", slash + 1)
    if dot < 0:
        return None
    if dot == slash + 1 and (slash < 0 or "." in name[name.rfind("/", 0, slash) + 1 : slash]):  # "a/.b" is b of "a/"
        return None
    return name[:dot], name[dot + 1 :]


def _fault(member: Member, twice: bool) -> Reason | None:
    if is_absolute(member.name) or ".." in PurePosixPath(member.name).parts:
        return Reason.OUTSIDE
    if not is_unicode(member.name):
        return Reason.BAD_NAME
    if member.kind:
        return Reason.NO_FILE
    return Reason.DOUBLED_NAME if twice else None


def _read(file: BinaryIO, member: Member, suffix: str) -> _Picture | bytes | PictureError | None:
    if suffix in _PICTURES:
        if member.size > MAX_PICTURE:
            return PictureError(f"{member.size:,} bytes, more than the {MAX_PICTURE:,} that are read")
        content = read_bytes(file, member.offset, member.size)
        try:
            size = size_in_header(content)
        except PictureError as error:
            return error
        return _Picture(size, hashlib.blake2b(content, digest_size=16).digest())
    if suffix in ("txt", "json") and member.size <= MAX_TEXT:
        return read_bytes(file, member.offset, member.size)
    return None


def _sample(where: str, key: str, parts: _Parts) -> Sample | Reject:
    """One sample, or why it is none."""
    suffixes = [suffix for suffix in parts if suffix in _PICTURES]
    if len(suffixes) != 1:
        reason = Reason.TWO_PICTURES if suffixes else Reason.NO_PICTURE
        return Reject(where, reason, f"it has {', '.join(parts)}")
    member, picture = parts[suffixes[0]]
    if isinstance(picture, PictureError):
        return Reject(where, Reason.BROKEN, str(picture))
    try:
        meta = _meta(parts.get("json"))
        key = _key(meta, key)
        split = _split(meta)
    except ValueError as error:
        return Reject(where, Reason.BAD_METADATA, str(error))
    form, texts = _captions(parts, meta)
    holder = parts.get("txt" if form == Form.TEXT else "json") if texts else None
    return Sample(
        key=key,
        split=split,
        texts=texts,
        picture=(member.offset, member.size),
        size=picture.size,
        digest=picture.digest,
        caption=(holder.member.offset, holder.member.size) if holder else (0, 0),
        form=form,
    )


def _meta(part: _Part | None) -> Mapping[str, object]:
    if part is None:
        return {}
    if part.read is None:
        raise ValueError(f"its .json has {part.member.size:,} bytes, expected at most {MAX_TEXT:,}")
    try:
        meta = json.loads(part.read)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .json is none ({error})") from error
    if not isinstance(meta, dict):
        raise ValueError(f"its .json holds {str(meta)[:40]!r}, expected an object")
    return meta


def _key(meta: Mapping[str, object], key: str) -> str:
    said = meta.get("key")
    if not isinstance(said, str) or not said:
        return key
    if not is_unicode(said):
        raise ValueError(f"the key {said!r} in its .json holds half of a surrogate pair, which is no character")
    return said


def _split(meta: Mapping[str, object]) -> str | None:
    value = meta.get("split")
    if value is None or value == "":
        return None
    split = SPLITS.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None:
        # Not taken for unsaid, which could train on what was to be held back; nor is it more than one sample's fault:
        # scraped .json may have the word for something else.
        said = repr(value)
        shown = said if len(said) <= 40 else f"{said[:40]}..."
        raise ValueError(f"split in its .json is {shown}, expected one of {', '.join(SPLITS)}, or nothing")
    return split


def _captions(parts: _Parts, meta: Mapping[str, object]) -> tuple[Form, tuple[str, ...]]:
    """Where the captions stand, and they; the form is NONE or UNREADABLE where there are none."""
    listed, text = meta.get("captions"), parts.get("txt")
    form = Form.LISTED if isinstance(listed, list) else Form.TEXT if text else Form.SINGLE
    if form == Form.SINGLE and meta.get("caption") is None:
        return Form.NONE, ()
    try:
        if form == Form.TEXT:
            texts = texts_of(_of_text(text), form)
        else:
            texts = _visible(listed if form == Form.LISTED else [meta["caption"]])
    except ValueError:
        return Form.UNREADABLE, ()
    return (form, texts) if texts else (Form.NONE, ())


def _of_text(part: _Part) -> bytes:
    if part.read is None:
        raise ValueError(f"{part.member.size:,} bytes")
    return part.read
