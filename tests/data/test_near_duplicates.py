"""What pictures look like, by hand, and near duplicates against comparing all pairs."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

import data.near_duplicates as near
from data.near_duplicates import near_duplicates, picture_hash
from tests.data.test_reduced import jpeg, scene


def by_all_pairs(hashes: list[int], most_bits: int) -> list[int]:
    repeated = []
    for place, own in enumerate(hashes):
        kept = [i for i in range(place) if repeated[i] < 0]
        repeated.append(next((i for i in kept if (own ^ hashes[i]).bit_count() <= most_bits), -1))
    return repeated


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(0, 63), max_size=9)), max_size=40), st.integers(0, 7))
def test_as_comparing_all_pairs(few_bits_away: list[tuple[int, list[int]]], most_bits: int):
    """Some hashes, and others a few bits from them."""
    middle = [int(each) for each in np.random.default_rng(1).integers(0, 2**64, 6, dtype=np.uint64)]
    hashes = []
    for which, bits in few_bits_away:
        own = middle[which]
        for bit in bits:
            own ^= 1 << bit
        hashes.append(own)
    expected = by_all_pairs(hashes, most_bits)
    assert near_duplicates(np.array(hashes, np.uint64), most_bits).tolist() == expected
    with pytest.MonkeyPatch.context() as patch:  # parted, and parted again
        for name, value in (("_SETTLED_ONE_BY_ONE", 2), ("_COMPARED", 2), ("_AT_ONCE", 5)):
            patch.setattr(near, name, value)
        assert near_duplicates(np.array(hashes, np.uint64), most_bits).tolist() == expected


@pytest.mark.parametrize("most_bits", [1, 3, 7])
@pytest.mark.parametrize("free", [2**64 - 1, 2**64 - 2**16, 2**40 - 2**16, 0xFFF0000FFF])
def test_many_as_comparing_all_pairs(free: int, most_bits: int):
    """Hashes that are alike in no bits, in a part, in five eighths and in scattered bits; each tenth near another."""
    draws = np.random.default_rng(0)
    hashes = draws.integers(0, 2**64, 1500, dtype=np.uint64) & np.uint64(free)
    hashes[::10] = hashes[draws.permutation(150)] ^ np.uint64(0b10010)
    expected = by_all_pairs(hashes.tolist(), most_bits)
    assert near_duplicates(hashes, most_bits).tolist() == expected


def test_few_are_compared_where_many_share_a_part(monkeypatch):
    """It was all pairs of them."""
    compared, count = [], np.bitwise_count
    monkeypatch.setattr(np, "bitwise_count", lambda values: compared.append(values.size) or count(values))
    hashes = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64) & np.uint64(2**64 - 2**16)
    near_duplicates(hashes, 3)
    assert sum(compared) < len(hashes) ** 2 / 10


def test_bits_of_a_picture_by_hand():
    """Bits across, then down: what grows brighter is one but for the last step, and so is white where all is one."""
    steps = np.array([0, 30, 60, 90, 120, 150, 180, 210, 100], np.uint8)
    image = Image.fromarray(np.stack([np.tile(steps.repeat(4), (36, 1))] * 3, axis=-1))
    assert picture_hash(image) >> 32 == int("11111110" * 4, 2)
    upright = picture_hash(image.transpose(Image.Transpose.TRANSPOSE))
    assert upright & (2**32 - 1) == int("1111" * 7 + "0000", 2)
    assert picture_hash(image.resize((90, 80), Image.Resampling.NEAREST)) == picture_hash(image)
    assert picture_hash(Image.new("RGB", (9, 9), "white")) == 2**64 - 1
    assert picture_hash(Image.new("RGB", (9, 9), "black")) == 0
    assert picture_hash(Image.new("RGB", (9, 9), (128, 128, 128))).bit_count() == 32


def stripes(*colours: str, upright: bool = False) -> Image.Image:
    """Bands of one colour each, one below the other, or side by side; 180x120."""
    bands = np.array([ImageColor.getrgb(colour) for colour in colours], np.uint8)
    pixels = np.repeat(bands, 120 // len(bands), axis=0)[:, None].repeat(180, axis=1)
    image = Image.fromarray(pixels)
    return image.transpose(Image.Transpose.TRANSPOSE).resize((180, 120)) if upright else image


def ramp(low: int, high: int, upright: bool = False) -> Image.Image:
    grey = np.linspace(low, high, 120).astype(np.uint8)[:, None].repeat(120, axis=1)
    return Image.fromarray(np.stack([grey.T if upright else grey] * 3, axis=-1))


SIMPLE = {
    "Netherlands": stripes("#ae1c28", "#ffffff", "#21468b"),
    "Germany": stripes("#000000", "#dd0000", "#ffce00"),
    "Poland": stripes("#ffffff", "#dc143c"),
    "Indonesia upside down": stripes("#dc143c", "#ffffff"),
    "France": stripes("#000091", "#ffffff", "#e1000f", upright=True),
    "Italy": stripes("#008c45", "#f4f9ff", "#cd212a", upright=True),
    "darker to the right": ramp(230, 20, upright=True),
    "brighter to the right": ramp(20, 230, upright=True),
    "darker down": ramp(230, 20),
    "sea": stripes("#9ec9f0", "#9ec9f0", "#9ec9f0", "#14405c", "#14405c"),
    "field": stripes("#9ec9f0", "#9ec9f0", "#5c8a2c", "#5c8a2c", "#5c8a2c"),
    "evening": stripes("#e88a3c", "#e88a3c", "#e88a3c", "#201010", "#201010"),
    "zebra": stripes(*["#000000", "#ffffff"] * 6),
    "zebra upright": stripes(*["#000000", "#ffffff"] * 6, upright=True),
    "white": stripes("#ffffff"),
    "grey": stripes("#808080"),
    "black": stripes("#000000"),
    "red": stripes("#e00000"),
    "blue": stripes("#0000e0"),
    "photograph": scene(180, 120, seed=1),
    "another": scene(180, 120, seed=2),
}


def test_simple_pictures_differ():
    hashes = np.array([picture_hash(image) for image in SIMPLE.values()], np.uint64)
    repeated = near_duplicates(hashes, 7)
    names = list(SIMPLE)
    assert {names[i]: names[repeated[i]] for i in np.flatnonzero(repeated >= 0)} == {}


@pytest.mark.parametrize("name", SIMPLE)
def test_copies_of_simple_pictures_do_not(name):
    image = SIMPLE[name]
    copies = [
        Image.open(BytesIO(jpeg(image))).convert("RGB"),
        image.resize((image.width * 3 // 5, image.height * 3 // 5), Image.Resampling.LANCZOS),
        image.point(lambda value: min(255, value + 4)),
    ]
    assert max((picture_hash(copy) ^ picture_hash(image)).bit_count() for copy in copies) <= 3
