"""Folders of real files: what is kept, in which order, with which captions and splits."""

import json
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from data.folder import FolderSource
from data.rejects import Reason
from data.source import Source
from data.split import fingerprint
from tests.data.picture_folders import folder_of, keys, picture, rejected, table


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
