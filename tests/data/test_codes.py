"""Codes on disk: the round trip, what is refused and by which name, and that nothing half-written stays."""

import errno
import gc
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load

import whole_files
from data.code_manifest import MANIFEST, RECIPE, Recipe, read_manifest
from data.code_shards import CodeShard, Row, pack
from data.codes import CodesSource
from data.codes_writer import CodesWriter, write_codes
from data.split import fingerprint, split_by_key
from tests.made_codes import FIRST, GRID, SECOND, codes_of, flip, write, written


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
        source._shard(0).codes[0] = 0


def maps(folder) -> set[str]:
    """Shards of a folder that this process has mapped."""
    return {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line}


def test_shards_are_mapped_when_they_are_read_and_only_so_many(tmp_path, monkeypatch):
    """The system allows a process 65,530 maps."""
    monkeypatch.setattr("data.codes.OPEN_SHARDS", 2)
    write(tmp_path / "codes", codes_of(6), [("c",)] * 6, rows_per_shard=1)
    gc.collect()
    source = CodesSource(tmp_path / "codes")
    assert source.split_table().splits.tolist() == [255] * 6
    assert maps(tmp_path) == set()
    for index in (0, 1, 2, 5, 0, 3):
        assert torch.equal(source.codes(index), codes_of(6)[index])
        assert len(maps(tmp_path)) <= 2
    assert {Path(path).name for path in maps(tmp_path)} == {"000000.safetensors", "000003.safetensors"}


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


def test_shards_without_a_manifest_are_kept_and_named(tmp_path):
    rows = [Row(f"{i}", ("c",), None) for i in range(3)]
    write_codes(tmp_path, recipe(), rows, torch.zeros(3, 1, 1, 2))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"holds shards of codes \(000000.*\) but no manifest\.json.* put manifest"):
        CodesWriter(tmp_path, recipe()).begin()
    assert (tmp_path / "000000.safetensors").is_file() and not (tmp_path / "recipe.json").exists()


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
    with pytest.raises(ValueError, match=f"{FIRST} is damaged: the checksum of its content is .*. Remove it and go on"):
        writer.finish()
    assert not (writer.folder / MANIFEST).exists()


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="nowhere is no folder: expected one of codes"):
        CodesSource(tmp_path / "nowhere")


def test_equal_input_gives_equal_bytes():
    rows = [Row("a", ("x", "y"), "val"), Row("b", (), None)]
    codes = np.arange(4, dtype="<u2").reshape(2, 1, 1, 2)
    assert len({pack("r", 0, rows, codes) for _ in range(20)}) == 1
    with pytest.raises(ValueError, match="for 1 rows"):
        pack("r", 0, rows[:1], codes)
