"""A tar archive read where it lies: its members, and at which byte the content of each begins.

Nothing is extracted: a member is a range of bytes, so that a picture costs one read at a known place. Read are ustar,
pax and GNU headers with long names (https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html). The standard
library's reader takes a damaged header for the end of the archive, which would lose samples without a word, and reads
as much of a header as that asks for; here an archive is whole or it is refused.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

BLOCK = 512
MAX_LONG = 1 << 20  # bytes of a long name or of pax records; more is damage or an attack
MAX_PADDING = 1 << 20  # bytes of zeros behind the last member; writers fill up to 10 KiB, tapes to more
_ZEROS = bytes(BLOCK)
_REGULAR = b"0\x007"
_WITHOUT_CONTENT = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a named pipe",
}


class DamagedShard(ValueError):
    """An archive that does not hold together; the message says where, and names no file."""


class Member(NamedTuple):
    """One member. `kind` is "" for a regular file, else what it is in words ("a symbolic link")."""

    name: str  # bytes that are no UTF-8 are lone surrogates, as in file names
    offset: int
    size: int
    kind: str


@dataclass
class _Extended:
    """What headers before a member say of it."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False


def members(file: BinaryIO) -> Iterator[Member]:
    """The members of an uncompressed archive in their order, folders included.

    Raises DamagedShard where a header is wrong, the file ends too early, or something follows the end of the archive.
    """
    descriptor, end = file.fileno(), os.fstat(file.fileno()).st_size
    offset, extended = 0, _Extended()
    while True:
        header = os.pread(descriptor, BLOCK, offset)
        if header == _ZEROS:
            return _check_padding(descriptor, offset, end)
        _check_header(header, offset, end)
        kind, content = header[156:157], offset + BLOCK
        size = 0 if kind in _WITHOUT_CONTENT else _number(header[124:136], "size", offset)
        if kind not in b"xXgLK" and extended.size is not None and kind not in _WITHOUT_CONTENT:
            size = extended.size
        if kind == b"S":
            content = _behind_sparse_map(descriptor, header, content)
        offset = content + -(-size // BLOCK) * BLOCK
        if offset > end:
            name = extended.name or _own_name(header)
            raise DamagedShard(f"cut off: {name!r} would end at byte {offset:,}, the file ends at {end:,}")
        if kind in b"xXgLK":
            _extend(extended, kind, _long(descriptor, content, size))
            continue
        name = extended.name or _own_name(header)
        yield Member(name, content, size, _in_words(kind, name, extended.sparse))
        extended = _Extended()


def _check_header(header: bytes, offset: int, end: int) -> None:
    if end == 0:
        raise DamagedShard("an empty file (0 bytes)")
    if len(header) < BLOCK:
        raise DamagedShard(f"cut off: ends at byte {end:,} without the zeros that close an archive")
    said = _number(header[148:156], "checksum", offset)
    found = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if said != found and said != found - 256 * sum(byte > 127 for byte in header[:148] + header[156:]):  # signed bytes
        raise DamagedShard(
            "not an uncompressed tar archive"
            if offset == 0
            else f"damaged: no header of a member at byte {offset:,} (its checksum is {said}, expected {found})"
        )


def _number(field: bytes, what: str, offset: int) -> int:
    """Octal digits; or, behind a byte of 0x80, big-endian binary, as GNU tar writes what is too large for digits."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not all(48 <= digit < 56 for digit in digits):
        if offset == 0:
            raise DamagedShard("not an uncompressed tar archive")
        raise DamagedShard(f"damaged: the {what} of the member at byte {offset:,} is {field!r}, expected octal digits")
    return int(digits or b"0", 8)


def _own_name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _long(descriptor: int, offset: int, size: int) -> bytes:
    if size > MAX_LONG:
        raise DamagedShard(
            f"damaged: {size:,} bytes of extended header at byte {offset:,}, expected at most {MAX_LONG:,}"
        )
    return os.pread(descriptor, size, offset)


def _extend(extended: _Extended, kind: bytes, content: bytes) -> None:
    if kind == b"L":
        extended.name = _text(content)
    elif kind in b"xX":
        for name, value in _pax_records(content):
            if name == b"path":
                extended.name = _text(value)
            elif name == b"size":
                extended.size = _pax_size(value)
            elif name.startswith(b"GNU.sparse."):
                extended.sparse = True


def _pax_records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Records "LENGTH NAME=VALUE\\n", the length being that of the whole record."""
    content, at = content.rstrip(b"\0"), 0
    while at < len(content):
        digits, _, _ = content[at : at + 8].partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        end = at + length
        name, equals, value = content[at + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or content[end - 1 : end] != b"\n":
            shown = content[at : at + 40]
            raise DamagedShard(f"damaged: the pax record {shown!r}, expected LENGTH NAME=VALUE and a line's end")
        yield name, value
        at = end


def _pax_size(value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise DamagedShard(f"damaged: the pax size {value[:40]!r}, expected digits")
    return int(value)


def _behind_sparse_map(descriptor: int, header: bytes, offset: int) -> int:
    """Where the content of GNU's old sparse files begins: more of their map may follow the header."""
    more = header[482]
    while more:
        block = os.pread(descriptor, BLOCK, offset)
        offset += BLOCK
        more = len(block) == BLOCK and block[504]
    return offset


def _in_words(kind: bytes, name: str, sparse: bool) -> str:
    if sparse or kind == b"S":
        return "a sparse file"
    if kind in _WITHOUT_CONTENT:
        return _WITHOUT_CONTENT[kind]
    if kind not in _REGULAR:
        return f"of the unknown type {kind!r}"
    return "a folder" if name.endswith("/") else ""  # so the oldest writers marked folders


def _check_padding(descriptor: int, offset: int, end: int) -> None:
    """DamagedShard where more than some zeros follow: a file whose tail was lost, or several archives in one."""
    if end - offset <= MAX_PADDING and not os.pread(descriptor, MAX_PADDING, offset).strip(b"\0"):
        return
    raise DamagedShard(
        f"the archive is closed at byte {offset:,}, but the file goes on to byte {end:,}: damaged, or several in one"
    )
