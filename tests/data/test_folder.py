"""Folders of real files: what is kept, what is rejected with which reason, and when the run stops."""

import errno
import json
import logging
import os
import pickle
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
from data.source import Source
from data.split import fingerprint


def picture(path: Path, colour: int, **options: object) -> None:
    """A file of its own bytes for every colour of 0..255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (colour, 255 - colour, 7)).save(path, **options)


def folder_of(folder: Path, names: list[str], *, captions: bool = True) -> Path:
    for i, name in enumerate(names):
        picture(folder / name, i)
    if captions:
        table(folder, names)
    return folder


def table(folder: Path, names: list[str]) -> None:
    (folder / "captions.csv").write_text("file_name,text\n" + "".join(f"{name},a {name}\n" for name in names))


def keys(source: FolderSource) -> list[str]:
    return [source.key(i) for i in range(len(source))]


def rejected(source: FolderSource) -> dict[str, Reason]:
    return {reject.file: reject.reason for reject in source.report.rejects}


def test_satisfies_source(tmp_path: Path) -> None:
    source = FolderSource(folder_of(tmp_path, ["b.png", "a.webp", "sub/deep/c.JPG"]), need_captions=True)
    assert isinstance(source, Source)
    assert keys(source) == ["a.webp", "b.png", "sub/deep/c.JPG"]
    assert [source.captions(i) for i in range(3)] == [(f"a {key}",) for key in keys(source)]
    assert [source.split(i) for i in range(3)] == [None] * 3
    image = source.image(1)
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 3), (0, 255, 7))
    with pytest.raises(IndexError):
        source.image(3)


def test_the_fingerprint_names_keys_captions_splits_and_pixels(tmp_path: Path) -> None:
    def made(folder: str, rows: str = "a.png,red,\nb.png,blue,\n", names: tuple[str, ...] = ("a.png", "b.png")) -> str:
        folder_of(tmp_path / folder, list(names), captions=False)
        (tmp_path / folder / "captions.csv").write_text(f"file_name,text,split\n{rows}")
        return fingerprint(FolderSource(tmp_path / folder, need_captions=True))

    first = made("first")
    assert len(first) == 16
    assert first == made("elsewhere")
    others = [
        made("caption", "a.png,red,\nb.png,green,\n"),
        made("more", "a.png,red,\na.png,blue,\nb.png,blue,\n"),
        made("split", "a.png,red,val\nb.png,blue,\n"),
        made("pixels", names=("b.png", "a.png")),
        made("name", "a.png,red,\nc.png,blue,\n", names=("a.png", "c.png")),
    ]
    assert len({first, *others}) == 6


def test_order_is_by_path_whatever_the_system_lists_first(tmp_path: Path) -> None:
    names = [f"{i:03}.png" for i in np.random.default_rng(0).permutation(50)]
    source = FolderSource(folder_of(tmp_path, names), need_captions=True)
    assert keys(source) == sorted(names)
    for i, key in enumerate(keys(source)):
        assert source.image(i).getpixel((0, 0))[0] == names.index(key)


def test_it_can_be_sent_to_workers(tmp_path: Path) -> None:
    source = FolderSource(folder_of(tmp_path, ["a.png", "b.png"]), need_captions=True)
    copy = pickle.loads(pickle.dumps(source))
    assert keys(copy) == keys(source)
    assert copy.image(1).tobytes() == source.image(1).tobytes()


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


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone: no such folder"):
        FolderSource(tmp_path / "gone", need_captions=False)
    picture(tmp_path / "a.png", 1)
    with pytest.raises(ValueError, match=r"a\.png: not a folder"):
        FolderSource(tmp_path / "a.png", need_captions=False)


def test_empty_folder_and_other_files(tmp_path: Path) -> None:
    looked_for = r"no pictures; looked for \.png, \.jpg, \.jpeg, \.webp, \.gif in it and below, found "
    with pytest.raises(ValueError, match=looked_for + "no files at all"):
        FolderSource(tmp_path, need_captions=False)
    for name in ["a.bmp", "b.BMP", "notes"]:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=looked_for + r"2 \.bmp, 1 no suffix"):
        FolderSource(tmp_path, need_captions=True)


def test_unknown_layout(tmp_path: Path) -> None:
    folder_of(tmp_path, ["a.png", "b.png"], captions=False)
    (tmp_path / "labels.csv").write_text("a.png,cat\n")
    with pytest.raises(ValueError, match=r"2 pictures, but no captions; looked for a table \(captions\.csv") as caught:
        FolderSource(tmp_path, need_captions=True)
    for name in ["captions.tsv", "metadata.jsonl", "file_name and text", "a .txt beside", "captions_*.json"]:
        assert name in str(caught.value)
    source = FolderSource(tmp_path, need_captions=False)
    assert [source.captions(i) for i in range(2)] == [(), ()]
    assert source.report.captions_from == ""


def test_captions_that_name_no_file(tmp_path: Path) -> None:
    folder_of(tmp_path, ["a.png"], captions=False)
    table(tmp_path, ["images/a.png"])
    with pytest.raises(
        ValueError, match=r"none of the 1 files that captions\.csv names .*/images/a\.png \(captions\.csv"
    ):
        FolderSource(tmp_path, need_captions=True)


def test_captions_are_kept_where_they_are_not_needed(tmp_path: Path) -> None:
    folder_of(tmp_path, ["a.png", "b.png"], captions=False)
    (tmp_path / "captions.csv").write_text("file_name,text,split\nb.png,bee,validation\n")
    source = FolderSource(tmp_path, need_captions=False)
    assert [(source.captions(i), source.split(i)) for i in range(2)] == [((), None), (("bee",), "val")]
    assert source.report.splits == {"val": 1}


def test_where_captions_are_not_needed_only_pictures_count(tmp_path: Path) -> None:
    folder_of(tmp_path, ["a.png", "b.png"], captions=False)
    table = tmp_path / "metadata.csv"
    table.write_text("id,label\n1,cat\n")
    source = FolderSource(tmp_path, need_captions=False, max_rejected=0)
    assert keys(source) == ["a.png", "b.png"]
    assert source.report.notes[0].startswith("no captions or splits read, and none needed: ")
    assert "no column file_name" in source.report.summary()
    with pytest.raises(ValueError, match="no column file_name"):
        FolderSource(tmp_path, need_captions=True)

    table.write_text("file_name,split\na.png,val\ngone.png,train\n/b.png,train\n")
    source = FolderSource(tmp_path, need_captions=False, max_rejected=0)
    assert [(source.key(i), source.split(i)) for i in range(2)] == [("a.png", "val"), ("b.png", None)]
    assert source.report.notes[0].startswith("2 captions passed over, first gone.png (caption without a picture")

    table.write_text("file_name,split\na.png,holdout\n")  # what was to be held back would be trained on
    with pytest.raises(ValueError, match="split is 'holdout'"):
        FolderSource(tmp_path, need_captions=False)

    table.unlink()
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_text("bee")
    source = FolderSource(tmp_path, need_captions=False, max_rejected=0)
    assert [source.captions(i) for i in range(2)] == [(), ("bee",)]


def test_split_of_the_table_else_of_the_first_folder(tmp_path: Path) -> None:
    names = ["Train/1.png", "dev/2.png", "test/x/3.png", "other/train/4.png", "train.png"]
    folder_of(tmp_path, names, captions=False)
    source = FolderSource(tmp_path, need_captions=False)
    splits = {source.key(i): source.split(i) for i in range(len(source))}
    assert splits == dict(zip(names, ["train", "val", "test", None, None], strict=True))
    (tmp_path / "captions.csv").write_text("file_name,text,split\nTrain/1.png,one,test\ndev/2.png,two,\n")
    source = FolderSource(tmp_path, need_captions=False)
    splits = {source.key(i): source.split(i) for i in range(len(source))}
    assert (splits["Train/1.png"], splits["dev/2.png"]) == ("test", "val")


def test_imagefolder_with_a_table_in_each_split(tmp_path: Path) -> None:
    for i, split in enumerate(["train", "validation"]):
        picture(tmp_path / split / "1.png", i)
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text\n1.png,in {split}\n")
    source = FolderSource(tmp_path, need_captions=True)
    assert [(source.key(i), source.captions(i), source.split(i)) for i in range(2)] == [
        ("train/1.png", ("in train",), "train"),
        ("validation/1.png", ("in validation",), "val"),
    ]


def test_coco_and_texts_from_real_folders(tmp_path: Path) -> None:
    coco = folder_of(tmp_path / "coco", ["train2017/1.jpg", "val2017/2.jpg"], captions=False)
    for part, name in [("train2017", "1.jpg"), ("val2017", "2.jpg")]:
        record = {"images": [{"id": 5, "file_name": name}], "annotations": [{"image_id": 5, "caption": f"of {part}"}]}
        (coco / "annotations").mkdir(exist_ok=True)
        (coco / "annotations" / f"captions_{part}.json").write_text(json.dumps(record))
    source = FolderSource(coco, need_captions=True)
    assert [(source.captions(i), source.split(i)) for i in range(2)] == [
        (("of train2017",), "train"),
        (("of val2017",), "val"),
    ]
    texts = folder_of(tmp_path / "texts", ["a.png", "sub/b.png", "bad.png"], captions=False)
    (texts / "a.txt").write_text("one\ntwo\n")
    (texts / "sub" / "b.txt").write_text("three\n")
    (texts / "bad.txt").write_bytes(b"\xff\xff")
    source = FolderSource(texts, need_captions=True, max_rejected=0.5)
    assert [source.captions(i) for i in range(2)] == [("one", "two"), ("three",)]
    assert rejected(source) == {"bad.png": Reason.BAD_CAPTION}


def test_hidden_files_and_other_files_are_ignored(tmp_path: Path) -> None:
    folder_of(tmp_path, ["a.png"])
    for name in ["._a.png", ".cache/b.png", "notes.md", "scan.tif", "scan2.tif"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not a picture")
    source = FolderSource(tmp_path, need_captions=True)
    assert keys(source) == ["a.png"]
    assert source.report.rejects == ()
    assert source.report.notes == ("not read: 2 .tif files",)


def test_links(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", ["real/a.png", "real/b.png"], captions=False)
    picture(tmp_path / "elsewhere" / "c.png", 9)
    picture(tmp_path / "not-asked-for.png", 8)
    (folder / "real" / "loop").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path)
    (folder / "again").symlink_to(folder / "real")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "same.png").symlink_to(folder / "real" / "a.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    source = FolderSource(folder, need_captions=False, max_rejected=1)
    assert keys(source) == ["linked/c.png", "real/a.png", "real/b.png"]
    assert rejected(source) == {
        "dangling.png": Reason.BROKEN,
        "pipe.png": Reason.BROKEN,
        "same.png": Reason.DUPLICATE,
    }


def test_names_that_are_no_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder_of(tmp_path, ["a.png"], captions=False)
    odd = os.fsdecode(b"\xff.png")
    try:
        picture(tmp_path / odd, 5)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    report = tmp_path / "report.json"
    source = FolderSource(tmp_path, need_captions=False, max_rejected=0.5, report=report)
    assert keys(source) == ["a.png"]
    assert rejected(source) == {odd: Reason.BAD_NAME}
    assert json.loads(report.read_text())["rejects"][0]["file"] == odd
    assert "\\udcff.png" in caplog.text


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, ["a.png", "locked/b.png"])
    listing = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ValueError, match=r"locked: the folder cannot be listed \(Permission denied\)"):
        FolderSource(tmp_path, need_captions=True)


def test_a_picture_that_goes_or_breaks_later_is_named(tmp_path: Path) -> None:
    source = FolderSource(folder_of(tmp_path, ["a.png", "b.png", "c.png"]), need_captions=True)
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    with pytest.raises(Rejected, match=r"a\.png: No such file") as gone:
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


def test_progress_of_a_long_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("data.waiting.EVERY", 0.0)
    with caplog.at_level(logging.INFO):
        FolderSource(folder_of(tmp_path, ["a.png", "b.png"]), need_captions=True)
    assert f"{tmp_path}: checked 1 of 2 pictures, about" in caplog.records[0].message


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_of(tmp_path / "pictures", ["a.png"])
    assert len(FolderSource("~/pictures", need_captions=True)) == 1


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
