"""Folders of codes that are damaged: what is refused, when, and by which name."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load, save

from data.code_manifest import MANIFEST
from data.code_shards import CodeShard, _digest
from data.codes import CodesSource, verify
from tests.made_codes import FIRST, SECOND, codes_of, flip, write, written


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
    (lambda folder: manifest_with(folder, codebook_size="9"), "expected whole numbers, .*'codebook_size': '9'"),
    (lambda folder: manifest_with(folder, fingerprint=3), "expected whole numbers, and texts for .*'fingerprint': 3"),
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
    (lambda folder: change(folder / FIRST, b'n\\": 2', b'n\\": 3'), f"{FIRST} .* is of version 3, expected 1 or 2"),
    (lambda folder: flip(folder / FIRST, "splits"), f"{FIRST} is damaged: the checksum of its hashes and splits is"),
    (lambda folder: change(folder / FIRST, b'\\"digest\\"', b'\\"digesT\\"'), f"{FIRST} is damaged or no shard"),
    (lambda folder: (folder / FIRST).write_bytes((folder / SECOND).read_bytes()), f"{FIRST} has the checksum"),
]


@pytest.mark.parametrize(("spoil", "message"), AT_OPENING)
def test_damage_found_before_anything_is_trained_is_named(tmp_path, spoil, message):
    folder = written(tmp_path / "codes")
    assert (folder / FIRST).stat().st_size == (folder / SECOND).stat().st_size, "or that would be what is found"
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        CodesSource(folder).split_table()
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
        ({"sums": np.zeros((2, 3), np.uint32)}, r"sums is of shape \(2, 3\), expected \(2, 2\)"),
        ({"extra": np.zeros(1)}, "it holds bounds, codes, extra, "),
    ],
)
def test_tensors_that_do_not_fit_each_other(tmp_path, tensors, said):
    path = written(tmp_path / "codes") / FIRST
    resaved(path, **tensors)
    with pytest.raises(ValueError, match=f"{FIRST} is damaged or no shard of codes: {said}"):
        CodeShard(path)


@pytest.mark.parametrize("name", ["codes", "strings", "bounds", "firsts", "sums", "hashes", "splits"])
def test_a_flipped_bit_is_found_by_verifying(tmp_path, name):
    folder = written(tmp_path / "codes")
    assert verify(folder).recipe.count == 5
    flip(folder / SECOND, name)
    what = "hashes and splits" if name in ("hashes", "splits") else "content"
    with pytest.raises(ValueError, match=f"1 of 3 shards: .*{SECOND} is damaged: the checksum of its {what} is"):
        verify(folder)


def test_a_flipped_bit_of_the_header_is_found_at_opening(tmp_path):
    folder = written(tmp_path / "codes")
    change(folder / FIRST, b'\\"bare\\": [0', b'\\"bare\\": [2')
    source = CodesSource(folder)
    for read in (source.split_table, lambda: source.key(0), lambda: source.codes(1)):
        with pytest.raises(ValueError, match=f"{FIRST} is damaged: the checksum of its hashes and splits is"):
            read()


def test_a_flipped_bit_anywhere_is_found_where_it_is_read(tmp_path):
    """In each byte of a shard (of its header, each eighth): at opening, or by its picture; the other one is read."""
    folder = tmp_path / "codes"
    write(folder, codes_of(8).reshape(4, 2, 3, 4), [("one", "zwei"), ("drei",)] * 2, list("wxyz"), rows_per_shard=2)
    sound = (folder / FIRST).read_bytes()
    expected, found = [sample(CodesSource(folder), row) for row in range(4)], {}
    length = 8 + int.from_bytes(sound[:8], "little")
    for place in [*range(0, length, 8), *range(length, len(sound))]:
        damaged = bytearray(sound)
        damaged[place] ^= 1 << place % 8
        (folder / FIRST).write_bytes(damaged)
        found[place] = what_is_refused(folder, expected)
    assert set(found.values()) == {"opening", "picture 0", "picture 1", "pictures 0 and 1"}
    assert {found[place] for place in range(0, length, 8)} == {"opening"}
    begin, end = (length + each for each in json.loads(sound[8:length])["codes"]["data_offsets"])
    of_codes = [found[place] for place in range(begin, end)]
    assert of_codes == ["picture 0"] * 48 + ["picture 1"] * 48


def sample(source: CodesSource, row: int) -> tuple:
    codes = [source.codes(row, crop).tolist() for crop in range(source.crops)]
    return source.key(row), source.captions(row), source.split(row), codes


def what_is_refused(folder: Path, expected: list[tuple]) -> str:
    """Where the damage of the first of two shards of two is found; what is read must be as expected."""
    try:
        source = CodesSource(folder)
        source.split_table()
    except ValueError as error:
        assert FIRST in str(error)
        return "opening"
    refused = []
    for row in range(4):
        try:
            assert sample(source, row) == expected[row]
        except ValueError as error:
            said = f"{FIRST} is damaged at picture {row}: the checksum of its [a-z ]* is wrong. Remove the file"
            assert re.search(said, str(error))
            refused.append(str(row))
    assert refused, "damage has been read"
    return f"picture{'s' * (len(refused) > 1)} {' and '.join(refused)}"


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
    with pytest.raises(ValueError, match=rf"{FIRST} is damaged at picture 0: the checksum of its key and captions"):
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


def test_shards_without_sums_are_read_and_it_is_said(tmp_path, caplog):
    """Of version 1, which had none. What is no text is found all the same; of codes, what the tokenizer has not."""
    folder = written(tmp_path / "codes")
    expected = [sample(CodesSource(folder), row) for row in range(5)]
    assert not caplog.text
    for name in (FIRST, SECOND):
        as_version_1(folder, name)
    source = CodesSource(folder)
    assert source.split_table().splits.tolist() == [255] * 5
    assert "2 of 3 shards were written before each picture had a checksum" in caplog.text
    assert [sample(source, row) for row in range(5)] == expected
    assert verify(folder).recipe.count == 5
    change(folder / FIRST, "ö".encode(), b"\xff\xff")
    with pytest.raises(ValueError, match=f"{FIRST} is damaged at picture 0: .*utf-8"):
        CodesSource(folder).captions(0)
    with pytest.raises(ValueError, match=f"{FIRST} is damaged: the checksum of its content"):
        verify(folder)


def as_version_1(folder: Path, name: str) -> None:
    """Writes a shard anew as it was before there were sums; the manifest goes with it."""
    with safe_open(folder / name, "np") as file:
        said = json.loads(file.metadata()["shard"])
        arrays = {name: file.get_tensor(name) for name in file.offset_keys() if name != "sums"}
    said = {key: said[key] for key in ("recipe", "number", "bare")}
    said["digest"] = _digest(said, arrays)
    content = save(arrays, {"shard": json.dumps(said)})
    (folder / name).write_bytes(content)
    entries = json.loads((folder / MANIFEST).read_text())["shards"]
    for entry in entries:
        if entry["name"] == name:
            entry |= {"bytes": len(content), "digest": said["digest"]}
    manifest_with(folder, shards=entries)
