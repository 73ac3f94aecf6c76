"""Pictures whose parts are wrong, format by format."""

import struct
import zlib
from collections.abc import Iterator

from tests.hostile.formats import ANIMATED, END, HEAD, PIXELS, WHOLE, Hostile, chunk, encoded, header, noise, png


def broken_png() -> Iterator[tuple[str, Hostile]]:
    files = {
        "no header": png(PIXELS, END),
        "no pixels": png(HEAD, END),
        "only a header": png(HEAD),
        "wrong sum of the header": png(chunk(b"IHDR", HEAD[8:-4], crc=1), PIXELS, END),
        "wrong sum of the pixels": png(HEAD, chunk(b"IDAT", PIXELS[8:-4], crc=1), END),
        "no such bit depth": png(header(8, 8, depth=3), PIXELS, END),
        "no such colours": png(header(8, 8, colour=5), PIXELS, END),
        "short header": png(chunk(b"IHDR", b"\0\0\0\x08"), PIXELS, END),
        "0x8": png(header(0, 8), PIXELS, END),
        "8x0": png(header(8, 0), PIXELS, END),
        "pixels that are no stream": png(HEAD, chunk(b"IDAT", b"rubbish" * 20), END),
        "a chunk of two gigabytes": png(HEAD, struct.pack(">I", 2**31 - 1) + b"IDAT" + bytes(40)),
        "a chunk of four gigabytes": png(HEAD, struct.pack(">I", 2**32 - 1) + b"tEXt" + bytes(40)),
        "a chunk whose name is none": png(HEAD, chunk(b"\0\1\2\3"), PIXELS, END),
    }
    for name, data in files.items():
        yield f"png: {name}", Hostile(data, "refused")
    doubtful = {
        "header twice": png(HEAD, HEAD, PIXELS, END),
        "pixels of half the rows": png(HEAD, chunk(b"IDAT", zlib.compress(bytes(4 * 25))), END),  # Pillow: black below
        "no palette": png(header(8, 8, colour=3), chunk(b"IDAT", zlib.compress(bytes(8 * 9))), END),
        "palette of one and a half": png(header(8, 8, colour=3), chunk(b"PLTE", b"\0\0\0\0"), PIXELS, END),
        "no such filter": png(HEAD, chunk(b"IDAT", zlib.compress((b"\x09" + bytes(24)) * 8)), END),
        "transparency of no length": png(HEAD, chunk(b"tRNS"), PIXELS, END),
        "frames beyond counting": png(HEAD, chunk(b"acTL", b"\xff" * 8), PIXELS, END),
        "no frames": png(HEAD, chunk(b"acTL", bytes(8)), PIXELS, END),
        "frame outside of the picture": png(
            HEAD,
            chunk(b"acTL", struct.pack(">II", 1, 0)),
            chunk(b"fcTL", struct.pack(">5I", 0, 9, 9, 9, 9) + bytes(6)),
            PIXELS,
            END,
        ),
        "resolution of no length": png(HEAD, chunk(b"pHYs"), PIXELS, END),
        "gamma of no length": png(HEAD, chunk(b"gAMA"), PIXELS, END),
        "text without an end": png(HEAD, chunk(b"tEXt", b"x" * 100), PIXELS, END),
        "orientation in a text": png(HEAD, chunk(b"tEXt", b"exif:Orientation\0" + b"9" * 5000), PIXELS, END),
        "exif in hex that is none": png(HEAD, chunk(b"tEXt", b"Raw profile type exif\0\nexif\n4\nzzzz"), PIXELS, END),
    }
    for name, data in doubtful.items():
        yield f"png: {name}", Hostile(data, "either")


def broken_jpeg() -> Iterator[tuple[str, Hostile]]:
    whole = WHOLE["jpeg"]
    frame, scan = whole.index(b"\xff\xc0"), whole.index(b"\xff\xda")

    def edited(at: int, new: bytes) -> bytes:
        return whole[:at] + new + whole[at + len(new) :]

    files = {
        "no scan": whole[:scan] + b"\xff\xd9",
        "no width": edited(frame + 7, b"\0\0"),
        "5 components": edited(frame + 9, b"\x05"),
        "no components": edited(frame + 9, b"\0"),
        "12 bits": edited(frame + 4, b"\x0c"),
        "lossless coding": edited(frame, b"\xff\xc3"),
        "segment that ends in the next file": whole[:2] + b"\xff\xe0\xff\xff" + whole[2:40],
    }
    for name, data in files.items():
        yield f"jpeg: {name}", Hostile(data, "refused")
    doubtful = {
        "no tables of codes": whole.replace(b"\xff\xc4", b"\xff\xef"),  # as of films: then the usual ones count
        "no height": edited(frame + 5, b"\0\0"),
        "no tables of steps": whole.replace(b"\xff\xdb", b"\xff\xef"),
        "sampling of 15x15": edited(frame + 11, b"\xff"),
        "sampling of 0x0": edited(frame + 11, b"\0"),
        "scan of zeros": whole[: scan + 14] + bytes(500) + b"\xff\xd9",
        "scan of restarts": whole[: scan + 14] + b"\xff\xd0" * 500 + b"\xff\xd9",
        "two pictures": whole + whole,
        "two starts": whole[:2] + whole,
        "adobe's marker alone": whole[:2] + b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\x02" + whole[2:],
        "thumbnail of a gigabyte": whole[:2] + b"\xff\xe0\x00\x10JFIF\0\1\2\0\0\1\0\1\xff\xff" + whole[2:],
        "profile of which parts are missing": whole[:2] + b"\xff\xe2\x00\x14ICC_PROFILE\0\x07\x09abcd" + whole[2:],
        "resources of photoshop": whole[:2]
        + b"\xff\xed\x00\x1ePhotoshop 3.0\x008BIM\x03\xed\0\0\xff\xff\xff\xff"
        + whole[2:],
    }
    for name, data in doubtful.items():
        yield f"jpeg: {name}", Hostile(data, "either")


def broken_exif() -> Iterator[tuple[str, Hostile]]:
    """Of sound pixels, which are what counts: such a picture is read."""

    def tiff(*entries: bytes, at: int = 8, next: int = 0) -> bytes:
        return b"Exif\0\0II*\0" + struct.pack("<IH", at, len(entries)) + b"".join(entries) + struct.pack("<I", next)

    def orientation(kind: int, count: int, value: bytes) -> bytes:
        return struct.pack("<HHI", 0x0112, kind, count) + value.ljust(4, b"\0")[:4]

    blocks = {
        "rubbish": b"Exif\0\0" + b"rubbish" * 9,
        "no header": b"Exif\0\0",
        "half a header": b"Exif\0\0MM\0*",
        "directory beyond the end": tiff(at=2**31),
        "directory that is its own next": tiff(orientation(3, 1, b"\1"), next=8),
        "65535 entries": b"Exif\0\0II*\0" + struct.pack("<IH", 8, 65_535),
        "orientation 0": tiff(orientation(3, 1, b"\0")),
        "orientation 9": tiff(orientation(3, 1, b"\x09")),
        "orientation as text": tiff(orientation(2, 4, b"six\0")),
        "orientation of four gigabytes": tiff(orientation(3, 2**32 - 1, b"\1")),
        "orientation of no such type": tiff(orientation(99, 1, b"\1")),
        "orientation as a fraction by zero": tiff(orientation(5, 1, struct.pack("<I", 8))),
        "directory of the camera in itself": tiff(struct.pack("<HHII", 0x8769, 4, 1, 8)),
    }
    for kind in ("JPEG", "PNG", "WEBP"):
        for name, exif in blocks.items():
            yield f"{kind} with exif: {name}", Hostile(encoded(noise(), kind, exif=exif), "read")


def broken_gif() -> Iterator[tuple[str, Hostile]]:
    whole = WHOLE["gif"]
    head = b"GIF89a" + struct.pack("<HH", 8, 8) + b"\0\0\0"
    frame = b"," + struct.pack("<HHHH", 0, 0, 8, 8) + b"\x80" + bytes(6)
    files = {
        "no frames": head + b";",
        "only a comment": head + b"!\xfe\x05hello\0;",
        "a comment without an end": head + b"!\xfe" + b"\xff" * 3000,
        "0x0": b"GIF89a" + bytes(7) + b";",
        "a frame without pixels": head + frame,
        "no blocks": head + frame + b"\x02",
    }
    for name, data in files.items():
        yield f"gif: {name}", Hostile(data, "refused")
    doubtful = {
        "codes of 255 bits": head + frame + b"\xff\x02\x44\x01\0;",
        "codes of 0 bits": head + frame + b"\0\x02\x44\x01\0;",
        "codes that never were": head + frame + b"\x02\x08" + b"\xff" * 8 + b"\0;",
        "a frame outside of the picture": head + b"," + struct.pack("<HHHH", 9, 9, 8, 8) + b"\0\x02\x02\x44\x01\0;",
        "a frame larger than the picture": head
        + b","
        + struct.pack("<HHHH", 0, 0, 9000, 9000)
        + b"\0\x02\x02\x44\x01\0;",
        "1000 comments": head + 1000 * b"!\xfe\x01x\0" + whole[13:],
    }
    for name, data in doubtful.items():
        yield f"gif: {name}", Hostile(data, "either")


def broken_webp() -> Iterator[tuple[str, Hostile]]:
    def riff(*chunks: bytes, size: int | None = None) -> bytes:
        content = b"WEBP" + b"".join(chunks)
        return b"RIFF" + struct.pack("<I", len(content) if size is None else size) + content

    lossless, moving = WHOLE["lossless-webp"], ANIMATED["animated-webp"]
    vp8x = b"VP8X" + struct.pack("<I", 10)
    files = {
        "no pixels": riff(),
        "only a header": riff(vp8x + bytes(10)),
        "animation without frames": riff(vp8x + b"\x02" + bytes(9), b"ANIM" + struct.pack("<I", 6) + bytes(6)),
        "pixels of four gigabytes": riff(b"VP8L" + struct.pack("<I", 2**32 - 2) + lossless[20:60]),
        "wrong signature of the pixels": lossless[:20] + b"\0" + lossless[21:],
        "another size in the header": riff(vp8x + bytes(4) + b"\x63\0\0\x63\0\0", lossless[12:]),
    }
    for name, data in files.items():
        yield f"webp: {name}", Hostile(data, "refused")
    doubtful = {
        "size of nothing": lossless[:4] + bytes(4) + lossless[8:],
        "size of four gigabytes": lossless[:4] + b"\xfe\xff\xff\xff" + lossless[8:],
        "size of half": lossless[:4] + struct.pack("<I", len(lossless) // 2) + lossless[8:],
        "animation of the wrong size": moving.replace(b"\x17\0\0\x11\0\0", b"\xff\xff\x00\xff\xff\x00", 1),
    }
    for name, data in doubtful.items():
        yield f"webp: {name}", Hostile(data, "either")
