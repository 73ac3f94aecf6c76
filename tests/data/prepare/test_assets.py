"""The pictures of tests/assets/emoji: a dozen real ones, small, and free to be distributed."""

import csv
from pathlib import Path

import pytest

from data.folder import FolderSource

ASSETS = Path(__file__).parents[2] / "assets" / "emoji"


@pytest.fixture
def source():
    return FolderSource(ASSETS, need_captions=True, max_rejected=0.0)


def test_a_dozen_small_pictures_with_captions(source):
    assert len(source) == 12
    assert all(source.image(index).size == (64, 64) for index in range(12))
    assert all(len(source.captions(index)) == 3 for index in range(12))
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 60_000


def test_every_split_is_there(source):
    assert {source.split(index) for index in range(12)} == {"train", "val", "test"}


def test_all_are_mit_licensed_and_notice_says_whose():
    with (ASSETS / "captions.csv").open(newline="") as opened:
        assert {row["licence"] for row in csv.DictReader(opened)} == {"MIT"}
    notice = (ASSETS.parents[2] / "NOTICE").read_text()
    assert "tests/assets/emoji/" in notice
    assert "Copyright (c) Microsoft Corporation, MIT License" in notice
