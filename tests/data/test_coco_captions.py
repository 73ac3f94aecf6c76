"""COCO's annotations: read as they are downloaded; each mistake named."""

from pathlib import Path

import pytest

from data.rejects import Reason
from tests.data.caption_files import PICTURES, coco, read, refused

CSV = "file_name,text\na.png,a cat\nb.png,a dog\nsub/c.JPG,a cow\n"
EXPECTED = {"a.png": ("a cat",), "b.png": ("a dog",), "sub/c.JPG": ("a cow",)}


def test_coco_as_it_is_downloaded(tmp_path: Path) -> None:
    files = {
        "annotations/captions_train2017.json": coco(
            [(9, "1.jpg"), (8, "2.jpg")], [(8, "two"), (9, "one"), (9, "uno ")]
        ),
        "annotations/captions_val2017.json": coco([(9, "3.jpg"), (7, "4.jpg")], [(9, "three")]),
        "annotations/instances_val2017.json": "{}",
    }
    pictures = ["train2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg", "val2017/4.jpg"]
    captions = read(tmp_path, files, pictures=pictures)
    assert captions.by_picture == dict(zip(pictures, [("one", "uno"), ("two",), ("three",), ()], strict=True))
    assert [captions.splits[picture] for picture in pictures] == ["train", "train", "val", "val"]
    assert captions.origin == "annotations/captions_train2017.json and annotations/captions_val2017.json"


def test_coco_in_the_folder_itself_and_without_a_split(tmp_path: Path) -> None:
    captions = read(tmp_path, {"captions_mine.json": coco([(1, "a.png"), (2, "c.JPG")], [(1, "cat"), (2, "cow")])})
    assert captions.by_picture == {"a.png": ("cat",), "sub/c.JPG": ("cow",)}
    assert captions.splits == {}


def test_one_part_of_coco_is_no_split(tmp_path: Path) -> None:
    """All in "train" would leave nothing to validate on."""
    files = {"annotations/captions_train2017.json": coco([(1, "a.png"), (2, "c.JPG")], [(1, "cat"), (2, "cow")])}
    captions = read(tmp_path, files)
    assert captions.by_picture == {"a.png": ("cat",), "sub/c.JPG": ("cow",)}
    assert captions.splits == {}


def test_coco_in_other_spellings_of_a_path(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    files = {
        "captions_x.json": coco([(1, composed), (2, "./a.png"), (3, r"sub\c.JPG")], [(1, "x"), (2, "y"), (3, "z")])
    }
    captions = read(tmp_path, files, pictures=[f"sub/{decomposed}", *PICTURES])
    assert captions.by_picture == {f"sub/{decomposed}": ("x",), "a.png": ("y",), "sub/c.JPG": ("z",)}
    captions = read(tmp_path, files, pictures=[f"sub/{decomposed}", f"other/{composed}", *PICTURES])
    assert captions.by_picture == {f"other/{composed}": ("x",), "a.png": ("y",), "sub/c.JPG": ("z",)}


def test_coco_prefers_the_folder_of_its_own_name(tmp_path: Path) -> None:
    files = {"captions_val2017.json": coco([(1, "1.jpg")], [(1, "one")])}
    pictures = ["images/val2017/1.jpg", "images/train2017/1.jpg"]
    assert read(tmp_path, files, pictures=pictures).by_picture == {"images/val2017/1.jpg": ("one",)}
    message = r"images\[0\]: 1\.jpg could be any of x/1\.jpg, y/1\.jpg; keep its pictures in val2017/"
    refused(tmp_path, files, message, pictures=["x/1.jpg", "y/1.jpg"])


def test_coco_of_pictures_that_were_not_downloaded(tmp_path: Path) -> None:
    files = {
        "annotations/captions_train2017.json": coco([(1, "1.jpg")], [(1, "one")]),
        "annotations/captions_val2017.json": coco([(2, "2.jpg"), (3, "3.jpg")], [(2, "two"), (3, "three")]),
    }
    captions = read(tmp_path, files, pictures=["val2017/2.jpg"])
    assert captions.by_picture == {"val2017/2.jpg": ("two",)}
    assert captions.notes == ("annotations/captions_train2017.json is not used, none of its pictures is here",)
    (reject,) = captions.rejects
    assert (reject.file, reject.reason) == ("3.jpg", Reason.NO_PICTURE)
    assert reject.detail == "annotations/captions_val2017.json image 3"
    refused(tmp_path, files, "none of the 3 files", pictures=["elsewhere.jpg"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"captions_x\.json: not JSON"),
        ("[]", r"captions_x\.json: no list of 'images'"),
        ('{"images": [{"id": 1, "file_name": "a.png"}]}', r"no list of 'annotations'"),
        ('{"images": [{"id": 1}], "annotations": []}', r"images\[0\]: expected an object with id and file_name"),
        ('{"images": [{"id": [1], "file_name": "a.png"}], "annotations": []}', r"images\[0\]: expected an object"),
        (coco([(1, "a.png"), (1, "b.png")], []), r"images\[1\]: a second image with id 1"),
        (coco([(1, "a.png")], [(2, "x")]), r"annotations\[0\]: image_id 2 is the id of no image"),
        (coco([(1, "a.png")], [(1, None)]), r"annotations\[0\]: expected an object with image_id and caption"),
        (coco([(1, "a.png")], [(1, 5)]), r"annotations\[0\]: caption is 5, expected a string"),
        (coco([(1, "a.png")], [(1, "\ud800")]), r"annotations\[0\]: caption '\\ud800' holds half of a surrogate pair"),
        (b"\xff", r"captions_x\.json line 1: not UTF-8"),
    ],
)
def test_malformed_coco(tmp_path: Path, content: str | bytes, message: str) -> None:
    refused(tmp_path, {"captions_x.json": content}, message)
