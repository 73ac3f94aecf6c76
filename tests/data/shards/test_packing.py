"""A folder packed to shards holds the same samples, read by ours and by the library."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import webdataset

from data.folder import FolderSource
from data.shards.__main__ import run
from data.shards.packing import pack
from data.shards.source import ShardsSource
from data.source import Source
from locks import only_writer
from tests.data.shards.tars import number_of, picture

NAMES = [
    "cats/tabby.v2.png", "cats/tabby.png", "a b/früchte (1).png", "日本/😀.webp", "deep/er/and/deeper.PNG", "x.tar.png",
    "n" * 100 + "/" + "m" * 200 + ".png", "plain.png", "plain.gif",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    with_rows = tmp_path / "pictures"
    for number, name in enumerate(NAMES):
        path = with_rows / name
        path.parent.mkdir(parents=True, exist_ok=True)
        form = {".webp": "WEBP", ".gif": "GIF"}.get(path.suffix, "PNG")
        path.write_bytes(picture(number, form))
    with (with_rows / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text", "split"])
        for number, name in enumerate(NAMES):
            split = ("train", "val", "")[number % 3]
            table.writerow([name, f"thing {number}\nof two lines, \x00 and “quotes”", split])
            table.writerow([name, f"ünother {number}", split])
    return with_rows


def samples(source: Source) -> dict[str, tuple]:
    return {source.key(i): (source.image(i).tobytes(), source.captions(i), source.split(i)) for i in range(len(source))}


def test_the_same_samples(folder, tmp_path):
    source = FolderSource(folder, need_captions=True)
    assert pack(source, tmp_path / "shards", size=4) == 3
    again = ShardsSource(str(tmp_path / "shards"), need_captions=True)
    assert set(samples(again)) == set(NAMES)
    assert samples(again) == samples(source)
    assert again.report.rejects == ()


def test_the_library_reads_the_same(folder, tmp_path):
    source = FolderSource(folder, need_captions=True)
    pack(source, tmp_path / "shards", size=4)
    shards = sorted(str(path) for path in (tmp_path / "shards").glob("*.tar"))
    expected = {source.key(i): (source.file(i), source.captions(i)) for i in range(len(source))}
    found = {}
    for each in webdataset.WebDataset(shards, shardshuffle=False):
        meta = json.loads(each["json"])
        (content,) = (each[suffix] for suffix in ("png", "webp", "gif") if suffix in each)
        assert each["txt"].decode() == meta["captions"][0]
        assert re.fullmatch(r"\d{9}", each["__key__"])
        found[meta["key"]] = (content, tuple(meta["captions"]))
    assert found == expected


def test_the_same_bytes_each_time_and_in_mixed_order(folder, tmp_path):
    for name in ("a", "b"):
        pack(FolderSource(folder, need_captions=True), tmp_path / name, size=4)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    keys = list(samples(ShardsSource(str(tmp_path / "a"), need_captions=True)))
    assert keys != sorted(keys)


def test_nothing_is_left_of_what_failed(folder, tmp_path):
    source = FolderSource(folder, need_captions=True)
    (folder / NAMES[3]).write_bytes(picture(77))
    with pytest.raises(ValueError, match="has changed since it was checked"):
        pack(source, tmp_path / "shards", size=2)
    assert not list(tmp_path.glob("shards*"))
    (tmp_path / "shards").mkdir()
    with pytest.raises(ValueError, match="shards exists already"):
        pack(source, tmp_path / "shards", size=2)
    with pytest.raises(ValueError, match="size=0"):
        pack(source, tmp_path / "other", size=0)


def test_what_a_killed_process_has_left_goes(folder, tmp_path):
    source, left = FolderSource(folder, need_captions=True), tmp_path / "shards.partial"
    left.mkdir()
    for name in (".lock", "00000.tar", "00007.tar"):
        (left / name).write_bytes(b"half")
    assert pack(source, tmp_path / "shards", size=5) == 2
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["00000.tar", "00001.tar"]
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "shards"}
    assert len(ShardsSource(str(tmp_path / "shards"), need_captions=True)) == len(NAMES)


def test_what_packing_did_not_leave_stays(folder, tmp_path):
    kept = tmp_path / "shards.partial" / "mine.tar"
    kept.parent.mkdir()
    kept.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"mine\.tar is none of the shards that packing leaves"):
        pack(FolderSource(folder, need_captions=True), tmp_path / "shards", size=5)
    assert kept.read_bytes() == b"mine"


def test_two_do_not_write_the_same_shards(folder, tmp_path):
    source = FolderSource(folder, need_captions=True)
    with only_writer(tmp_path / "shards.partial"):
        (tmp_path / "shards.partial" / "00000.tar").write_bytes(b"half")
        with pytest.raises(ValueError, match=rf"shards.partial is being written by process {os.getpid()}"):
            pack(source, tmp_path / "shards", size=5)
        assert (tmp_path / "shards.partial" / "00000.tar").read_bytes() == b"half"


def test_shards_are_on_the_disk_before_they_appear(folder, tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def noting(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, (tmp_path / "shards").exists()))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", noting)
    pack(FolderSource(folder, need_captions=True), tmp_path / "shards", size=5)
    tars, (beside, early), parent = synced[:2], synced[2], synced[3]
    assert tars == [("00000.tar", False), ("00001.tar", False)]
    assert beside.endswith(".partial") and not early and parent == (tmp_path.name, True)


def test_the_command(folder, tmp_path, capsys):
    (folder / "broken.png").write_bytes(b"rubbish")
    run(
        [
            "pack",
            str(folder),
            "--out",
            str(tmp_path / "shards"),
            "--size",
            "5",
            "--no_captions",
            "--max_rejected",
            "0.2",
        ]
    )
    assert "9 pictures in 2 shards" in capsys.readouterr().out
    assert json.loads((tmp_path / "shards-rejects.json").read_text())["rejected"] == 1
    again = ShardsSource(str(tmp_path / "shards"), need_captions=False)
    assert {number_of(again.image(i)) for i in range(9)} == set(range(9))
    command = [sys.executable, "-m", "data.shards", "pack", str(folder), "--out", str(tmp_path / "shards")]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "exists already" in done.stderr


def test_the_folder_to_make_may_end_with_a_slash(folder, tmp_path):
    run(["pack", str(folder), "--out", f"{tmp_path}/shards/"])
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["00000.tar"]
    assert (tmp_path / "shards-rejects.json").is_file()
