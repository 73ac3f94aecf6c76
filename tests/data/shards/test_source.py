"""Shards as a source: what becomes a sample, what is rejected, and when an index is made anew."""

import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import webdataset
from webdataset.tariterators import base_plus_ext

from data.rejects import Reason, Rejected
from data.shards.config import ShardsConfig, ShardSet
from data.shards.grouping import key_and_suffix
from data.shards.source import ShardsSource
from data.source import Source
from data.split import _table, encoded_key_hash, fingerprint
from tests.data.shards.tars import Member, number_of, picture, sample, shards_of, write_tar


def open_shards(shards, *, need_captions: bool = True, max_rejected: float = 1.0, **settings) -> ShardsSource:
    return ShardsSource(
        str(shards) if isinstance(shards, Path) else shards,
        need_captions=need_captions,
        max_rejected=max_rejected,
        **settings,
    )


def contents(source: Source) -> list[tuple]:
    return [
        (source.key(i), number_of(source.image(i)), source.captions(i), source.split(i)) for i in range(len(source))
    ]


def one(tmp_path: Path, members: list[Member], **settings) -> ShardsSource:
    """A shard of these members and of one good sample, so that something is left."""
    return open_shards(write_tar(tmp_path / "a.tar", [*members, *sample(99)]), **settings)


def rejects(source: ShardsSource) -> list[tuple[str, Reason]]:
    return [(each.file, each.reason) for each in source.report.rejects]


def test_shards_as_img2dataset_writes_them(tmp_path):
    source = open_shards(shards_of(tmp_path, range(25)))
    assert isinstance(source, Source)
    assert contents(source) == [(f"{n:09d}", n, (f"thing {n}",), None) for n in range(25)]
    assert source.report.rejects == () and source.report.kept == 25
    assert "3 shards" in source.report.summary()


def test_shards_of_the_librarys_writer(tmp_path):
    with webdataset.ShardWriter(str(tmp_path / "%05d.tar"), maxcount=40, verbose=0) as writer:
        for n in range(100):
            meta = {"caption": f"thing {n}", "split": "val" if n % 10 == 0 else "train"}
            writer.write({"__key__": f"some/{n:04d}", "png": picture(n), "json": meta})
    expected = [(f"some/{n:04d}", n, (f"thing {n}",), "train" if n % 10 else "val") for n in range(100)]
    assert contents(open_shards(tmp_path)) == expected
    assert len(list(tmp_path.glob("*.tar"))) == 3
    library = webdataset.WebDataset([str(path) for path in sorted(tmp_path.glob("*.tar"))], shardshuffle=False)
    assert [(each["__key__"], json.loads(each["json"])["caption"]) for each in library] == [
        (key, captions[0]) for key, _, captions, _ in expected
    ]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar(tmp_path, form):
    write_tar(tmp_path / "a.tar", [member for n in range(5) for member in sample(n)], format=form)
    assert [row[1] for row in contents(open_shards(tmp_path))] == list(range(5))


@pytest.mark.parametrize(
    "name",
    ["0.jpg", "a.b/c.d.e", "./1.TXT", "a/.hidden", "plain", ".x.y", "a/b", "x..jpg", "a b.jpg", "é/ü.ö.png", "a/b.c/"],
)
def test_keys_are_the_librarys(name):
    assert (key_and_suffix(name) or (None, None)) == base_plus_ext(name)


def test_captions_and_which_come_first(tmp_path):
    def sample_of(key: str, text: str | None = None, **meta) -> list[Member]:
        members = [(f"{key}.png", picture(ord(key))), (f"{key}.json", json.dumps(meta).encode())]
        return members + ([] if text is None else [(f"{key}.txt", text.encode())])

    path = write_tar(
        tmp_path / "a.tar",
        [
            *sample_of("a", " of the\ntext ", caption="of the json"),
            *sample_of("b", "of the text", captions=["one", "two", "one", " "], caption="of the json"),
            *sample_of("c", None, caption="of the json"),
            *sample_of("d", "\ufeffmarked", caption=None),
            ("e.JPG", picture(1, "JPEG")),
            ("e.TXT", b"capitals"),
        ],
    )
    source = open_shards(path)
    expected = {
        "a": ("of the\ntext",),
        "b": ("one", "two"),
        "c": ("of the json",),
        "d": ("marked",),
        "e": ("capitals",),
    }
    assert {source.key(i): source.captions(i) for i in range(len(source))} == expected
    assert source.report.captions_from == ".txt and captions in .json and caption in .json"


def test_without_captions(tmp_path):
    members = [
        ("none.png", picture(1)),
        ("empty.png", picture(2)), ("empty.txt", b" \n\0"),
        ("latin.png", picture(3)), ("latin.txt", b"caf\xe9"),
        ("number.png", picture(4)), ("number.json", b'{"caption": 7}'),
        ("half.png", picture(5)), ("half.json", b'{"caption": "\\ud800"}'),
        ("nothing.png", picture(6)), ("nothing.json", b'{"captions": []}'),
    ]  # fmt: skip
    source = one(tmp_path, members)
    no, bad = Reason.NO_CAPTION, Reason.BAD_CAPTION
    expected = {"none": no, "empty": no, "latin": bad, "number": bad, "half": bad, "nothing": no}
    assert dict(rejects(source)) == {f"a.tar: {key}": reason for key, reason in expected.items()}
    assert [source.key(i) for i in range(len(source))] == ["000000099"]
    free = one(tmp_path, members, need_captions=False)
    assert [free.captions(i) for i in range(len(free))] == [()] * 6 + [("thing 99",)]
    assert free.report.rejects == ()
    assert fingerprint(free) != fingerprint(source)


def info(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "000000099.png"
    return member


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([("x.txt", b"alone")], [("x", Reason.NO_PICTURE)]),
        ([("x.png", picture(1)), ("x.jpg", picture(1, "JPEG")), ("x.txt", b"two")], [("x", Reason.TWO_PICTURES)]),
        ([("x.png", picture(1)), ("x.png", picture(2)), ("x.txt", b"t")], [("x.png", Reason.DOUBLED_NAME)]),
        ([("x.png", picture(1)), ("x.PNG", picture(2)), ("x.txt", b"t")], [("x.PNG", Reason.DOUBLED_NAME)]),
        ([info("x.png", tarfile.SYMTYPE), ("x.txt", b"t")], [("x.png", Reason.NO_FILE)]),
        ([info("x.png", tarfile.LNKTYPE), ("x.txt", b"t")], [("x.png", Reason.NO_FILE)]),
        ([info("x.png", tarfile.FIFOTYPE)], [("x.png", Reason.NO_FILE)]),
        ([("../x.png", picture(1)), ("../x.txt", b"t")], [("../x.png", Reason.OUTSIDE), ("../x.txt", Reason.OUTSIDE)]),
        ([("/etc/x.png", picture(1))], [("/etc/x.png", Reason.OUTSIDE)]),
        ([("x\udcff.png", picture(1))], [("x\udcff.png", Reason.BAD_NAME)]),
        ([("x.png", b"no picture"), ("x.txt", b"t")], [("x", Reason.BROKEN)]),
        ([("x.png", b""), ("x.txt", b"t")], [("x", Reason.BROKEN)]),
        ([("x.png", picture(1)), ("x.txt", b"t"), ("x.json", b"{")], [("x", Reason.BAD_METADATA)]),
        ([("x.png", picture(1)), ("x.txt", b"t"), ("x.json", b"[1]")], [("x", Reason.BAD_METADATA)]),
        ([("x.png", picture(1)), ("x.txt", b"t"), ("x.json", b"[" * 100_000)], [("x", Reason.BAD_METADATA)]),
        ([("x.png", picture(1)), ("x.json", b'{"key": "\\ud800"}')], [("x", Reason.BAD_METADATA)]),
        ([(f"x.{s}", c) for s, c in (("png", picture(1)), ("txt", b"t"), ("json", b'{"key": "000000099"}'))],
         [("000000099", Reason.DOUBLED_KEY)]),
    ],
)  # fmt: skip
def test_rejects(tmp_path, members, expected):
    source = one(tmp_path, members)
    assert rejects(source) == [(f"a.tar: {name}", reason) for name, reason in expected]
    assert len(source) == 1


def test_what_is_passed_over(tmp_path):
    members = [
        ("README", b"about"), ("__info__/x.json", b"{"), ("__info__/x.png", b""), ("._x.png", b"mac"),
        info("folder", tarfile.DIRTYPE), ("000000099.cls", b"3"), ("000000099.mask.png", b"no picture"),
    ]  # fmt: skip
    assert contents(one(tmp_path, members)) == [("000000099", 99, ("thing 99",), None)]
    assert rejects(one(tmp_path, members)) == []


def test_members_of_a_sample_need_not_lie_together(tmp_path):
    members = [member for n in range(20) for member in sample(n)]
    path = write_tar(tmp_path / "a.tar", sorted(members, key=lambda member: member[0][::-1]))
    assert sorted(contents(open_shards(path))) == [(f"{n:09d}", n, (f"thing {n}",), None) for n in range(20)]


def test_a_key_that_comes_again_in_another_shard(tmp_path):
    write_tar(tmp_path / "0.tar", sample(1) + sample(2))
    write_tar(tmp_path / "1.tar", sample(2) + sample(3))
    source = open_shards(tmp_path)
    assert [row[1] for row in contents(source)] == [1, 2, 3]
    assert rejects(source) == [("1.tar: 000000002", Reason.DOUBLED_KEY)]


def test_copies_of_a_picture_are_rejected_whatever_their_keys(tmp_path):
    """Else one could be trained on and its copy validated on. Copies without a caption cost nothing."""
    bare = ("bare.png", picture(3))
    copies = [("copy.png", picture(1)), ("copy.json", b'{"caption": "another", "split": "val"}')]
    write_tar(tmp_path / "a" / "0.tar", [bare, *sample(1), *copies, *sample(2)])
    write_tar(tmp_path / "b" / "1.tar", [("again.png", picture(2)), ("again.txt", b"t"), *sample(3)])
    sets = [ShardSet(path=str(tmp_path / name), name=name) for name in ("a", "b")]
    source = open_shards(ShardsConfig(sets=sets))
    assert [source.key(i) for i in range(len(source))] == ["a/000000001", "a/000000002", "b/000000003"]
    assert [str(reject) for reject in source.report.rejects[1:]] == [
        "0.tar: a/copy (duplicate picture: same bytes as 0.tar: a/000000001)",
        "1.tar: b/again (duplicate picture: same bytes as 0.tar: a/000000002)",
    ]
    assert list(source.identity())[-1] == "without 2 copies"


def test_keys_of_named_sets_are_hashed_once(tmp_path, monkeypatch):
    shards_of(tmp_path, range(12))
    hashed = []
    monkeypatch.setattr("data.shards.source.encoded_key_hash", lambda key: hashed.append(key) or encoded_key_hash(key))
    open_shards(ShardsConfig(sets=[ShardSet(path=str(tmp_path), name="a")])).split_table()
    assert hashed == [f"a/{n:09d}".encode() for n in range(12)]


def test_a_sample_of_an_unknown_split_is_a_reject(tmp_path):
    source = one(tmp_path, [*sample(1, split="held out"), *sample(2), *sample(3, split=["a"] * 99)])
    assert [source.key(i) for i in range(len(source))] == ["000000002", "000000099"]
    first, second = source.report.rejects
    assert (first.file, first.reason) == ("a.tar: 000000001", Reason.BAD_METADATA)
    assert first.detail.startswith("split in its .json is 'held out', expected one of train")
    assert second.reason == Reason.BAD_METADATA and len(second.detail) < 200


def test_too_many_rejects(tmp_path):
    with pytest.raises(ValueError, match=r"1 of 2 files rejected \(50.0%.*a\.tar: x \(broken picture"):
        one(tmp_path, [("x.png", b"rubbish"), ("x.txt", b"t")], max_rejected=0.05, report=tmp_path / "rejects.json")
    assert json.loads((tmp_path / "rejects.json").read_text())["counts"] == {"broken picture": 1}


def test_damaged_shards_are_all_named(tmp_path):
    shards_of(tmp_path, range(40))
    for name, length in (("00001", 3000), ("00003", 0)):
        path = tmp_path / f"{name}.tar"
        path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"2 of 4 shards damaged.*00001\.tar \(cut off.*00003\.tar \(an empty file"):
        open_shards(tmp_path)


def test_a_picture_broken_behind_its_header_is_rejected_when_it_is_read(tmp_path):
    broken = picture(1, "JPEG", (64, 64))[:-20]
    source = one(tmp_path, [("x.jpg", broken), ("x.txt", b"t")])
    assert len(source) == 2
    with pytest.raises(Rejected) as raised:
        source.image(0)
    assert raised.value.reject[:2] == ("a.tar: x", Reason.BROKEN)
    assert pickle.loads(pickle.dumps(raised.value)).reject == raised.value.reject
    assert source.captions(0) == ("t",)


def test_all_pictures_decoded_beforehand(tmp_path, monkeypatch):
    broken = picture(1, "JPEG", (64, 64))[:-20]
    other = picture(2, "JPEG", (64, 64))[:-20]
    members = [("x.jpg", broken), ("x.txt", b"t"), *sample(1), ("y.jpg", other), ("y.txt", b"t")]
    before = fingerprint(one(tmp_path, members))
    source = one(tmp_path, members, decode=True)
    assert rejects(source) == [("a.tar: x", Reason.BROKEN), ("a.tar: y", Reason.BROKEN)]
    assert [row[1] for row in contents(source)] == [1, 99]
    assert fingerprint(source) != before
    path = str(tmp_path / "a.tar")
    assert fingerprint(open_shards(path)) == before and len(open_shards(path)) == 4, "training sees what it saw"
    monkeypatch.setattr("data.shards.index.decode_picture", None)
    assert contents(open_shards(path, decode=True)) == contents(source), "once is enough"


def test_a_shard_that_changes_under_way_is_noticed(tmp_path):
    shards_of(tmp_path, range(20))
    source = open_shards(tmp_path)
    write_tar(tmp_path / "00001.tar", sample(5) * 40)
    assert number_of(source.image(3)) == 3
    with pytest.raises(ValueError, match=r"00001\.tar: has changed since this run began"):
        source.image(15)
    (tmp_path / "00001.tar").unlink()
    with pytest.raises(ValueError, match=r"00001\.tar cannot be read: No such file"):
        source.captions(15)


def test_a_shard_written_over_in_place_while_it_is_open_is_noticed(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample(1) + sample(2))
    source = open_shards(path)
    assert number_of(source.image(0)) == 1
    other = write_tar(tmp_path / "b.tar", sample(3) + sample(4))
    assert other.stat().st_size == path.stat().st_size
    with path.open("r+b") as file:
        file.write(other.read_bytes())
    for read in (source.image, source.captions):
        with pytest.raises(ValueError, match=r"a\.tar: has changed since this run began"):
            read(0)


def test_only_a_few_shards_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr("data.shards.source.OPEN_FILES", 3)
    source = open_shards(shards_of(tmp_path, range(30), size=3))
    assert [number_of(source.image(i)) for i in [*range(30), *reversed(range(30))]] == [
        *range(30),
        *reversed(range(30)),
    ]
    assert len(source._files._open) == 3


def test_many_threads_read_at_once(tmp_path, monkeypatch):
    """With far fewer open shards than threads: none is closed under a reader."""
    monkeypatch.setattr("data.shards.source.OPEN_FILES", 2)
    source = open_shards(shards_of(tmp_path, range(120), size=3))
    wanted = [n * 37 % 120 for n in range(1200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: number_of(source.image(n)), wanted)) == wanted


def test_another_process_opens_its_own(tmp_path):
    source = open_shards(shards_of(tmp_path, range(12)))
    source.image(0)
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


def test_the_fingerprint_is_that_of_the_samples(tmp_path):
    def digest(name: str, *members: Member) -> str:
        return fingerprint(open_shards(write_tar(tmp_path / f"{name}.tar", members)))

    first = digest("a", *sample(1), *sample(2))
    assert digest("elsewhere/b", *sample(1), *sample(2)) == first
    others = [
        digest("c", *sample(2), *sample(1)),
        digest("d", *sample(1)),
        digest("e", *sample(1), *sample(2, split="val")),
        digest("f", *sample(1), *sample(2, captions=["other"])),
        digest("g", *sample(1), *sample(2, key="other")),
        digest("h", *sample(1), ("000000002.png", picture(3)), *sample(2)[1:]),
    ]
    assert len({first, *others}) == 7


def test_the_split_table_is_what_the_keys_give(tmp_path):
    for first, name in ((0, "a"), (60, "b")):
        members = [m for n in range(first, first + 60) for m in sample(n, **({"split": "test"} if n % 7 == 0 else {}))]
        write_tar(tmp_path / name / "0.tar", [*members, ("bare.png", picture(200))])
    sets = [ShardSet(path=str(tmp_path / "a")), ShardSet(path=str(tmp_path / "b"), name="b")]
    source = open_shards(ShardsConfig(sets=sets))
    table, expected = source.split_table(), _table(source)
    assert len(source) == 120 and table.hashes.tolist() == expected.hashes.tolist()
    assert table.splits.tolist() == expected.splits.tolist()


def test_several_sets(tmp_path):
    shards_of(tmp_path / "a", range(12))
    write_tar(
        tmp_path / "b" / "0.tar",
        [(f"{n:09d}.{s}", c) for n in range(12) for s, c in (("png", picture(50 + n)), ("txt", b"t"))],
    )
    paths = [str(tmp_path / name) for name in ("a", "b")]
    with pytest.raises(ValueError, match=r"/a and .*/b have the key '000000000' in common: give the sets names"):
        open_shards(ShardsConfig(sets=[ShardSet(path=path) for path in paths]))
    sets = [ShardSet(path=paths[0]), ShardSet(path=paths[1], name="b")]
    source = open_shards(ShardsConfig(sets=sets))
    assert [source.key(i) for i in (0, 11, 12, 23)] == ["000000000", "000000011", "b/000000000", "b/000000011"]
