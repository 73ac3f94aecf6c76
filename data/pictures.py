"""One picture file to plain 8-bit RGB, or an error that says what is wrong with it.

A file is judged by its content, never by its suffix. What a viewer would show is what comes out: the orientation that
EXIF asks for is applied, transparency is laid onto white, an animation gives its first frame, 16-bit grey is scaled
(Pillow's own conversion clips it: https://github.com/python-pillow/Pillow/issues/1108) and CMYK becomes RGB. Colour
profiles are not applied.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
# Nothing else is tried: some of Pillow's rarer readers start other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
# Half of where Pillow refuses by itself; a bigger file is damage or an attack (about 270 MB once decoded).
MAX_PIXELS = 89_478_485
_WHITE = (255, 255, 255, 255)


class PictureError(ValueError):
    """A file that gives no whole picture; the message says why."""


def load_picture(path: str | Path) -> Image.Image:
    """The whole picture in `path`: mode RGB, any size of at least 1x1.

    Raises:
        PictureError: naming the file, where it is missing, truncated, damaged, too big, or no PNG, JPEG, WebP or GIF.
    """
    try:
        return decode_picture(read_file(path))
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


def decode_picture(data: bytes) -> Image.Image:
    """The bytes of a PNG, JPEG, WebP or GIF file -> a picture of mode RGB; PictureError with the reason else."""
    if not data:
        raise PictureError("empty file (0 bytes)")
    # Pillow meets damaged bytes with any of a dozen exceptions, SyntaxError and struct.error among them.
    try:
        _check_png_sums(data)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image.size)
            _scale_transparent_key(image)
            image.load()
            upright = _upright(image)
    except PictureError:
        raise
    except Image.UnidentifiedImageError as error:
        raise PictureError("not a PNG, JPEG, WebP or GIF, or its header is damaged") from error
    except Exception as error:
        raise PictureError(str(error) or type(error).__name__) from error
    return _to_rgb(upright)


def _check_png_sums(data: bytes) -> None:
    """A PNG carries checksums of its pixels, which Pillow reads only when asked, and then without decoding."""
    if data.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            image.verify()


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


def _upright(image: Image.Image) -> Image.Image:
    """A loaded picture turned as its EXIF says; as it is stored where the EXIF is damaged, for its pixels are sound."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # as many kinds as for damaged pixels
        return image.copy()


def _to_rgb(image: Image.Image) -> Image.Image:
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):
        return _from_grey16(image, transparent)
    if transparent is not None or "A" in image.mode or "a" in image.mode:
        return _onto_white(image.convert("RGBA"))
    return image.convert("RGB")


def _from_grey16(image: Image.Image, transparent: int | None) -> Image.Image:
    """Grey of 0..65535 to 0..255, rounded: 257 steps make one. `transparent`: the one value that shows white."""
    values = np.asarray(image).astype(np.int64)  # (H, W)
    grey = (values + 128) // 257
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _onto_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
