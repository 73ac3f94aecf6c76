"""Every hostile picture gives a picture or a PictureError, and a folder of them all counts each of them."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import inspect, pictures
from data.folder import FolderSource
from data.pictures import PictureError, decode_picture
from tests.hostile.formats import ANIMATED, WHOLE, Hostile, animated, interlaced
from tests.hostile.pictures import PICTURES

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, on what is damaged


@pytest.mark.parametrize("least", [None, 1], ids=["whole", "reduced"])
@pytest.mark.parametrize("hostile", PICTURES.values(), ids=PICTURES.keys())
def test_a_picture_or_its_named_error(hostile: Hostile, least: int | None):
    try:
        picture = decode_picture(hostile.data, least)
    except PictureError as error:
        assert hostile.verdict != "read", error
        assert str(error).strip()
    else:
        assert hostile.verdict != "refused"
        assert picture.mode == "RGB"
        assert min(picture.size) >= 1
        picture.tobytes()


def test_a_folder_of_them_all_counts_each(tmp_path):
    for i, hostile in enumerate(PICTURES.values()):
        (tmp_path / f"{i:04}.{('jpg', 'PNG', 'webp', 'gif')[i % 4]}").write_bytes(hostile.data)
    source = FolderSource(tmp_path, need_captions=False, max_rejected=1.0, report=tmp_path / "rejects.json")
    assert len(source) + len(source.report.rejects) == len(PICTURES)
    refused = {reject.file[:4] for reject in source.report.rejects}
    assert refused >= {f"{i:04}" for i, hostile in enumerate(PICTURES.values()) if hostile.verdict == "refused"}
    assert all(reject.detail for reject in source.report.rejects)
    with pytest.raises(ValueError, match="files rejected"):
        FolderSource(tmp_path, need_captions=False)
    found = inspect.run([str(tmp_path)])
    assert found["counts"] == source.report.counts and found["samples"] == len(source)
    assert inspect.lines(found)


def test_an_interlaced_picture_is_read_whole():
    """What is cut in it has to be sound before."""
    assert decode_picture(interlaced()).size == (16, 16)
    assert all(decode_picture(data).size == (24, 18) for data in ANIMATED.values())
    assert animated("GIF") == ANIMATED["animated-gif"]


@pytest.mark.parametrize("data", (WHOLE | ANIMATED).values(), ids=(WHOLE | ANIMATED).keys())
def test_flipped_bits(data: bytes):
    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(0, 8 * len(data) - 1), min_size=1, max_size=6))
    def flip(places: list[int]) -> None:
        damaged = bytearray(data)
        for place in places:
            damaged[place // 8] ^= 1 << place % 8
        decodes_or_says_why(bytes(damaged))

    flip()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\xff\0\0\0WEBP"]), st.binary())
@example(b"", b"")
def test_rubbish(start: bytes, rest: bytes):
    decodes_or_says_why(start + rest)


def decodes_or_says_why(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "MAX_PIXELS", 100_000)  # damage to the size would otherwise cost seconds
        try_to_decode(data)


def try_to_decode(data: bytes) -> None:
    try:
        assert decode_picture(data).mode == "RGB"
    except PictureError as error:
        assert str(error).strip()
