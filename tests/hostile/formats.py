"""Sound pictures of every format, small, and the pieces that broken ones are made of."""

import io
import struct
import zlib
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
