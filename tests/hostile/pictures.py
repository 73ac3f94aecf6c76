"""Picture files that are out to hurt, made here byte by byte; what `data.pictures` has to make of each."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

Verdict = Literal["refused", "read", "either"]
"""Either: decoders of different versions may find it, but nothing else may come of it."""


class Hostile(NamedTuple):
    data: bytes
    verdict: Verdict


def noise(width: int = 40, height: int = 30, channels: int = 3) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def animated(kind: str, **options: object) -> bytes:
    frames = [Image.new("RGB", (24, 18), colour) for colour in ("red", "green", "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=80, **options)


def chunk(name: bytes, data: bytes = b"", crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def header(width: int, height: int, depth: int = 8, colour: int = 2, interlaced: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


PIXELS = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + bytes(3 * 8) for _ in range(8))))  # 8 x 8, black
END = chunk(b"IEND")
HEAD = header(8, 8)
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def interlaced(side: int = 16) -> bytes:
    """Seven passes over the picture, each with its own rows: (x, y of its first pixel, steps in x and y)."""
    values = np.asarray(noise(side, side))
    passes = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in ADAM7 for row in values[y::dy, x::dx])
    return png(header(side, side, interlaced=1), chunk(b"IDAT", zlib.compress(passes)), END)


WHOLE = {
    "png": encoded(noise(), "PNG"),
    "grey-png": encoded(noise(channels=1), "PNG"),
    "16-bit-png": encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 54), "PNG"),
    "interlaced-png": interlaced(),
    "jpeg": encoded(noise(), "JPEG"),
    "progressive-jpeg": encoded(noise(), "JPEG", progressive=True),
    "cmyk-jpeg": encoded(noise(channels=4).convert("CMYK"), "JPEG"),
    "gif": encoded(noise(), "GIF"),
    "webp": encoded(noise(), "WEBP"),
    "lossless-webp": encoded(noise(), "WEBP", lossless=True),
}
ANIMATED = {
    "animated-gif": animated("GIF"),
    "animated-webp": animated("WEBP", lossless=True),
    "animated-png": animated("PNG"),
}


def truncated() -> Iterator[tuple[str, Hostile]]:
    for name, data in WHOLE.items():
        for percent in (1, 5, 12, 25, 50, 75, 90, 98):
            yield f"{name} cut at {percent}%", Hostile(data[: max(1, len(data) * percent // 100)], "refused")
    for name, data in ANIMATED.items():
        for percent in (4, 50, 95):
            yield f"{name} cut at {percent}%", Hostile(data[: len(data) * percent // 100], "either")


def something_else() -> Iterator[tuple[str, Hostile]]:
    """Files of other kinds, some of whose readers start other programs or read other files."""
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    contents = {
        "nothing": b"",
        "one zero": b"\0",
        "zeros": bytes(4096),
        "0xff": b"\xff" * 4096,
        "text": b"not a picture",
        "a page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "svg": svg,
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/tmp/x) (w) file closefile\nshowpage\n",
        "pdf": b"%PDF-1.7\n1 0 obj<</OpenAction<</S/Launch/F(/bin/sh)>>>>endobj\n",
        "bmp": encoded(noise(), "BMP"),
        "tiff": encoded(noise(), "TIFF"),
        "ico": encoded(noise(32, 32), "ICO"),
        "ppm": encoded(noise(), "PPM"),
        "tga": encoded(noise(), "TGA"),
        "zip": b"PK\x03\x04" + bytes(60),
        "gzip": b"\x1f\x8b\x08" + bytes(60),
        "elf": b"\x7fELF" + bytes(60),
        "mp4": b"\0\0\0\x18ftypisom" + bytes(60),
        "xpm": b'/* XPM */ static char *x[] = {"1 1 1 1", "a c red", "a"};',
        "signature of png": b"\x89PNG\r\n\x1a\n",
        "signature of jpeg": b"\xff\xd8\xff\xe0",
        "signature of gif": b"GIF89a",
        "signature of webp": b"RIFF\x10\0\0\0WEBPVP8 ",
        "png with line ends changed": WHOLE["png"].replace(b"\r\n", b"\n"),
        "jpeg read as text": WHOLE["jpeg"].decode("latin-1").encode("utf-8"),
    }
    for name, data in contents.items():
        yield name, Hostile(data, "refused")


def odd_but_sound() -> Iterator[tuple[str, Hostile]]:
    for kind in ("PNG", "JPEG", "GIF", "WEBP"):
        yield f"1x1 {kind}", Hostile(encoded(Image.new("RGB", (1, 1), "red"), kind), "read")
        long = 16_000 if kind == "WEBP" else 30_000
        yield f"{long}x10 {kind}", Hostile(encoded(Image.new("L", (long, 10)), kind), "read")
        yield f"10x{long} {kind}", Hostile(encoded(Image.new("L", (10, long)), kind), "read")
    for name, data in (WHOLE | ANIMATED).items():
        yield f"{name} as it is", Hostile(data, "read")
    for name in ("png", "jpeg", "gif", "webp"):
        yield f"{name} with a megabyte behind it", Hostile(WHOLE[name] + bytes(2**20), "either")
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        yield f"png of mode {mode}", Hostile(encoded(Image.new(mode, (8, 8)), "PNG"), "read")


def too_large() -> Iterator[tuple[str, Hostile]]:
    """Headers that claim more pixels than there is memory for; none of them is to be made."""
    for width, height in (
        (50_000, 50_000),
        (2**31 - 1, 1),
        (2**31 - 1, 2**31 - 1),
        (2**32 - 1, 2**32 - 1),
        (9460, 9460),
    ):
        yield f"png of {width}x{height}", Hostile(png(header(width, height), PIXELS, END), "refused")
    jpeg = bytearray(WHOLE["jpeg"])
    at = jpeg.index(b"\xff\xc0") + 5  # height and width in the frame's header
    jpeg[at : at + 4] = b"\xff\xff\xff\xff"
    yield "jpeg of 65535x65535", Hostile(bytes(jpeg), "refused")
    progressive = bytearray(WHOLE["progressive-jpeg"])
    at = progressive.index(b"\xff\xc2") + 5
    progressive[at : at + 4] = b"\xff\xff\xff\xff"
    yield "progressive jpeg of 65535x65535", Hostile(bytes(progressive), "refused")
    for end in (2, 1000):
        scans = WHOLE["progressive-jpeg"]
        first = scans.index(b"\xff\xda")
        second = scans.index(b"\xff\xda", first + 2)
        yield (
            f"jpeg of {end} more scans",
            Hostile(scans[:second] + end * scans[first:second] + scans[second:], "refused" if end > 100 else "either"),
        )
    gif = bytearray(WHOLE["gif"])
    gif[6:10] = b"\xff\xff\xff\xff"
    yield "gif of 65535x65535", Hostile(bytes(gif), "refused")
    webp = bytearray(WHOLE["lossless-webp"])
    at = webp.index(b"VP8L") + 9
    webp[at : at + 4] = struct.pack("<I", 16_383 | 16_383 << 14)
    yield "webp of 16384x16384", Hostile(bytes(webp), "refused")


def text_bombs() -> Iterator[tuple[str, Hostile]]:
    """Megabytes of zeros in what describes a picture, compressed to kilobytes."""
    bomb = zlib.compress(bytes(32 * 2**20))
    kinds = {
        "zTXt": chunk(b"zTXt", b"Comment\0\0" + bomb),
        "iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb),
        "iCCP": chunk(b"iCCP", b"profile\0\0" + bomb),
    }
    for name, content in kinds.items():
        yield f"png with a bomb in {name}", Hostile(png(HEAD, content, PIXELS, END), "either")
        yield f"png with a bomb in {name} behind its pixels", Hostile(png(HEAD, PIXELS, content, END), "either")
    many = 100 * chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20 - 1)))
    yield "png with a hundred texts of a megabyte", Hostile(png(HEAD, many, PIXELS, END), "either")
    pixels = chunk(b"IDAT", zlib.compress(bytes(32 * 2**20)))
    yield "png with a bomb in its pixels", Hostile(png(HEAD, pixels, END), "either")
    comments = b"".join(b"\xff\xfe\xff\xff" + bytes(65_533) for _ in range(20))
    yield "jpeg with a megabyte of comments", Hostile(WHOLE["jpeg"][:2] + comments + WHOLE["jpeg"][2:], "read")
    segments = 20_000 * b"\xff\xef\x00\x02"
    yield "jpeg with 20000 empty segments", Hostile(WHOLE["jpeg"][:2] + segments + WHOLE["jpeg"][2:], "either")


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


GROUPS = (
    truncated, something_else, odd_but_sound, too_large, text_bombs,
    broken_png, broken_jpeg, broken_exif, broken_gif, broken_webp,
)  # fmt: skip
PICTURES: dict[str, Hostile] = {name: hostile for group in GROUPS for name, hostile in group()}
