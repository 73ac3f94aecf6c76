"""Each layout of captions read as a person would read it; each mistake named with file and line."""

import json
import os
from pathlib import Path

import pytest

from data.captions import read_captions
from data.rejects import Reason
from tests.data.caption_files import PICTURES, coco, read, refused, write

CSV = "file_name,text\na.png,a cat\nb.png,a dog\nsub/c.JPG,a cow\n"
EXPECTED = {"a.png": ("a cat",), "b.png": ("a dog",), "sub/c.JPG": ("a cow",)}


@pytest.mark.parametrize("name", ["captions.csv", "metadata.csv"])
def test_csv(tmp_path: Path, name: str) -> None:
    captions = read(tmp_path, {name: CSV})
    assert captions.by_picture == EXPECTED
    assert (captions.origin, captions.splits, captions.rejects, captions.doubled) == (name, {}, (), 0)


def test_tsv(tmp_path: Path) -> None:
    captions = read(tmp_path, {"captions.tsv": 'file_name\ttext\na.png\ta cat, and "so" on\nb.png\t"a\tdog"\n'})
    assert captions.by_picture == {"a.png": ('a cat, and "so" on',), "b.png": ("a\tdog",)}


@pytest.mark.parametrize("name", ["captions.jsonl", "metadata.jsonl"])
def test_jsonl_with_one_caption_or_a_list(tmp_path: Path, name: str) -> None:
    lines = [
        {"file_name": "a.png", "text": "a cat", "split": "train"},
        {"file_name": "b.png", "text": ["a dog", "one\u2028dog"], "split": None},
    ]
    content = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n"
    captions = read(tmp_path, {name: content})
    assert captions.by_picture == {"a.png": ("a cat",), "b.png": ("a dog", "one\u2028dog")}
    assert captions.splits == {"a.png": "train"}


def test_quotes_commas_line_ends_byte_order_mark_and_other_columns(tmp_path: Path) -> None:
    table = 'licence,file_name,text\r\nCC0,a.png,"a ""big"" cat, red"\r\n\r\nMIT,b.png,"two\nlines"\r\n'
    captions = read(tmp_path, {"captions.csv": b"\xef\xbb\xbf" + table.encode()})
    assert captions.by_picture == {"a.png": ('a "big" cat, red',), "b.png": ("two\nlines",)}
    bom_first = read(tmp_path, {"captions.csv": b"\xef\xbb\xbf" + CSV.encode()})
    assert bom_first.by_picture == EXPECTED


def test_what_spreadsheets_leave_behind(tmp_path: Path) -> None:
    """Columns and rows without a word in them."""
    captions = read(tmp_path, {"captions.csv": "file_name,text,,\na.png,a cat,,\n,,,\nb.png,a dog,,5\n  ,,,\n"})
    assert captions.by_picture == {"a.png": ("a cat",), "b.png": ("a dog",)}
    captions = read(tmp_path, {"captions.csv": ",file_name,text\n0,a.png,a cat\n"})
    assert captions.by_picture == {"a.png": ("a cat",)}


@pytest.mark.parametrize("columns", ["file_name,text", "file,caption", "image,text", "Path, Caption", "filename,text"])
def test_names_of_columns(tmp_path: Path, columns: str) -> None:
    assert read(tmp_path, {"captions.csv": f"{columns}\na.png,a cat\n"}).by_picture == {"a.png": ("a cat",)}


def test_documented_columns_win_and_others_must_be_alone(tmp_path: Path) -> None:
    table = "image,file_name,caption,text\nx,a.png,no,yes\n"
    assert read(tmp_path, {"captions.csv": table}).by_picture == {"a.png": ("yes",)}
    message = r"captions\.csv line 2: columns file, image could each be file_name"
    refused(tmp_path, {"captions.csv": "image,file,text\na.png,b.png,yes\n"}, message)


def test_several_rows_a_picture_in_order_and_doubles_counted(tmp_path: Path) -> None:
    rows = ["a.png,one", "b.png,x", "a.png,two", "a.png, one ", "./a.png,three", "b.png,x"]
    captions = read(tmp_path, {"captions.csv": "\n".join(["file_name,text", *rows])})
    assert captions.by_picture == {"a.png": ("one", "two", "three"), "b.png": ("x",)}
    assert captions.doubled == 2


def test_an_empty_caption_is_none(tmp_path: Path) -> None:
    captions = read(tmp_path, {"captions.csv": "file_name,text\na.png,\nb.png,  \nb.png,dog\nsub/c.JPG,cow\n"})
    assert captions.by_picture == {"a.png": (), "b.png": ("dog",), "sub/c.JPG": ("cow",)}
    captions = read(tmp_path, {"captions.csv": "", "metadata.jsonl": ""} | {"captions.csv": CSV})
    assert captions.by_picture == EXPECTED
    (tmp_path / "captions.csv").unlink()
    captions = read(tmp_path, {"captions.jsonl": '{"file_name": "a.png", "text": null}\n'})
    assert captions.by_picture == {"a.png": ()}


@pytest.mark.parametrize("text", ["\u200b", "\u2060\ufeff", "\u200d", "\x01\x02", "\u00ad \u200c"])
def test_a_caption_of_which_nothing_is_seen_is_none(tmp_path: Path, text: str) -> None:
    captions = read(tmp_path, {"captions.csv": f"file_name,text\na.png,{text}\nb.png,{text}dog\n"})
    assert captions.by_picture == {"a.png": (), "b.png": (f"{text}dog",)}
    captions = read(tmp_path / "texts", {"a.txt": text})
    assert captions.by_picture == {"a.png": ()}


@pytest.mark.parametrize(
    ("word", "split"),
    [("train", "train"), ("Training", "train"), ("val", "val"), ("validation", "val"), ("valid", "val"), ("dev", "val"),
     ("TEST", "test"), (" test ", "test"), ("", None)],
)  # fmt: skip
def test_split_column(tmp_path: Path, word: str, split: str | None) -> None:
    captions = read(tmp_path, {"captions.csv": f"file_name,text,split\na.png,a cat,{word}\n"})
    assert captions.splits == ({} if split is None else {"a.png": split})


def test_bad_splits(tmp_path: Path) -> None:
    table = "file_name,text,split\na.png,a cat,train\nb.png,dog,holdout\n"
    refused(tmp_path, {"captions.csv": table}, r"captions\.csv line 3: split is 'holdout', expected one of train, ")
    table = "file_name,text,split\na.png,a cat,train\na.png,a tom,\na.png,a pet,val\n"
    message = r"a\.png is put in several splits: train \(captions\.csv line 2\), val \(captions\.csv line 4\)"
    refused(tmp_path, {"captions.csv": table}, message)


def test_order_of_preference(tmp_path: Path) -> None:
    def table(text: str) -> str:
        return f"file_name,text\na.png,{text}\n"

    files = {
        "annotations/captions_train2017.json": coco([(1, "a.png")], [(1, "coco")]),
        "a.txt": "txt",
        "metadata.jsonl": '{"file_name": "a.png", "text": "metadata.jsonl"}',
        "metadata.csv": table("metadata.csv"),
        "captions.jsonl": '{"file_name": "a.png", "text": "captions.jsonl"}',
        "captions.tsv": table("captions.tsv").replace(",", "\t"),
        "captions.csv": table("captions.csv"),
    }
    names = list(files)
    for best in reversed(range(len(names))):
        captions = read(tmp_path, {name: files[name] for name in names[: best + 1]})
        assert captions.by_picture == {"a.png": ("coco" if best == 0 else "txt" if best == 1 else names[best],)}
    captions = read(tmp_path, files)
    assert captions.notes[-1] == "metadata.jsonl is not read, captions.csv comes first"
    assert len(captions.notes) == 4


def test_one_table_in_each_split_folder(tmp_path: Path) -> None:
    files = {
        "train/metadata.csv": "file_name,text\n1.png,one\nsub/2.png,two\n",
        "validation/metadata.jsonl": '{"file_name": "1.png", "text": "val one"}\n',
        "extra/metadata.csv": "file_name,text\n1.png,not a split\n",
    }
    pictures = ["extra/1.png", "train/1.png", "train/sub/2.png", "validation/1.png"]
    captions = read(tmp_path, files, pictures=pictures)
    assert captions.by_picture == {
        "train/1.png": ("one",),
        "train/sub/2.png": ("two",),
        "validation/1.png": ("val one",),
    }
    assert captions.origin == "train/metadata.csv and validation/metadata.jsonl"


def test_names_that_leave_the_folder(tmp_path: Path) -> None:
    rows = ["a.png,fine", "/etc/x.png,no", "../b.png,no", "sub/../../b.png,no", r"C:\b.png,no", r"\b.png,no"]
    captions = read(tmp_path, {"captions.csv": "\n".join(["file_name,text", *rows])})
    assert captions.by_picture == {"a.png": ("fine",)}
    assert [reject.reason for reject in captions.rejects] == [Reason.OUTSIDE] * 5
    assert captions.rejects[0] == (
        "/etc/x.png",
        Reason.OUTSIDE,
        "captions.csv line 3; names are relative to the folder",
    )
    nested = {"train/metadata.csv": "file_name,text\n1.png,one\n../a.png,no\n/a.png,no\n"}
    (tmp_path / "captions.csv").unlink()
    captions = read(tmp_path, nested, pictures=["a.png", "train/1.png"])
    assert [reject.reason for reject in captions.rejects] == [Reason.OUTSIDE] * 2


def test_other_spellings_of_a_path(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    rows = [f"{composed},one", r"sub\c.JPG,two", "./b.png,three"]
    captions = read(tmp_path, {"captions.csv": "\n".join(["file_name,text", *rows])}, pictures=[decomposed, *PICTURES])
    assert captions.by_picture == {decomposed: ("one",), "sub/c.JPG": ("two",), "b.png": ("three",)}


def test_names_in_two_unicode_forms_are_two_names(tmp_path: Path) -> None:
    composed, decomposed, mixed = "\u00e9e\u0301.png", "e\u0301e\u0301.png", "e\u0301\u00e9.png"
    for pictures in ([composed, decomposed], [decomposed, composed]):
        table = f"file_name,text\n{composed},one\n{decomposed},two\n{mixed},which?\n"
        captions = read(tmp_path, {"captions.csv": table}, pictures=pictures)
        assert captions.by_picture == {composed: ("one",), decomposed: ("two",)}
        assert [(reject.file, reject.reason) for reject in captions.rejects] == [(mixed, Reason.NO_PICTURE)]

        texts = {composed.replace(".png", ".txt"): "one"}
        assert read(tmp_path, texts, pictures=pictures).by_picture == {composed: ("one",)}
        texts[decomposed.replace(".png", ".txt")] = "two"
        assert read(tmp_path, texts, pictures=pictures).by_picture == {composed: ("one",), decomposed: ("two",)}
        assert read(tmp_path, texts, pictures=[composed]).by_picture == {composed: ("one",)}


def test_a_colon_makes_no_path(tmp_path: Path) -> None:
    captions = read(tmp_path, {"captions.csv": "file_name,text\na:b.png,ratio\n"}, pictures=["a:b.png"])
    assert (captions.by_picture, captions.rejects) == ({"a:b.png": ("ratio",)}, ())


def test_a_missing_picture_is_rejected_once(tmp_path: Path) -> None:
    rows = ["a.png,one", "gone.png,1", "gone.png,2", "scan.tif,3"]
    captions = read(tmp_path, {"captions.csv": "\n".join(["file_name,text", *rows])})
    assert captions.rejects[0] == ("gone.png", Reason.NO_PICTURE, "captions.csv line 3")
    assert captions.rejects[1].file == "scan.tif"
    assert "line 5; the name of a picture ends in .png, .jpg" in captions.rejects[1].detail
    assert len(captions.rejects) == 2


def test_when_no_name_is_a_picture(tmp_path: Path) -> None:
    table = "file_name,text\nx,one\ny,two\n"
    message = rf"none of the 2 files that captions\.csv names.*{tmp_path}/x \(captions\.csv line 2\).*is there: a\.png"
    refused(tmp_path, {"captions.csv": table}, message)
    refused(tmp_path, {"captions.csv": table}, message, need_text=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.csv", "", r"captions\.csv: no rows; expected columns file_name and text"),
        ("captions.csv", "file_name,text\n", r"captions\.csv: no rows"),
        ("captions.jsonl", "\n", r"captions\.jsonl: no rows"),
        ("captions.csv", "file_name;text\na.png;x\n", r"captions\.csv line 1: one column 'file_name;text'.* by commas"),
        ("captions.csv", "file_name\ttext\na.png\tx\n", r"line 1: one column .* of a \.csv are parted by commas"),
        ("captions.tsv", "file_name,text\na.png,x\n", r"captions\.tsv line 1: one column 'file_name,text'.* by tabs"),
        ("captions.csv", "file\na.png\n", r"line 2: no column text; the columns are 'file'"),
        (
            "captions.csv",
            "a.png,a cat\nb.png,a dog\n",
            r"line 2: no column file_name; the columns are 'a\.png', 'a cat'",
        ),
        ("captions.csv", "file_name,words\na.png,x\n", r"line 2: no column text; the columns are 'file_name', 'words'"),
        ("captions.csv", "text,file_name,text\nx,a.png,y\n", r"captions\.csv line 1: two columns of one name"),
        ("captions.csv", "file_name,text\na.png,x\nb.png,y,z\n", r"line 3: 3 fields, but the header has 2 .*comma"),
        ("captions.csv", "file_name,text\na.png,x\nb.png\n", r"captions\.csv line 3: 1 fields, but the header has 2"),
        ("captions.tsv", "file_name\ttext\na.png\tx\ty\n", r"captions\.tsv line 2: 3 fields.* tab in it needs"),
        ("captions.csv", 'file_name,text\na.png,"open\nb.png,y\n', r"captions\.csv line 3: unexpected end of data"),
        ("captions.csv", 'file_name,text\na.png,"x" y\n', r"captions\.csv line 2: ',' expected after '\"'"),
        ("captions.csv", "file_name,text\n ,x\n", r"line 2: file_name is ' ', expected the name of a picture"),
        ("captions.csv", b"file_name,text\na.png,x\nb.png,caf\xe9\n", r"line 3: not UTF-8 \(byte 0xe9\)"),
        ("captions.csv", CSV.encode("utf-16"), r"captions\.csv line 1: not UTF-8 \(byte 0xff\)"),
        ("captions.jsonl", b'{"file_name": "a.png"}\n{"\xff', r"captions\.jsonl line 2: not UTF-8"),
        ("captions.jsonl", '{"file_name": "a.png", "text": "x"}\n{"file_name"\n', r"captions\.jsonl line 2: not JSON"),
        ("captions.jsonl", "[" * 100_000, r"captions\.jsonl line 1: not JSON \(maximum recursion"),
        ("captions.jsonl", '["a.png", "x"]\n', r"line 1: expected an object with file_name and text, got .\[\"a"),
        ("captions.jsonl", '{"file_name": "a.png", "text": 3}\n', r"line 1: text is 3, expected a string"),
        ("captions.jsonl", '{"file_name": "a.png", "text": ["x", {}]}\n', r"line 1: text is {}, expected a string"),
        ("captions.jsonl", '{"file_name": 3, "text": "x"}\n', r"line 1: file_name is 3"),
        ("captions.jsonl", '{"file_name": "a.png", "text": "x", "split": 1}\n', r"line 1: split is 1"),
        ("captions.jsonl", '{"file_name": "a.png", "text": "\\ud800"}\n', r"line 1: text .* half of a surrogate pair"),
        ("captions.jsonl", '{"file_name": "a.png"}\n', r"captions\.jsonl line 1: no column text"),
    ],
)
def test_malformed_tables(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    refused(tmp_path, {name: content}, message)


def test_a_table_without_texts_serves_where_none_are_needed(tmp_path: Path) -> None:
    captions = read(tmp_path, {"metadata.csv": "file_name,split\na.png,val\nb.png,train\n"}, need_text=False)
    assert captions.by_picture == {"a.png": (), "b.png": ()}
    assert captions.splits == {"a.png": "val", "b.png": "train"}


def test_texts_beside_the_pictures(tmp_path: Path) -> None:
    files = {
        "a.txt": b"\xef\xbb\xbfa cat\n\n  one cat \na cat\n",
        "sub/c.TXT": "a cow",
        "b.txt": "",
        "orphan.txt": "no picture",
        "README.txt": "how this was made",
    }
    captions = read(tmp_path, files)
    assert captions.by_picture == {"a.png": ("a cat", "one cat"), "b.png": (), "sub/c.JPG": ("a cow",)}
    assert captions.doubled == 1
    assert captions.rejects == (("orphan.txt", Reason.NO_PICTURE, "no picture of that name beside it"),)


def test_a_text_that_cannot_be_read_costs_its_picture(tmp_path: Path) -> None:
    captions = read(tmp_path, {"a.txt": b"ok\ncaf\xe9\n", "b.txt": "a dog"})
    assert captions.by_picture == {"b.png": ("a dog",)}
    (reject,) = captions.rejects
    assert (reject.file, reject.reason) == ("a.png", Reason.BAD_CAPTION)
    assert f"{tmp_path}/a.txt line 2: not UTF-8" in reject.detail


def test_a_text_that_is_no_file_costs_its_picture(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "c.txt")
    names = {"a.txt", "c.txt"} | write(tmp_path, {"b.txt": "a dog"})
    captions = read_captions(tmp_path, ["a.png", "b.png", "c.png"], names, need_text=True)
    assert captions is not None and captions.by_picture == {"b.png": ("a dog",)}
    assert captions.rejects == (
        ("a.png", Reason.BAD_CAPTION, f"{tmp_path}/a.txt: No such file or directory"),
        ("c.png", Reason.BAD_CAPTION, f"{tmp_path}/c.txt: not a regular file"),
    )


def test_a_table_that_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "captions.csv")
    with pytest.raises(ValueError, match=r"captions\.csv: not a regular file"):
        read_captions(tmp_path, PICTURES, {"captions.csv"}, need_text=True)


def test_of_two_texts_the_plain_suffix_wins(tmp_path: Path) -> None:
    captions = read(tmp_path, {"a.TXT": "large", "a.txt": "small", "a.Txt": "both", "b.TXT": "alone"})
    assert captions.by_picture == {"a.png": ("small",), "b.png": ("alone",)}
    assert captions.rejects == (
        ("a.TXT", Reason.NO_PICTURE, "a.txt comes first"),
        ("a.Txt", Reason.NO_PICTURE, "a.txt comes first"),
    )


def test_only_line_ends_part_captions(tmp_path: Path) -> None:
    captions = read(tmp_path, {"a.txt": "one\u2028line\x0bof\x85text\r\ntwo\rthree\nfour"})
    assert captions.by_picture == {"a.png": ("one\u2028line\x0bof\x85text", "two", "three", "four")}


def test_texts_elsewhere_are_no_layout(tmp_path: Path) -> None:
    others = write(tmp_path, {"notes.txt": "x", "sub/a.txt": "of no picture in sub", "table.csv": CSV})
    assert read_captions(tmp_path, PICTURES, others, need_text=True) is None
