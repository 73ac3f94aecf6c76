import csv
import dataclasses
import io
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data.prepare import photos
from data.prepare.build import BuildSettings
from data.prepare.photos import GROCERIES, MACHINE_VISION, PARQUET, SCIKIT_IMAGE, SCIKIT_LEARN, classic_caption
from data.prepare.recipes import prepare_photos


def parquet(rows):
    import pyarrow
    import pyarrow.parquet

    columns = ["dataset", "coarse_cat", "finegrained_cat", "image_data"]
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({c: [row[i] for row in rows] for i, c in enumerate(columns)}), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "sort", "label"),
    [
        ("Apple", "Royal-Gala", "Royal Gala apple"),
        ("Melon", "Galia-Melon", "Galia melon"),
        ("Melon", "Watermelon", "watermelon"),
        ("Melon", "Cantaloupe", "cantaloupe"),
        ("Orange", "Orange", "orange"),
        ("Satsumas", "Satsumas", "satsuma"),
        ("Pear", "Anjou", "Anjou pear"),
    ],
)
def test_grocery_label(kind, sort, label):
    assert photos.grocery_label(kind, sort) == label


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("mvtbdata/images/flowers5.png", "yellow tulips"),
        ("mvtbdata/images/campus/holdout/P1.png", "buildings and trees on a campus"),
        ("mvtbdata/images/mosaic/aerial-08.png", "a town from above"),
        ("mvtbdata/images/mosaic/aerial2-001.png", None),
        ("mvtbdata/images/lena.png", None),
        ("mvtbdata/images/campus/camera.txt", None),
        ("skimage/data/chelsea.png", "a tabby cat"),
        ("skimage/data/astronaut.png", None),
        ("sklearn/datasets/images/china.jpg", "a Chinese temple"),
        ("elsewhere/flowers5.png", None),
    ],
)
def test_classic_caption(name, caption):
    assert classic_caption(name) == caption


@pytest.fixture
def packages(fakes):
    jpegs = [fakes.noise(seed, (40, 48), "JPEG") for seed in range(3)]
    rows = [
        ("train", "Apple", "Royal-Gala", jpegs[0]),
        ("test", "Apple", "Royal-Gala", jpegs[0]),
        ("test", "Pear", "Anjou", jpegs[1]),
        ("val", "Pear", "Anjou", b"no picture"),
    ]
    wheels = {
        GROCERIES: {PARQUET: parquet(rows)},
        MACHINE_VISION: {
            "mvtbdata/images/flowers5.png": fakes.noise(7, (300, 200)),
            "mvtbdata/images/lena.png": fakes.noise(8, (30, 30)),
            **{f"mvtbdata/images/campus/P{n}.png": fakes.noise(n, (60, 40)) for n in range(6)},
        },
        SCIKIT_IMAGE: {"skimage/data/chelsea.png": fakes.noise(9, (20, 20))},
        SCIKIT_LEARN: {"sklearn/datasets/images/china.jpg": fakes.noise(10, (64, 32), "JPEG")},
    }
    made = [(real, fakes.wheel(real.name, files)) for real, files in wheels.items()]
    return [dataclasses.replace(real, version="1.0.0", file=fake.file, sha256=fake.sha256) for real, fake in made]


def test_prepare_photos_from_end_to_end(fakes, packages, tmp_path):
    settings = BuildSettings(out=tmp_path / "out", size=64, workers=1)
    report = prepare_photos(settings, fakes.folder, packages=packages)
    assert report["pictures"] == 2 + 1 + 6 + 1 + 1
    counts = {reason: found["count"] for reason, found in report["rejects"].items()}
    assert counts == {"twin of another": 1, "picture does not open": 1}
    with (settings.out / "captions.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    texts = {row["text"] for row in rows}
    assert {"a photo of Royal Gala apples", "a photo of an Anjou pear", "a photo of yellow tulips"} <= texts
    campus = [row for row in rows if "campus" in row["file_name"]]
    assert len({row["file_name"] for row in campus}) == 6
    assert len({row["split"] for row in campus}) == 1  # overlapping views stay together
    assert Counter(row["licence"] for row in rows) == {"MIT": 6 + 2 + 12, "public domain or CC0": 2, "CC-BY-2.0": 2}

    kept = next(settings.out.glob("groceries/royal-gala-apple-*.jpg"))
    assert kept.read_bytes() == fakes.noise(0, (40, 48), "JPEG")  # bytes as they were
    assert Image.open(settings.out / "classics/mvtb-data/flowers5.png").size == (96, 64)
    small = np.asarray(Image.open(settings.out / "classics/scikit-image/chelsea.png"))
    assert (small == np.asarray(Image.open(io.BytesIO(fakes.noise(9, (20, 20)))))).all()


def test_splits_of_many_photographs():
    splits = Counter(photos.split_of_photo(f"{number:012x}") for number in range(5000))
    assert splits["val"] / 5000 == pytest.approx(photos.VAL_SHARE, abs=0.01)
    assert splits["test"] / 5000 == pytest.approx(photos.TEST_SHARE, abs=0.02)


def test_without_pyarrow_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'pyarrow>=18'"):
        photos.read_parquet(b"")
