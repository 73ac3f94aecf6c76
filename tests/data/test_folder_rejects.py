"""What of a folder is rejected, with which reason, and when the run stops; what breaks while a run reads."""

import errno
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.datamodule import TokenizerData
from data.folder import FolderSource
from data.near_duplicates import picture_hash
from data.pictures import PictureError
from data.rejects import Reason, Reject, Rejected, Report
from data.settings import Loading
from tests.data.picture_folders import folder_of, keys, rejected, table


def test_every_reason_is_listed_once_and_nothing_is_swapped(tmp_path: Path) -> None:
    good = [f"good{i}.png" for i in range(10)]
    folder_of(tmp_path, [*good, "uncaptioned.png", "empty-caption.png"], captions=False)
    (tmp_path / "copy.png").write_bytes((tmp_path / "good3.png").read_bytes())
    (tmp_path / "zero.png").write_bytes(b"")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), dtype=np.uint8)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-300])
    rows = [*good, "copy.png", "zero.png", "cut.jpg", "gone.png", "gone.png", "../out.png"]
    table(tmp_path, rows)
    with (tmp_path / "captions.csv").open("a") as file:
        file.write("empty-caption.png,\n")
    report = tmp_path / "reports" / "folder.json"
    source = FolderSource(tmp_path, need_captions=True, max_rejected=0.5, report=report)
    kept = [name for name in good if name != "good3.png"]
    assert keys(source) == ["copy.png", *kept]
    for i, key in enumerate(keys(source)):
        assert source.captions(i) == (f"a {key}",)
        assert source.image(i).tobytes() == Image.open(tmp_path / key).tobytes()
    assert rejected(source) == {
        "gone.png": Reason.NO_PICTURE,
        "../out.png": Reason.OUTSIDE,
        "uncaptioned.png": Reason.NO_CAPTION,
        "empty-caption.png": Reason.NO_CAPTION,
        "cut.jpg": Reason.BROKEN,
        "good3.png": Reason.DUPLICATE,
        "zero.png": Reason.BROKEN,
    }
    assert len(source.report.rejects) == 7
    details = {reject.file: reject.detail for reject in source.report.rejects}
    assert details["good3.png"] == "same bytes as copy.png"
    assert "truncated" in details["cut.jpg"]
    assert "0 bytes" in details["zero.png"]
    assert details["uncaptioned.png"] == "not named in captions.csv"
    assert details["empty-caption.png"] == "its captions are empty"
    counts = {
        "no caption": 2,
        "broken picture": 2,
        "caption without a picture": 1,
        "path leaves the folder": 1,
        "duplicate picture": 1,
    }
    assert source.report.counts == counts
    assert source.report.doubled_captions == 0

    written = json.loads(report.read_text())
    assert (written["kept"], written["rejected"], written["counts"]) == (10, 7, counts)
    assert {"file": "good3.png", "reason": "duplicate picture", "detail": "same bytes as copy.png"} in written[
        "rejects"
    ]
    assert {path.name for path in report.parent.iterdir()} == {"folder.json", "folder-scan.safetensors"}


def test_a_copy_without_caption_does_not_cost_the_captioned_one(tmp_path: Path) -> None:
    folder_of(tmp_path, ["b.png", "c.png"])
    (tmp_path / "a.png").write_bytes((tmp_path / "b.png").read_bytes())
    source = FolderSource(tmp_path, need_captions=True, max_rejected=0.5)
    assert keys(source) == ["b.png", "c.png"]
    assert rejected(source) == {"a.png": Reason.NO_CAPTION}


def test_doubled_captions_are_counted(tmp_path: Path) -> None:
    folder_of(tmp_path, ["a.png"])
    with (tmp_path / "captions.csv").open("a") as file:
        file.write("a.png,a a.png\na.png,another\n")
    source = FolderSource(tmp_path, need_captions=True)
    assert source.captions(0) == ("a a.png", "another")
    assert source.report.doubled_captions == 1
    assert "1 repeated captions used once" in source.report.summary()


def broken_share(folder: Path, broken: int, total: int) -> Path:
    names = [f"{i:03}.png" for i in range(total)]
    folder_of(folder, names, captions=False)
    for name in names[:broken]:
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\nrubbish" + name.encode())
    return folder


def test_threshold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    five = broken_share(tmp_path / "five", 5, 100)
    with caplog.at_level(logging.INFO):
        assert len(FolderSource(five, need_captions=False)) == 95
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "95 pictures" in record.message
    assert "5 files rejected: 5 broken picture. First: 000.png (broken picture: " in record.message

    six = broken_share(tmp_path / "six", 6, 100)
    report = tmp_path / "six.json"
    message = (
        r"six: 6 of 100 files rejected \(6\.0%; max_rejected=0\.05 allows 5\.0%\); mend them or set "
        r"max_rejected=0\.07 \(--data\.loading\.max_rejected .* else --max_rejected\): 6 broken picture\. "
        r"First: 000\.png"
    )
    with pytest.raises(ValueError, match=message) as caught:
        FolderSource(six, need_captions=False, report=report)
    assert "004.png" in str(caught.value)
    assert "005.png" not in str(caught.value)
    assert "and 1 more" in str(caught.value)
    assert len(json.loads(report.read_text())["rejects"]) == 6
    assert len(FolderSource(six, need_captions=False, max_rejected=0.07)) == 94
    with pytest.raises(ValueError, match=r"1 of 20 .*max_rejected=0 allows 0\.0%"):
        FolderSource(broken_share(tmp_path / "one", 1, 20), need_captions=False, max_rejected=0)


def test_nothing_left_is_refused_at_any_threshold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 of 3 files rejected .*nothing is left"):
        FolderSource(broken_share(tmp_path, 3, 3), need_captions=False, max_rejected=1)


def test_a_clean_folder_is_one_quiet_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        FolderSource(folder_of(tmp_path, ["a.png", "b.png"]), need_captions=True)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.message == f"{tmp_path}: 2 pictures, captions from captions.csv"


@pytest.mark.parametrize("limit", [-0.1, 5])
def test_threshold_is_a_fraction(tmp_path: Path, limit: float) -> None:
    with pytest.raises(ValueError, match=rf"max_rejected={limit}, expected a fraction from 0 to 1"):
        FolderSource(folder_of(tmp_path, ["a.png"]), need_captions=True, max_rejected=limit)


def test_a_picture_that_goes_or_breaks_later_is_named(tmp_path: Path) -> None:
    source = FolderSource(folder_of(tmp_path, ["a.png", "b.png", "c.png"]), need_captions=True)
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    with pytest.raises(Rejected, match=r"a\.png: No such file or directory; it has gone since") as gone:
        source.image(0)
    assert gone.value.reject.file == "a.png" and gone.value.reject.reason == Reason.BROKEN
    with pytest.raises(Rejected, match=r"b\.png: "):
        source.image(1)
    assert source.image(2).getpixel((0, 0)) == (2, 253, 7)
    hashes = source.hashes()
    assert [reject.file for reject in hashes.broken.values()] == ["a.png", "b.png"] and list(hashes.broken) == [0, 1]
    assert hashes.bits[2] == picture_hash(source.image(2))


def test_one_that_breaks_while_a_run_reads_is_replaced_and_listed(tmp_path: Path) -> None:
    names = [f"{number:02d}.png" for number in range(40)]
    folder, report = folder_of(tmp_path / "pictures", names, captions=False), tmp_path / "rejects.json"
    data = TokenizerData(
        folder=str(folder), image_size=4, loading=Loading(batch_size=4, workers=0, val_fraction=0.2, report=str(report))
    )
    data.setup()
    broken = data.source.key(int(data.train_indices[0]))
    (folder / broken).write_bytes(b"")
    keys = [key for batch in data.train_dataloader() for key in batch["keys"]]
    assert len(keys) == len(data.train_indices) // 4 * 4 and broken not in keys
    (line,) = report.with_name("rejects-found.jsonl").read_text().splitlines()
    assert json.loads(line)["file"] == broken and "empty file (0 bytes)" in line


def test_a_disk_that_fails_is_asked_again_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = FolderSource(folder_of(tmp_path, ["a.png"]), need_captions=True)
    monkeypatch.setattr("data.folder.WAITS", (0.0, 0.0))
    failures = [errno.EIO, errno.ESTALE]

    def failing(path: Path) -> bytes:
        if failures:
            code = failures.pop()
            raise OSError(code, os.strerror(code))
        with path.open("rb") as file:
            return file.read()

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert source.image(0).getpixel((0, 0)) == (0, 255, 7)
    assert caplog.text.count("a.png: Stale file handle; once more") == 1
    failures += [errno.EIO] * 3
    with pytest.raises(PictureError, match=r"/a\.png: Input/output error"):
        source.image(0)


def test_report_leaves_the_old_file_whole_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    reject = Reject("a.png", Reason.BROKEN, "cut")
    report = Report(folder=tmp_path, captions_from="", kept=1, splits={}, rejects=(reject,), doubled_captions=0)

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Path, "write_bytes", full)
        report.save(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    report.save(path)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="is a folder, expected a file"):
        report.save(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert json.loads(path.read_text())["rejects"] == [{"file": "a.png", "reason": "broken picture", "detail": "cut"}]
    assert report.fraction == 0.5
