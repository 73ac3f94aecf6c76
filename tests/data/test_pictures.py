"""Every kind of picture file against pixels worked out by hand, and every way of being broken."""

import io
import os
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import pictures
from data.pictures import PictureError, decode_picture, ignore_damaged_exif, load_picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> list[list[tuple[int, ...]]]:
    image = decode_picture(data)
    assert image.mode == "RGB"
    return [[tuple(int(v) for v in pixel) for pixel in row] for row in np.asarray(image)]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def raw_png(values: np.ndarray, colour_type: int, extra: bytes = b"") -> bytes:
    """A 16-bit PNG written by hand: Pillow writes no 16-bit colour. values (H, W) or (H, W, C)."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_keep_every_pixel(kind: str, options: dict) -> None:
    picture = noise()
    assert np.array_equal(np.asarray(decode_picture(encoded(picture, kind, **options))), np.asarray(picture))


def test_jpeg_of_one_colour() -> None:
    decoded = np.asarray(decode_picture(encoded(Image.new("RGB", (16, 8), (200, 100, 50)), "JPEG", quality=100)))
    assert decoded.shape == (8, 16, 3)
    assert np.abs(decoded.astype(int) - (200, 100, 50)).max() <= 2


def test_progressive_and_grey_jpeg() -> None:
    grey = encoded(Image.new("L", (8, 8), 77), "JPEG", quality=100)
    assert pixels(grey)[3][3] == (77, 77, 77)
    progressive = encoded(Image.new("RGB", (16, 16), WHITE), "JPEG", progressive=True)
    assert pixels(progressive)[0][0] == WHITE


def test_one_bit_and_grey() -> None:
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    assert pixels(encoded(bits, "PNG")) == [[(0, 0, 0), WHITE]]
    grey = Image.fromarray(np.array([[0, 1, 254, 255]], dtype=np.uint8))
    assert pixels(encoded(grey, "PNG")) == [[(0, 0, 0), (1, 1, 1), (254, 254, 254), WHITE]]


def test_palette() -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([*RED, *GREEN, *BLUE])
    for x in range(3):
        picture.putpixel((x, 0), x)
    assert pixels(encoded(picture, "PNG")) == [[RED, GREEN, BLUE]]
    assert pixels(encoded(picture, "GIF")) == [[RED, GREEN, BLUE]]
    assert pixels(encoded(picture, "PNG", transparency=1)) == [[RED, WHITE, BLUE]]
    assert pixels(encoded(picture, "GIF", transparency=1)) == [[RED, WHITE, BLUE]]
    # alpha of each palette entry: 51 of 255 is one fifth of red on four fifths of white
    assert pixels(encoded(picture, "PNG", transparency=bytes([51, 255, 0]))) == [[(255, 204, 204), GREEN, WHITE]]


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_alpha_goes_onto_white(kind: str, options: dict) -> None:
    values = np.array([[[0, 0, 0, 0], [0, 0, 0, 51], [10, 20, 30, 255], [255, 0, 0, 204]]], dtype=np.uint8)
    expected = [[WHITE, (204, 204, 204), (10, 20, 30), (255, 51, 51)]]
    assert pixels(encoded(Image.fromarray(values), kind, **options)) == expected


def test_grey_with_alpha_goes_onto_white() -> None:
    values = np.array([[[0, 0], [0, 51], [9, 255]]], dtype=np.uint8)
    assert pixels(encoded(Image.fromarray(values, "LA"), "PNG")) == [[WHITE, (204, 204, 204), (9, 9, 9)]]


def test_transparent_colour_of_grey_and_rgb() -> None:
    grey = Image.fromarray(np.array([[7, 8]], dtype=np.uint8))
    assert pixels(encoded(grey, "PNG", transparency=7)) == [[WHITE, (8, 8, 8)]]
    colour = Image.fromarray(np.array([[[1, 2, 3], [1, 2, 4]]], dtype=np.uint8))
    assert pixels(encoded(colour, "PNG", transparency=(1, 2, 3))) == [[WHITE, (1, 2, 4)]]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_transparent_grey_of_few_bits(depth: int) -> None:
    top = 2**depth - 1
    header = struct.pack(">IIBBBBB", 2, 1, depth, 0, 0, 0, 0)
    row = bytes([0, (top - 1) << (8 - depth) | top << (8 - 2 * depth)])  # two pixels: the last grey but one, and white
    for key in (top - 1, 0, top):
        parts = [chunk(b"IHDR", header), chunk(b"tRNS", struct.pack(">H", key)), chunk(b"IDAT", zlib.compress(row))]
        data = b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")
        grey = 255 if key == top - 1 else 255 * (top - 1) // top
        assert pixels(data) == [[(grey, grey, grey), WHITE]]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 129, 256, 257, 32768, 65406, 65407, 65535]], dtype=np.uint16)
    expected = [round(int(value) / 257) for value in values[0]]
    assert expected == [0, 0, 1, 1, 1, 128, 254, 255, 255]
    assert [pixel[0] for pixel in pixels(raw_png(values, 0))[0]] == expected
    assert pixels(encoded(Image.fromarray(values), "PNG")) == [[(v, v, v) for v in expected]]  # Pillow's own writer
    key = chunk(b"tRNS", struct.pack(">H", 256))
    assert [pixel[0] for pixel in pixels(raw_png(values, 0, key))[0]] == [0, 0, 1, 255, 1, 128, 254, 255, 255]


def test_sixteen_bit_colour() -> None:
    rgb = np.array([[[0, 0x80FF, 0xFFFF], [0x1234, 0x5678, 0x9ABC]]], dtype=np.uint16)
    assert pixels(raw_png(rgb, 2)) == [[(0, 0x80, 0xFF), (0x12, 0x56, 0x9A)]]
    key = chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC))
    assert pixels(raw_png(rgb, 2, key)) == [[(0, 0x80, 0xFF), WHITE]]
    rgba = np.array([[[0, 0, 0, 0], [0, 0, 0, 0x33FF], [0xFFFF, 0, 0, 0xFFFF]]], dtype=np.uint16)
    assert pixels(raw_png(rgba, 6)) == [[WHITE, (204, 204, 204), RED]]
    grey_alpha = np.array([[[0, 0], [0x4000, 0xFFFF]]], dtype=np.uint16)
    assert pixels(raw_png(grey_alpha, 4)) == [[WHITE, (0x40, 0x40, 0x40)]]


@pytest.mark.parametrize(
    ("inks", "expected"),
    [((0, 0, 0, 0), WHITE), ((255, 0, 0, 0), (0, 255, 255)), ((0, 255, 255, 0), RED), ((0, 0, 0, 255), (0, 0, 0))],
)
def test_cmyk_jpeg(inks: tuple[int, ...], expected: tuple[int, ...]) -> None:
    data = encoded(Image.new("CMYK", (16, 16), inks), "JPEG", quality=100)
    assert b"Adobe" in data  # so the inks are stored inverted, and have to be turned back
    assert np.abs(np.array(pixels(data)) - expected).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_exif_orientation(kind: str) -> None:
    """The eight orientations, as the EXIF standard words them: where row 0 and column 0 of the file are shown."""
    stored = np.zeros((16, 32, 3), dtype=np.uint8)
    stored[:, :8] = RED
    stored[:8, 8:] = BLUE
    shown = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(stored),
    }
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}, "PNG": {}}[kind]
    for orientation, expected in shown.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        decoded = np.asarray(decode_picture(encoded(Image.fromarray(stored), kind, exif=exif, **options)))
        assert decoded.shape == expected.shape
        assert np.abs(decoded.astype(int) - expected).max() <= (6 if kind == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore")  # Pillow's, on the damaged EXIF
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0rubbish that is no TIFF", b"Exif\0\0MM\0*\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f"]
)
def test_damaged_exif_says_nothing(kind: str, exif: bytes) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    plain = decode_picture(encoded(noise(), kind, **options))
    assert decode_picture(encoded(noise(), kind, exif=exif, **options)).tobytes() == plain.tobytes()


def test_damaged_exif_warns_nobody():
    """Pillow would, in every process that reads: the pixels are sound."""
    cut = encoded(noise(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0" + bytes(14))
    for ignored in (False, True):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            if ignored:
                ignore_damaged_exif()
            decode_picture(cut)
        assert bool(warned) != ignored


def test_exif_orientation_of_sixteen_bit_grey_and_transparency() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    deep = Image.fromarray(np.array([[0, 65535]], dtype=np.uint16))
    assert pixels(encoded(deep, "PNG", exif=exif)) == [[WHITE, (0, 0, 0)]]
    grey = Image.fromarray(np.array([[7, 8]], dtype=np.uint8))
    assert pixels(encoded(grey, "PNG", transparency=7, exif=exif)) == [[(8, 8, 8), WHITE]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert pixels(data) == [[RED] * 4] * 4


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    lying = tmp_path / "really-a-jpeg.png"
    lying.write_bytes(encoded(Image.new("RGB", (8, 8), WHITE), "JPEG"))
    assert load_picture(lying).getpixel((0, 0)) == WHITE


def test_metadata_does_not_travel_on() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_picture(encoded(noise(), "JPEG", exif=exif))
    assert decoded.getexif().get(0x0112) is None


def test_missing_file_folder_and_pipe_are_named(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"gone\.png: No such file"):
        load_picture(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(PictureError, match=r"folder\.png: not a regular file"):
        load_picture(tmp_path / "folder.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PictureError, match=r"pipe\.png: not a regular file"):
        load_picture(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"not a picture at all", "not a PNG, JPEG, WebP or GIF"),
        (encoded(Image.new("RGB", (2, 2)), "BMP"), "not a PNG, JPEG, WebP or GIF"),
        (encoded(noise(), "JPEG")[:-400], "truncated"),
        (encoded(noise(), "PNG")[:400], "[Tt]runcated"),
    ],
)
def test_broken_files_say_why(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(PictureError, match=rf"broken\.png: .*({reason})") as caught:
        load_picture(path)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_file_cut_anywhere_is_broken(kind: str) -> None:
    data = encoded(noise(), kind)
    end = len(data) - {"GIF": 2, "PNG": 4}.get(kind, 0)  # without the last bytes of the end mark the pixels are whole
    for length in [*range(0, end, 37), *range(max(0, end - 40), end)]:
        with pytest.raises(PictureError):
            decode_picture(data[:length])


def test_flipped_bits_in_a_png_are_found() -> None:
    data = bytearray(encoded(noise(), "PNG"))
    for position in random.Random(0).sample(range(8, len(data) - 12), 200):  # the last 12 only say that it ends
        data[position] ^= 0x10
        with pytest.raises(PictureError):
            decode_picture(bytes(data))
        data[position] ^= 0x10
    decode_picture(bytes(data))


@pytest.mark.filterwarnings("ignore")  # Pillow's, on the damaged EXIF
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_damage_never_raises_anything_else(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the bytes, there is a picture or a PictureError: an odd exception would end a scan of thousands."""
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100_000)  # damage to the size would otherwise cost seconds
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise(), kind, **({} if kind == "GIF" else {"exif": exif}))
    rng = random.Random(1)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(min(200, len(data)))] = rng.randrange(256)
        try:
            assert decode_picture(bytes(damaged)).mode == "RGB"
        except PictureError as error:
            assert str(error)


def test_no_pixels_or_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    header = struct.pack(">IIBBBBB", 0, 4, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")]
    with pytest.raises(PictureError):
        decode_picture(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(PictureError, match="0x4 pixels"):
        pictures._check_size((0, 4))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 40 * 30 - 1)
    with pytest.raises(PictureError, match=r"40x30 pixels, more than the 1,199"):
        decode_picture(encoded(noise(), "PNG"))


def test_decompression_bomb() -> None:
    """A file of a few kilobytes that claims 50,000 x 50,000 pixels is refused before any of them is made."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")]
    with pytest.raises(PictureError, match=r"decompression bomb|50000x50000"):
        decode_picture(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
