"""The indexes of shards: kept, used, and made anew where they do not hold."""

import os
import random
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from data.shards.config import ShardsConfig, ShardSet
from data.shards.index import Stamp, index_file, make_index
from data.split import fingerprint
from tests.data.shards.tars import sample, shards_of, write_tar
from tests.data.shards.test_source import contents, open_shards


def test_an_index_is_kept_and_used(tmp_path, monkeypatch):
    shards_of(tmp_path, range(20))
    first = open_shards(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.index")) == ["00000.tar.index", "00001.tar.index"]
    monkeypatch.setattr("data.shards.index.make_index", None)
    again = open_shards(tmp_path)
    assert contents(again) == contents(first) and fingerprint(again) == fingerprint(first)


@pytest.mark.parametrize(
    "how", ["changed", "touched", "damaged index", "flipped index", "flipped header", "other rules"]
)
def test_an_index_is_made_anew(tmp_path, how, monkeypatch):
    path = write_tar(tmp_path / "a.tar", [*sample(1), ("x.txt", b"alone")])
    first = open_shards(path)
    index = index_file(path, None)
    if how == "changed":
        write_tar(path, sample(2))
    elif how == "touched":
        os.utime(path, ns=(1, 1))
    elif how == "damaged index":
        index.write_bytes(index.read_bytes()[:-1])
    elif how == "flipped index":
        content = bytearray(index.read_bytes())
        content[-9] ^= 1
        index.write_bytes(content)
    elif how == "flipped header":
        content = index.read_bytes()
        assert content.count(b"a.tar: x") == 1
        index.write_bytes(content.replace(b"a.tar: x", b"a.tar: y"))
    else:
        monkeypatch.setattr("data.shards.index.VERSION", "0")
    made = []
    monkeypatch.setattr("data.shards.index.make_index", lambda shard: made.append(shard) or make_index(shard))
    source = open_shards(path)
    assert made == [path]
    assert contents(source) == [(f"{n:09d}", n, (f"thing {n}",), None) for n in ([2] if how == "changed" else [1])]
    assert (fingerprint(source) == fingerprint(first)) == (how != "changed")


def test_indexing_leaves_the_global_generator_alone(tmp_path, monkeypatch):
    """And does not go by it: seeded alike, devices would all index the same shard at the same time."""
    shards_of(tmp_path, range(30), size=1)
    orders = []
    for _ in range(2):
        order = []
        with monkeypatch.context() as context:
            context.setattr("data.shards.index.ThreadPoolExecutor", lambda: nullcontext(SimpleNamespace(map=map)))
            context.setattr(
                "data.shards.index.make_index", lambda shard, to=order: to.append(shard) or make_index(shard)
            )
            random.seed(7)
            before = random.getstate()
            open_shards(tmp_path)
        assert random.getstate() == before
        orders.append(order)
        for path in tmp_path.glob("*.index"):
            path.unlink()
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_indexes_in_a_folder_of_their_own(tmp_path, caplog):
    for name, n in (("a", 1), ("b", 2)):
        write_tar(tmp_path / name / "0.tar", sample(n))
    sets = [ShardSet(path=str(tmp_path / name)) for name in ("a", "b")]
    config = ShardsConfig(sets=sets, index=str(tmp_path / "indexes"))
    for _ in range(2):
        assert [row[1] for row in contents(open_shards(config))] == [1, 2]
    assert len(list((tmp_path / "indexes").iterdir())) == 2
    assert [path.name for path in tmp_path.glob("[ab]/*")] == ["0.tar", "0.tar"]
    (tmp_path / "file").write_text("in the way")
    nowhere = ShardsConfig(sets=sets, index=str(tmp_path / "file"))
    assert [row[1] for row in contents(open_shards(nowhere))] == [1, 2]
    assert "the indexes of 1 shards cannot be kept there" in caplog.text


def test_an_index_beside_a_shard_of_the_current_folder_is_seen(tmp_path, monkeypatch, caplog):
    shards_of(tmp_path, range(20))
    monkeypatch.chdir(tmp_path)
    open_shards("{00000..00001}.tar")
    assert len(list(tmp_path.glob("*.index"))) == 2
    assert "cannot be kept" not in caplog.text


def test_the_stamp_has_nanoseconds(tmp_path):
    path = write_tar(tmp_path / "a.tar", [])
    os.utime(path, ns=(0, 1_000_000_007))
    assert Stamp.of(path.stat()) == (10240, 1_000_000_007)
