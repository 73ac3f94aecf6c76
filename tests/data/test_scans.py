"""What an earlier start has found in a folder is used by the next one, for as long as it is true."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.folder
from data.folder import FolderSource
from data.pictures import decode_picture
from data.scans import stamp_of

NAMES = [f"{number}.png" for number in range(5)]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five pictures, a copy of one and a broken one."""
    place = tmp_path / "pictures"
    place.mkdir()
    for number, name in enumerate(NAMES):
        save(place / name, number)
    shutil.copy(place / "3.png", place / "copy.png")
    (place / "broken.png").write_bytes(b"rubbish")
    return place


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """One entry for each picture that is decoded."""
    calls = []

    def counting(content: bytes, least: int | None = None) -> Image.Image:
        calls.append(len(content))
        return decode_picture(content, least)

    monkeypatch.setattr(data.folder, "decode_picture", counting)
    return calls


def save(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, compress_level=0)  # so that all files are of one size


def opened(folder: Path) -> FolderSource:
    report = folder.parent / "run" / "rejects.json"
    return FolderSource(folder, need_captions=False, max_rejected=0.5, report=report)


def record(folder: Path) -> Path:
    return folder.parent / "run" / "rejects-scan.safetensors"


def all_of(source: FolderSource) -> tuple:
    return list(source.identity()), source.sizes().tolist(), source.report


def test_the_next_start_decodes_only_what_was_broken(folder, decoded):
    first = opened(folder)
    assert len(decoded) == 7
    decoded.clear()
    again = opened(folder)
    assert decoded == [len(b"rubbish")]
    assert all_of(again) == all_of(first) and len(again) == 5
    assert again.image(1).tobytes() == Image.open(folder / "1.png").tobytes()


@pytest.mark.parametrize("time_kept", [False, True])
def test_a_file_that_has_changed_is_decoded_anew(folder, decoded, time_kept):
    """Also where it has its old size and was given its old time."""
    opened(folder)
    before = (folder / "1.png").stat()
    digests = dict(zip(NAMES, opened(folder).identity(), strict=True))
    save(folder / "1.png", 77)
    if time_kept:
        os.utime(folder / "1.png", ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (folder / "1.png").stat().st_mtime_ns == before.st_mtime_ns
    assert (folder / "1.png").stat().st_size == before.st_size
    decoded.clear()
    changed = dict(zip(NAMES, opened(folder).identity(), strict=True))
    assert sorted(decoded) == [len(b"rubbish"), before.st_size]
    assert {name for name in NAMES if changed[name] != digests[name]} == {"1.png"}


def test_what_a_file_was_that_is_broken_now_does_not_count(folder):
    opened(folder)
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:-40])
    assert [reject.file for reject in opened(folder).report.rejects] == ["1.png", "broken.png", "copy.png"]


def test_another_folder_of_the_same_names_is_decoded(folder, decoded):
    opened(folder)
    decoded.clear()
    opened(folder.rename(folder.with_name("elsewhere")))
    assert len(decoded) == 7


def test_a_damaged_record_is_not_used(folder, decoded):
    expected = all_of(opened(folder))
    sound = record(folder).read_bytes()
    flipped = [sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :] for at in range(0, len(sound), 61)]
    for content in (b"", sound[:-1], sound[:9], *flipped):
        record(folder).write_bytes(content)
        decoded.clear()
        assert all_of(opened(folder)) == expected
        assert len(decoded) == 7
        assert record(folder).read_bytes() == sound


def test_a_scan_that_is_interrupted_is_gone_on_with(folder, decoded, monkeypatch):
    save(folder / "copy.png", 99)
    last = (folder / "copy.png").read_bytes()

    def interrupted(content: bytes, least: int | None = None) -> Image.Image:
        if content == last:
            raise KeyboardInterrupt
        return decode_picture(content, least)

    with monkeypatch.context() as patched:
        patched.setattr(data.folder, "decode_picture", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opened(folder)
    assert len(opened(folder)) == 6
    assert sorted(decoded) == [len(b"rubbish"), len(last)]


def test_looks_are_kept_too(folder, decoded):
    expected = opened(folder).hashes()
    decoded.clear()
    again = opened(folder)
    assert again.hashes().bits.tolist() == expected.bits.tolist()
    assert decoded == [len(b"rubbish")]
    save(folder / "2.png", 55)
    assert opened(folder).hashes().bits[2] != expected.bits[2]


def test_a_record_that_cannot_be_kept_is_said(folder, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.scans.write_file", full)
    assert len(opened(folder)) == 5
    assert "rejects-scan.safetensors cannot be kept" in caplog.text


def test_a_time_that_64_bits_do_not_hold_keeps_no_record_and_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.touch()
    os.utime(path, ns=(2**63, 2**63))  # in the year 2262
    if path.stat().st_mtime_ns < 2**63:
        pytest.skip("this file system holds no such time")
    assert stamp_of(path) is None
