"""From paths, patterns and folders to shards."""

import os

import pytest

from data.shards.config import ShardsConfig, ShardSet
from data.shards.paths import count_names, expand, is_stream, local_shards


@pytest.fixture
def folder(tmp_path):
    for number in range(12):
        (tmp_path / f"{number:05d}.tar").touch()
    for name in ("00000.parquet", "00000_stats.json", "00000.tar.index", ".hidden.tar"):
        (tmp_path / name).touch()
    return tmp_path


def test_what_a_path_names(folder):
    every = [folder / f"{number:05d}.tar" for number in range(12)]
    assert local_shards(str(folder)) == every
    assert local_shards(f"{folder}/{{00000..00011}}.tar") == every
    assert local_shards(f"{folder}/0000{{3,1}}.tar") == [every[3], every[1]]
    assert local_shards(f"{folder}/00004.tar") == [every[4]]
    assert local_shards(f"file://{folder}/00004.tar") == [every[4]]


def test_a_name_with_braces_that_is_there_is_no_pattern(tmp_path):
    (tmp_path / "a{0,1}.tar").touch()
    assert local_shards(f"{tmp_path}/a{{0,1}}.tar") == [tmp_path / "a{0,1}.tar"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere", "nowhere: no such file"),
        ("{00010..00013}.tar", r"00012\.tar: no such file"),
        ("0000{1,1}.tar", "names a shard twice"),
        ("empty", r"empty: no \.tar files"),
        ("a.tar.gz", r"a\.tar\.gz: compressed"),
        ("{00000..99999999999}.tar", "stands for 100,000,000,000 shards, expected at most 1,000,000"),
        ("{{0..9999},{0..999}{0..999}}.tar", "stands for 1,010,000 shards"),
        ("${NOT_SET_ANYWHERE}.tar", "WDS_NOT_SET_ANYWHERE"),
    ],
)
def test_wrong_paths(folder, path, said):
    (folder / "empty").mkdir()
    (folder / "a.tar.gz").touch()
    with pytest.raises(ValueError, match=said):
        local_shards(f"{folder}/{path}")


@pytest.mark.parametrize(
    "pattern",
    ["a", "{000..099}", "{9..1..2}", "{a..e}{x,y}", "{a/{0..9},b/{00..20..5},c}", "{1}", "a,b{2,3,}", r"\{1,2\}{3,4}"],
)
def test_names_are_counted_as_they_are_expanded(pattern):
    assert count_names(pattern) == len(expand(pattern))


def test_nothing_but_files_is_opened(folder):
    os.mkfifo(folder / "00012.tar")
    for path in (folder, folder / "00012.tar", f"{folder}/{{00011..00012}}.tar"):
        with pytest.raises(ValueError, match=r"00012\.tar: not a regular file"):
            local_shards(str(path))


def test_what_only_streams():
    for path in ("pipe:cat a.tar", "http://there/{0..9}.tar", "https://x/a.tar", "gs://bucket/a.tar", "hf://d/a.tar"):
        assert is_stream(path)
    for path in ("a.tar", "/a/{0..9}.tar", "file:///a.tar", "C:/a.tar", "a:b.tar"):
        assert not is_stream(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ShardSet(path=""), "path is empty"),
        (lambda: ShardSet(path="a", weight=0), "weight=0 of a, expected a number above 0"),
        (lambda: ShardSet(path="a", weight=float("inf")), "weight=inf"),
        (lambda: ShardSet(path="a", weight=1e308), "weight=1e.308 of a, expected a number above 0, at most 1e.15"),
        (lambda: ShardsConfig(sets=[]), r"shards\.sets is empty"),
    ],
)
def test_wrong_settings(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_weights():
    def weights(*given: float | None) -> tuple[float, ...] | None:
        return ShardsConfig(sets=[ShardSet(path="a", weight=weight) for weight in given]).weights

    assert weights(None, None) is None
    assert weights(2.0, None) == (2.0, 1.0)
    assert ShardsConfig(sets="a").weights is None
