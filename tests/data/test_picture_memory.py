"""What decoding takes of the memory: little beside the pixels, of few pictures at a time; and it changes no pixel."""

import io
import threading
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from data import pictures
from data.budget import Budget
from data.pictures import PictureError, decode_picture
from data.threads import in_threads
from tests.hostile.pictures import PICTURES

RNG = np.random.default_rng(0)


def png(values: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", **options)
    return buffer.getvalue()


GREY16 = png(RNG.integers(0, 2**16, (30, 50), dtype=np.uint16))
RGBA = png(RNG.integers(0, 256, (30, 50, 4), dtype=np.uint8))
OTHERS = {
    "grey16": GREY16,
    "rgba": RGBA,
    "grey-alpha": png(RNG.integers(0, 256, (30, 50, 2), dtype=np.uint8)),
    "key": png(RNG.integers(0, 3, (30, 50, 3), dtype=np.uint8), transparency=(0, 1, 2)),
}


def pixels_or_reason(data: bytes) -> bytes | str:
    try:
        picture = decode_picture(data)
    except PictureError as error:
        return str(error)
    return repr(picture.size).encode() + picture.tobytes()


@pytest.mark.filterwarnings("ignore")
def test_strips_make_the_pixels_that_the_whole_makes(monkeypatch):
    everything = [*(hostile.data for hostile in PICTURES.values()), *OTHERS.values()]
    whole = [pixels_or_reason(data) for data in everything]
    monkeypatch.setattr(pictures, "_STRIP", 60)
    assert [pixels_or_reason(data) for data in everything] == whole
    values = np.asarray(Image.open(io.BytesIO(RGBA)).convert("RGBA")).astype(float)
    shown = values[..., :3] * values[..., 3:] / 255 + 255 - values[..., 3:]
    assert np.abs(np.asarray(decode_picture(RGBA)) - shown).max() <= 1
    grey = (np.asarray(Image.open(io.BytesIO(GREY16))).astype(int) + 128) // 257
    assert np.array_equal(np.asarray(decode_picture(GREY16))[..., 1], grey)


def test_grey_of_16_bits_takes_little_memory(monkeypatch):
    """Of what numpy allocates; it was 24 bytes a pixel."""
    data = png(np.zeros((1000, 1000), np.uint16))
    monkeypatch.setattr(pictures, "_STRIP", 1 << 16)
    tracemalloc.start()
    decode_picture(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6


def test_transparency_is_laid_onto_white_in_parts(monkeypatch):
    sizes, composite = [], Image.alpha_composite
    monkeypatch.setattr(pictures, "_STRIP", 100)
    monkeypatch.setattr(Image, "alpha_composite", lambda a, b: sizes.append(a.size) or composite(a, b))
    decode_picture(RGBA)
    assert sizes == [(50, 2)] * 15


def test_few_pixels_are_decoded_at_a_time(monkeypatch):
    """Pictures of 1,500 pixels on eight threads, of which two find room."""
    monkeypatch.setattr(pictures, "_DECODED", Budget(3500))
    at_work, most, changed = 0, 0, threading.Condition()

    def slow(image: Image.Image) -> Image.Image:
        """The first two wait for each other, and then for a third one, which is not to come."""
        nonlocal at_work, most
        with changed:
            at_work += 1
            if most < 2:
                most = max(most, at_work)
                changed.notify_all()
                changed.wait_for(lambda: most >= 2, timeout=20)
                changed.wait_for(lambda: most > 2, timeout=0.3)
            most = max(most, at_work)
            changed.notify_all()
            at_work -= 1
        return image

    monkeypatch.setattr(pictures, "_to_rgb", slow)
    assert len(list(in_threads(decode_picture, [RGBA] * 8))) == 8
    assert most == 2


def test_who_asks_for_more_than_all_gets_it_alone():
    budget, order = Budget(10), []

    def ask(part: int) -> None:
        with budget.taken(part):
            order.append(part)

    with pytest.raises(ZeroDivisionError), budget.taken(25):
        thread = threading.Thread(target=ask, args=(1,))
        thread.start()
        thread.join(0.05)
        assert order == []
        raise ZeroDivisionError
    thread.join(5)
    ask(30)
    assert order == [1, 30]
