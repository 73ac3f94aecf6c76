"""Picture files that are out to hurt, made byte by byte; what `data.pictures` has to make of each."""

import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from tests.hostile.broken_pictures import broken_exif, broken_gif, broken_jpeg, broken_png, broken_webp
from tests.hostile.formats import ANIMATED, END, HEAD, PIXELS, WHOLE, Hostile, chunk, encoded, header, noise, png


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


GROUPS = (
    truncated, something_else, odd_but_sound, too_large, text_bombs,
    broken_png, broken_jpeg, broken_exif, broken_gif, broken_webp,
)  # fmt: skip
PICTURES: dict[str, Hostile] = {name: hostile for group in GROUPS for name, hostile in group()}
