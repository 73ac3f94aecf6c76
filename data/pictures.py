"""One picture file to plain 8-bit RGB, or an error that says what is wrong with it.

A file is judged by its content, never by its suffix. What a viewer would show is what comes out: the orientation that
EXIF asks for is applied, transparency is laid onto white, an animation gives its first frame, 16-bit grey is scaled
(Pillow's own conversion clips it: https://github.com/python-pillow/Pillow/issues/1108) and CMYK becomes RGB. Colour
profiles are not applied.

A JPEG of which less than every pixel is needed can be decoded at a half, a quarter or an eighth of its size, which
spares most of the work but reads all of the file: what is damaged is found all the same.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from data.budget import Budget

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
# Nothing else is tried: some of Pillow's rarer readers start other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
# Half of where Pillow refuses by itself; a bigger file is damage or an attack (about 270 MB once decoded).
MAX_PIXELS = 89_478_485
# A progressive JPEG has some ten. Each may pass over all the pixels for a few bytes, so thousands would take hours.
MAX_SCANS = 100
_STRIP = 1 << 18  # pixels that are brought to RGB at a time where that takes much memory
_WHITE = (255, 255, 255, 255)
_PLACE = "place of the file's picture"  # in the `info` of a picture that was reduced


def ignore_damaged_exif() -> None:
    """Has Pillow not warn of EXIF that is damaged, which `_upright` passes over; for the whole process, for filters of
    warnings cannot be set for one of several threads alone."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


ignore_damaged_exif()


class PictureError(ValueError):
    """A file that gives no whole picture; the message says why."""


_DECODED = Budget(2 * MAX_PIXELS)  # pixels decoded at once in this process, whatever the number of its threads


class Place(NamedTuple):
    """Where the picture of a file lies in what was decoded of it.

    `size` is that of the file's picture, upright, in its own pixels; `scale` decoded pixels make one of them, and its
    corner lies at (`left`, `top`) of the decoded ones. Only what was reduced has another place than (size, 1, 0, 0).
    """

    size: tuple[int, int]
    scale: float
    left: float
    top: float


def place_of(image: Image.Image) -> Place:
    """Of a picture from `decode_picture` as it came, or of any other, which is its own file."""
    return image.info.get(_PLACE) or Place(image.size, 1, 0, 0)


def load_picture(path: str | Path, least: int | None = None) -> Image.Image:
    """The whole picture in `path`: mode RGB, any size of at least 1x1; reduced as `decode_picture` does.

    Raises:
        PictureError: naming the file, where it is missing, truncated, damaged, too big, or no PNG, JPEG, WebP or GIF.
    """
    try:
        return decode_picture(read_file(path), least)
    except PictureError as error:
        raise PictureError(f"{path}: {error}") from error


def read_file(path: str | Path) -> bytes:
    """The bytes of a regular file (a named pipe would block for ever); PictureError with the system's reason else."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise PictureError("not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise PictureError(error.strerror or type(error).__name__) from error


def decode_picture(data: bytes, least: int | None = None) -> Image.Image:
    """The bytes of a PNG, JPEG, WebP or GIF file -> a picture of mode RGB; PictureError with the reason else.

    `least`, in pixels, allows for a JPEG to come at 1/2, 1/4 or 1/8 of its size, the smallest of which no side is
    below `least`; `place_of` tells how. Without it every picture comes at its own size.
    """
    if not data:
        raise PictureError("empty file (0 bytes)")
    with _damage_named():
        _check_png_sums(data)
        _check_scans(data)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image.size)
            _scale_transparent_key(image)
            size, factor = image.size, _reduce(image, least)
            progressive = image.info.get("progressive")  # all coefficients of the file's size are held
            with _DECODED.taken(math.prod(size if progressive else image.size)):
                image.load()
                orientation = _orientation(image)
                place = _place(size, image.size, factor, orientation)
                picture = _to_rgb(image if orientation == 1 else _upright(image))
    if factor > 1:
        picture.info[_PLACE] = place
    return picture


@contextmanager
def _damage_named() -> Iterator[None]:
    """Pillow meets damaged bytes with any of a dozen exceptions, SyntaxError and struct.error among them."""
    try:
        yield
    except PictureError:
        raise
    except Image.UnidentifiedImageError as error:
        raise PictureError("not a PNG, JPEG, WebP or GIF, or its header is damaged") from error
    except Exception as error:
        raise PictureError(str(error) or type(error).__name__) from error


def size_in_header(data: bytes) -> tuple[int, int]:
    """(width, height) as stored, not turned as EXIF asks; no pixel is decoded.

    PictureError where the first bytes already say that `decode_picture` would refuse these.
    """
    if not data:
        raise PictureError("empty file (0 bytes)")
    with _damage_named(), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        _check_size(image.size)
        return image.size


def _check_png_sums(data: bytes) -> None:
    """A PNG carries checksums of its pixels, which Pillow reads only when asked, and then without decoding."""
    if data.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            image.verify()


def _check_scans(data: bytes) -> None:
    """Of a JPEG: the marker at the start of a scan is nowhere in its pixels, which escape 0xff."""
    if not data.startswith(b"\xff\xd8"):
        return
    values = np.frombuffer(data, np.uint8)
    scans = np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == 0xDA))  # 8 times as quick as data.count
    if scans > MAX_SCANS:
        raise PictureError(f"{scans:,} scans, more than the {MAX_SCANS} that are decoded")


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height < 1:
        raise PictureError(f"a picture of {width}x{height} pixels")
    if width * height > MAX_PIXELS:
        raise PictureError(f"{width}x{height} pixels, more than the {MAX_PIXELS:,} that are decoded")


def _scale_transparent_key(image: Image.Image) -> None:
    """Brings a PNG's transparent colour to the 8 bits that Pillow brings the pixels to, but not the colour.

    Pillow keeps the high bytes of 16-bit RGB, and scales grey of 2 and 4 bits. `image` is not yet loaded.
    """
    key = image.info.get("transparency")
    stored = str(image.tile[0][3]) if image.format == "PNG" and image.tile else ""
    if image.mode == "RGB" and "16" in stored and key is not None:
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif stored in ("L;2", "L;4") and key is not None:
        image.info["transparency"] = key * 255 // (2 ** int(stored[-1]) - 1)


def _reduce(image: Image.Image, least: int | None) -> int:
    """Has a picture that is not yet loaded decoded at a fraction of its size; 1, 2, 4 or 8, what that is smaller by."""
    width = image.width
    drafted = None if least is None else image.draft(None, (least, least))  # None where the format has no such way
    return 1 if drafted is None else round(width / drafted[1][2])


def _upright(image: Image.Image) -> Image.Image:
    """A loaded picture turned as its EXIF says; as it is stored where the EXIF is damaged, for its pixels are sound."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # as many kinds as for damaged pixels
        return image


def _orientation(image: Image.Image) -> int:
    """EXIF's: 1 for upright and for damaged EXIF, 2 to 8 for the ways in which it is turned and mirrored."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as many kinds as for damaged pixels
        return 1


def _place(stored: tuple[int, int], decoded: tuple[int, int], factor: int, orientation: int) -> Place:
    """The decoder rounds up to whole pixels at the right and at the bottom, which turning brings to other sides.

    `stored` and `decoded` are (width, height) before turning.
    """
    across, down = (few - many / factor for many, few in zip(stored, decoded, strict=True))  # what is too much
    if orientation in (5, 6, 7, 8):
        stored, across, down = (stored[1], stored[0]), down, across
    left = across if orientation in (2, 3, 6, 7) else 0
    return Place(stored, 1 / factor, left, down if orientation in (3, 4, 7, 8) else 0)


def _to_rgb(image: Image.Image) -> Image.Image:
    """A picture of its own: nothing of the file, nor of a decoder's, lives on with it."""
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):
        return _in_strips(image, partial(_from_grey16, transparent=transparent))
    if transparent is not None or "A" in image.mode or "a" in image.mode:
        return _in_strips(image, _onto_white)
    turned = not isinstance(image, ImageFile.ImageFile)
    return image if turned and image.mode == "RGB" else image.convert("RGB")


def _in_strips(image: Image.Image, to_rgb: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """What `to_rgb`, to which each pixel is one by itself, makes of the picture; little lies in memory on the way."""
    whole = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        whole.paste(to_rgb(strip), (0, top))
    return whole


def _from_grey16(image: Image.Image, transparent: int | None) -> Image.Image:
    """Grey of 0..65535 to 0..255, rounded: 257 steps make one. `transparent`: the one value that shows white."""
    values = np.asarray(image).astype(np.int64)  # (H, W)
    grey = (values + 128) // 257
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _onto_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image.convert("RGBA")).convert("RGB")
