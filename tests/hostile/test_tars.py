"""Every hostile shard is read, refused by its name, or its samples are counted with their reasons."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import inspect
from data.rejects import Reason, Rejected
from data.shards.grouping import key_and_suffix
from data.shards.index import index_file
from data.shards.source import ShardsSource
from tests.data.shards.tars import sample, write_tar
from tests.hostile.tars import SHARDS, SOUND, Shard


def opened(path: Path) -> ShardsSource:
    return ShardsSource(str(path), need_captions=True, max_rejected=0.9)


def read_all(source: ShardsSource) -> None:
    for i in range(len(source)):
        assert all(source.captions(i))
        source.key(i).encode()
        try:
            source.image(i)
        except Rejected as error:
            assert str(error)


@pytest.mark.parametrize("shard", SHARDS.values(), ids=SHARDS.keys())
def test_read_refused_or_counted(shard: Shard, tmp_path: Path):
    path = tmp_path / "given" / "00000.tar"
    path.parent.mkdir()
    path.write_bytes(shard.content)
    if isinstance(shard.outcome, str) and not isinstance(shard.outcome, Reason):
        with pytest.raises(ValueError, match=shard.outcome) as error:
            opened(path)
        assert "00000.tar" in str(error.value)
    else:
        source = opened(path)
        assert {reject.reason for reject in source.report.rejects} == ({shard.outcome} if shard.outcome else set())
        assert len(source) >= 2
        read_all(source)
    assert [each.name for each in tmp_path.iterdir()] == ["given"]
    assert {each.name for each in path.parent.iterdir()} <= {"00000.tar", "00000.tar.index"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 8 * len(SOUND) - 1), min_size=1, max_size=4), st.integers(0, len(SOUND)))
def test_flipped_bits(tmp_path: Path, places: list[int], end: int):
    damaged = bytearray(SOUND)
    for place in places:
        damaged[place // 8] ^= 1 << place % 8
    for path in tmp_path.iterdir():
        path.unlink()
    path = tmp_path / "00000.tar"
    path.write_bytes(bytes(damaged[: max(end, len(SOUND) // 2)]))
    try:
        read_all(opened(path))
    except ValueError as error:
        assert str(tmp_path) in str(error) or "00000.tar" in str(error)


@settings(max_examples=200)
@given(st.text(alphabet="ab./_", max_size=12))
def test_names_are_parted_as_the_library_parts_them(name: str):
    pattern = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)
    assert key_and_suffix(name) == (pattern.groups() if pattern else None)


def test_a_named_pipe_in_place_of_an_index(tmp_path: Path):
    shard = tmp_path / "00000.tar"
    shard.write_bytes(SOUND)
    os.mkfifo(index_file(shard, None))
    assert len(opened(shard)) >= 2
    assert index_file(shard, None).is_file()


@pytest.mark.parametrize("rotten", [b"thing \xff", b"       "])
def test_a_caption_that_rots_after_indexing_is_rejected_by_name(tmp_path: Path, rotten: bytes):
    shard = write_tar(tmp_path / "00000.tar", [*sample(3), *sample(4)])
    source, before = opened(shard), shard.stat()
    shard.write_bytes(shard.read_bytes().replace(b"thing 4", rotten))
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.captions(0) == ("thing 3",)
    with pytest.raises(Rejected, match=r"00000\.tar: 000000004.*unreadable caption") as error:
        source.captions(1)
    assert error.value.reject.reason == Reason.BAD_CAPTION
    found = inspect.run([str(shard)])["captions"]
    assert (found["captions"], found["unreadable"]) == (1, 1)


def test_a_tar_without_samples(tmp_path: Path):
    with pytest.raises(ValueError, match=r"0\.tar: there are no samples in it, so nothing to train on$"):
        opened(write_tar(tmp_path / "0.tar", []))
