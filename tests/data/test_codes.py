"""Codes on disk: the round trip, what is refused and by which name, and that nothing half-written stays."""

import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

import whole_files
from data.code_manifest import MANIFEST, RECIPE, Recipe, read_manifest
from data.code_shards import CodeShard, Row, pack
from data.codes import CodesSource, verify
from data.codes_writer import CodesWriter, write_codes
from data.split import fingerprint, split_by_key
from tests.made_codes import codes_of, write

GRID = (3, 4)
FIRST, SECOND = "000000.safetensors", "000001.safetensors"


def written(folder: Path, count: int = 5, **settings) -> Path:
    """Pictures v, w, ... in shards of two."""
    captions = [(f"a {key}", "zwei Wörter\n") for key in "vwxyz"[:count]]
    write(folder, codes_of(count), captions, list("vwxyz"[:count]), **{"rows_per_shard": 2} | settings)
    return folder


def recipe(**settings) -> Recipe:
    usual = {"fingerprint": "abc", "codebook_size": 9, "grid_size": (1, 2), "image_size": 8, "count": 3}
    return Recipe(**usual | {"rows_per_shard": 2} | settings)


# ---- the round trip


def test_round_trip(tmp_path):
    indices = codes_of(7)
    indices[0, 0, 0], indices[0, 0, 1] = 0, 65_535
    keys = ["a", "b", "ç/d.png", "e", "f\0", "\ud800", "h" * 3000]
    captions = [("a a", "zwei Wörter\n"), ("",), ("x",), (), ("y", "z"), ("\udfff \u202e \U0001f600",), ("c" * 10**6,)]
    splits = [None, None, "train", "val", "test", None, "val"]
    made = write(tmp_path / "deep" / "codes", indices, captions, keys, splits, rows_per_shard=3, fingerprint="f")
    for source in (made, CodesSource(tmp_path / "deep" / "codes")):
        assert (len(source), source.fingerprint, source.codebook_size) == (7, "f", 65_536)
        assert (source.grid_size, source.crops) == (GRID, 1)
        assert torch.equal(torch.stack([source.codes(i) for i in range(7)]), indices)
        assert source.codes(0).dtype == torch.int64
        assert [source.key(i) for i in range(7)] == keys
        assert [source.captions(i) for i in range(7)] == captions
        assert [source.split(i) for i in range(7)] == splits
    names = {FIRST, SECOND, "000002.safetensors", MANIFEST}
    assert {path.name for path in (tmp_path / "deep" / "codes").iterdir()} == names
    manifest = json.loads((tmp_path / "deep" / "codes" / MANIFEST).read_text())
    assert [shard["pictures"] for shard in manifest["shards"]] == [3, 3, 1]
    assert (manifest["captions"], manifest["bare"]) == (8, [2, "b"]), "one without, one of which nothing is seen"


def test_two_bytes_a_token(tmp_path):
    folder = written(tmp_path / "codes")
    with (folder / FIRST).open("rb") as file:
        assert load(file.read())["codes"].dtype == np.uint16


def test_crops(tmp_path):
    codes = codes_of(30).reshape(5, 6, *GRID)
    source = write(tmp_path / "codes", codes, [("c",)] * 5, rows_per_shard=2)
    assert source.crops == 6
    for index in range(5):
        assert torch.equal(torch.stack([source.codes(index, crop) for crop in range(6)]), codes[index])
    assert torch.equal(source.codes(3), codes[3, 0])


def test_what_is_read_is_a_copy(tmp_path):
    source = CodesSource(written(tmp_path / "codes"))
    source.codes(0).zero_()
    assert torch.equal(source.codes(0), codes_of(5)[0])
    with pytest.raises(ValueError, match="read-only"):
        source._shards[0].codes[0] = 0


def test_pickling_sends_the_path_and_not_the_content(tmp_path):
    source = CodesSource(written(tmp_path / "codes"))
    sent = pickle.dumps(source)
    assert len(sent) < 500
    assert torch.equal(pickle.loads(sent).codes(4), source.codes(4))


def test_the_split_needs_no_key(tmp_path, monkeypatch):
    splits = [(None, "train", "val", "test")[i % 4] for i in range(50)]
    source = write(tmp_path / "codes", codes_of(50), [("c",)] * 50, splits=splits, rows_per_shard=7)

    class Plain:
        key, split = source.key, source.split

        def __len__(self) -> int:
            return 50

    expected = [indices.tolist() for indices in split_by_key(Plain(), 0.4)]
    monkeypatch.setattr(CodeShard, "key", None)
    assert [indices.tolist() for indices in split_by_key(source, 0.4)] == expected
    assert min(map(len, expected)) > 12


def test_the_fingerprint_of_the_data_names_the_codes_and_the_image_tokenizer_too(tmp_path):
    def made(folder: str, tokenizer: str = "abc", caption: str = "one", code: int = 1) -> str:
        codes = torch.full((1, 1, 1), code)
        return fingerprint(write(tmp_path / folder, codes, [(caption,)], ["a"], ["val"], fingerprint=tokenizer))

    assert made("first") == made("elsewhere")
    assert len({made("a"), made("b", tokenizer="abd"), made("c", caption="two"), made("d", code=2)}) == 4


# ---- writing, and going on


def test_a_writer_goes_on_with_what_is_missing(tmp_path):
    """Killed after each of its steps: at last the bytes are those of a writer that was not."""
    whole = written(tmp_path / "whole")
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    manifest = read_manifest(whole)
    rows = [Row(key, (f"a {key}", "zwei Wörter\n"), None) for key in "vwxyz"]
    for number in (2, 0, 1):
        writer = CodesWriter(tmp_path / "codes", manifest.recipe)
        writer.begin()
        assert number in writer.missing()
        of = manifest.recipe.rows(number)
        writer.write(number, rows[of.start : of.stop], codes_of(5)[of.start : of.stop, None])
        assert number not in writer.missing()
        (tmp_path / "codes" / f".{FIRST}.0123.part").write_bytes(b"half")
        with pytest.raises(ValueError, match=r"codes is half-made: the encode\.py command that began it"):
            CodesSource(tmp_path / "codes")
    writer.begin()
    assert writer.missing() == []
    writer.finish()
    assert {path.name: path.read_bytes() for path in (tmp_path / "codes").iterdir()} == expected
    (tmp_path / "codes" / SECOND).unlink()
    writer.begin()
    assert writer.missing() == [1]


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprint": "abd"}, "fingerprint was abc and is abd"),
        ({"data": "other"}, "data was  and is other"),
        ({"crops": 2, "seed": 3}, "crops was 1 and is 2, seed was 0 and is 3"),
        ({"rows_per_shard": 3}, "rows_per_shard was 2 and is 3"),
    ],
)
def test_another_recipe_is_refused_by_name(tmp_path, finished, change, said):
    if finished:
        write_codes(
            tmp_path / "codes", recipe(), [Row(f"{i}", ("c",), None) for i in range(3)], torch.zeros(3, 1, 1, 2)
        )
    else:
        CodesWriter(tmp_path / "codes", recipe()).begin()
    with pytest.raises(ValueError, match=f"codes was begun with others: {said}"):
        CodesWriter(tmp_path / "codes", recipe(**change)).begin()


def test_a_folder_of_something_else_is_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already and holds no codes"):
        CodesWriter(tmp_path, recipe()).begin()
    with pytest.raises(ValueError, match=r"mine\.txt is a file"):
        CodesWriter(tmp_path / "mine.txt", recipe()).begin()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_full_disk_leaves_what_was_finished(tmp_path, monkeypatch):
    writer = CodesWriter(tmp_path / "codes", recipe())
    writer.begin()
    rows = [Row(f"{i}", ("c",), None) for i in range(3)]
    writer.write(0, rows[:2], torch.zeros(2, 1, 1, 2))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(whole_files.os, "fsync", full)
        with pytest.raises(OSError, match=f"No space left on device: '.*{SECOND}'"):
            writer.write(1, rows[2:], torch.zeros(1, 1, 1, 2))
    assert {path.name for path in writer.folder.iterdir()} == {RECIPE, FIRST}
    writer.write(1, rows[2:], torch.zeros(1, 1, 1, 2))
    assert len(writer.finish()) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codebook_size": 65_537}, "codebook_size is 65537, expected 1 to 65536"),
        ({"codebook_size": 0}, "codebook_size is 0"),
        ({"grid_size": (0, 4)}, r"grid_size is \(0, 4\)"),
        ({"count": 0}, "count=0"),
        ({"crops": 0}, "crops=0"),
        ({"seed": 2**63}, "seed=9223372036854775808"),
    ],
)
def test_recipes(settings, message):
    with pytest.raises(ValueError, match=message):
        recipe(**settings)


@pytest.mark.parametrize(
    ("number", "codes", "split", "message"),
    [
        (0, torch.zeros(1, 1, 1, 2), None, r"got codes \(1, 1, 1, 2\) for 2 rows, expected \(2, 1, 1, 2\)"),
        (1, torch.zeros(2, 1, 1, 2), None, r"for 2 rows, expected \(1, 1, 1, 2\) for 1"),
        (0, torch.zeros(2, 2, 1, 2), None, r"got codes \(2, 2, 1, 2\)"),
        (0, torch.zeros(2, 1, 2, 1), None, r"got codes \(2, 1, 2, 1\)"),
        (0, torch.full((2, 1, 1, 2), 9), None, "from 9 to 9, expected 0 to 8"),
        (0, torch.full((2, 1, 1, 2), -1), None, "from -1 to -1, expected 0 to 8"),
        (0, torch.zeros(2, 1, 1, 2), "dev", "split of '0' is 'dev', expected train, val, test or None"),
    ],
)
def test_bad_shards(tmp_path, number, codes, split, message):
    writer = CodesWriter(tmp_path / "codes", recipe())
    writer.begin()
    with pytest.raises(ValueError, match=message):
        writer.write(number, [Row(f"{i}", (), split) for i in range(2)], codes)
    assert writer.missing() == [0, 1]


def test_doubled_keys_are_named(tmp_path):
    rows = [Row(key, ("c",), None) for key in ("a", "b", "a")]
    with pytest.raises(ValueError, match=f"key 'a' comes twice, in .*{FIRST} and .*{SECOND}"):
        write_codes(tmp_path / "codes", recipe(), rows, torch.zeros(3, 1, 1, 2))


def test_finishing_refuses_a_shard_that_is_missing_of_another_set_or_damaged(tmp_path):
    writer = CodesWriter(tmp_path / "codes", recipe())
    writer.begin()
    rows = [Row(f"{i}", ("c",), None) for i in range(3)]
    writer.write(0, rows[:2], torch.zeros(2, 1, 1, 2))
    with pytest.raises(ValueError, match=f"{SECOND} is missing"):
        writer.finish()
    CodesWriter(tmp_path / "codes", recipe(seed=1)).write(1, rows[2:], torch.zeros(1, 1, 1, 2))
    with pytest.raises(ValueError, match=f"{SECOND} is of another set of codes: remove it and go on"):
        writer.finish()
    writer.write(1, rows[2:], torch.zeros(1, 1, 1, 2))
    flip(writer.folder / FIRST, "codes")
    with pytest.raises(ValueError, match=f"{FIRST} is damaged: its checksum is .*. Remove it and go on"):
        writer.finish()
    assert not (writer.folder / MANIFEST).exists()


# ---- damage


def flip(path: Path, name: str, bit: int = 1) -> None:
    """One bit of a tensor in a shard, where its content begins."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    begin, _ = json.loads(content[8 : 8 + length])[name]["data_offsets"]
    content[8 + length + begin] ^= bit
    path.write_bytes(content)


def change(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) >= 1 and len(old) == len(new)
    path.write_bytes(content.replace(old, new))


def resaved(path: Path, **tensors: np.ndarray) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])["__metadata__"]
    path.write_bytes(save(load(content) | tensors, header))


def manifest_with(folder: Path, **parts) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def shard_with(folder: Path, **parts) -> None:
    shards = json.loads((folder / MANIFEST).read_text())["shards"]
    manifest_with(folder, shards=[shards[0] | parts, *shards[1:]])


def as_long_as(path: Path, new: bytes) -> None:
    path.write_bytes(new.ljust(path.stat().st_size, b"\0"))


AT_OPENING = [
    (lambda folder: (folder / MANIFEST).unlink(), "manifest.json is missing"),
    (lambda folder: (folder / MANIFEST).write_text("{"), "manifest.json is not JSON"),
    (lambda folder: (folder / MANIFEST).write_bytes(b"\xff"), "manifest.json is not JSON"),
    (lambda folder: (folder / MANIFEST).write_text("[]"), "manifest.json holds a list"),
    (lambda folder: (folder / MANIFEST).write_text("{}"), "manifest.json is no manifest of codes: .*'kind'"),
    (lambda folder: manifest_with(folder, kind="other"), "no manifest of codes: .*kind is 'other'"),
    (lambda folder: manifest_with(folder, codebook_size="9"), "expected whole numbers .*'codebook_size': '9'"),
    (lambda folder: manifest_with(folder, fingerprint=3), "expected whole numbers and a fingerprint, got 3"),
    (lambda folder: manifest_with(folder, grid_size=[3]), "no manifest of codes"),
    (lambda folder: manifest_with(folder, bare=0), "no manifest of codes"),
    (lambda folder: manifest_with(folder, count=6), "its shards hold 5 pictures, but count is 6"),
    (lambda folder: manifest_with(folder, grid_size=[4, 3]), rf"{FIRST} holds codes \(2, 1, 3, 4\), .* \(2, 1, 4, 3\)"),
    (lambda folder: shard_with(folder, name="../x"), "names no shard"),
    (lambda folder: shard_with(folder, digest="0"), f"{FIRST} has the checksum .*, manifest.json says 0"),
    (lambda folder: shard_with(folder, size=3), "no manifest of codes"),
    (lambda folder: (folder / SECOND).unlink(), f"{SECOND} is missing"),
    (lambda folder: (folder / FIRST).write_bytes(b""), f"{FIRST} is damaged: it has 0 bytes, manifest.json says"),
    (lambda folder: os.truncate(folder / FIRST, 700), f"{FIRST} is damaged: it has 700 bytes"),
    (lambda folder: as_long_as(folder / FIRST, b""), f"{FIRST} is damaged or no shard"),
    (lambda folder: as_long_as(folder / FIRST, b"\xff" * 99), f"{FIRST} is damaged or no shard"),
    (lambda folder: change(folder / FIRST, b'"codes"', b'"kodes"'), f"{FIRST} is damaged or no shard.*it holds"),
    (lambda folder: change(folder / FIRST, b'{"shard":', b'{"shart":'), f"{FIRST} is damaged or no shard"),
    (lambda folder: change(folder / FIRST, b'\\"digest\\"', b'\\"digesT\\"'), f"{FIRST} is damaged or no shard"),
    (lambda folder: (folder / FIRST).write_bytes((folder / SECOND).read_bytes()), f"{FIRST} has the checksum"),
]


@pytest.mark.parametrize(("spoil", "message"), AT_OPENING)
def test_damage_found_at_opening_is_named(tmp_path, spoil, message):
    folder = written(tmp_path / "codes")
    assert (folder / FIRST).stat().st_size == (folder / SECOND).stat().st_size, "or that would be what is found"
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        CodesSource(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"codes": np.zeros((2, 1, 3, 4), np.int16)}, "codes is torch.int16 of 4 axes, expected uint16 of 4"),
        ({"codes": np.zeros((2, 12), np.uint16)}, "codes is torch.uint16 of 2 axes"),
        ({"hashes": np.zeros(3, np.uint64)}, "hashes has 3 entries for 2 pictures, expected 2"),
        ({"firsts": np.zeros(2, np.uint64)}, "firsts has 2 entries for 2 pictures, expected 3"),
        ({"firsts": np.array([0, 3, 99], np.uint64)}, "its pictures have another number of strings"),
        ({"bounds": np.array([0, 99], np.uint64)}, "its strings have another length than its bounds say"),
        ({"extra": np.zeros(1)}, "it holds bounds, codes, extra, "),
    ],
)
def test_tensors_that_do_not_fit_each_other(tmp_path, tensors, said):
    path = written(tmp_path / "codes") / FIRST
    resaved(path, **tensors)
    with pytest.raises(ValueError, match=f"{FIRST} is damaged or no shard of codes: {said}"):
        CodeShard(path)


@pytest.mark.parametrize("name", ["codes", "strings", "bounds", "firsts", "hashes", "splits"])
def test_a_flipped_bit_is_found_by_verifying(tmp_path, name):
    folder = written(tmp_path / "codes")
    assert verify(folder).recipe.count == 5
    flip(folder / SECOND, name)
    with pytest.raises(ValueError, match=f"1 of 3 shards: .*{SECOND} is damaged: its checksum is"):
        verify(folder)


def test_a_flipped_bit_of_the_header_is_found(tmp_path):
    folder = written(tmp_path / "codes")
    change(folder / FIRST, b'\\"bare\\": [0', b'\\"bare\\": [2')
    with pytest.raises(ValueError, match=f"{FIRST} is damaged: its checksum is"):
        verify(folder)


def test_verifying_names_all_that_is_wrong(tmp_path):
    folder = written(tmp_path / "codes")
    flip(folder / FIRST, "codes")
    (folder / SECOND).unlink()
    with pytest.raises(ValueError, match=f"2 of 3 shards: .*{FIRST} is damaged.*{SECOND} is missing.*encode again"):
        verify(folder)


def test_damaged_strings_are_named_where_they_are_read(tmp_path):
    folder = written(tmp_path / "codes")
    source = CodesSource(folder)
    change(folder / FIRST, "ö".encode(), b"\xff\xff")
    with pytest.raises(ValueError, match=rf"{FIRST} is damaged at string 2"):
        CodesSource(folder).captions(0)
    assert source.key(2) == "x"


def test_a_code_that_the_tokenizer_has_not_is_named(tmp_path):
    codes = codes_of(5) % 9
    codes[3, 1, 2] = 9
    folder = tmp_path / "codes"
    write(folder, codes, [("c",)] * 5, list("vwxyz"), rows_per_shard=2)
    manifest_with(folder, codebook_size=9)
    source = CodesSource(folder)
    assert torch.equal(source.codes(2), codes[2])
    for read in (lambda: source.codes(3), lambda: verify(folder)):
        with pytest.raises(ValueError, match=rf"{SECOND}: the code 9 of 'y', expected 0 to 8"):
            read()


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="nowhere is no folder: expected one of codes"):
        CodesSource(tmp_path / "nowhere")


def test_equal_input_gives_equal_bytes():
    rows = [Row("a", ("x", "y"), "val"), Row("b", (), None)]
    codes = np.arange(4, dtype="<u2").reshape(2, 1, 1, 2)
    assert len({pack("r", 0, rows, codes) for _ in range(20)}) == 1
    with pytest.raises(ValueError, match="for 1 rows"):
        pack("r", 0, rows[:1], codes)
