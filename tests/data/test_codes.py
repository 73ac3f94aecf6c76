"""Codes on disk: the round trip, what is refused, and that nothing half-written stays."""

import json
import pickle

import numpy as np
import pytest
import torch

from data.codes import CodesSource, CodesWriter
from data.split import fingerprint


def codes_of(n: int, grid: tuple[int, int] = (3, 4), codebook_size: int = 65_536) -> torch.Tensor:
    return torch.randint(codebook_size, (n, *grid), generator=torch.Generator().manual_seed(n))


def add(writer: CodesWriter, names: str, indices: torch.Tensor) -> None:
    writer.add(list(names), [(f"a {c}", "zwei Wörter\n") for c in names], [None] * len(names), indices)


def write(folder, n: int = 5):
    with CodesWriter(folder, "abc", 65_536, (3, 4)) as writer:
        add(writer, "vwxyz"[:n], codes_of(n))
    return folder


def test_round_trip(tmp_path):
    indices = codes_of(7)
    indices[0, 0, 0], indices[0, 0, 1] = 0, 65_535
    with CodesWriter(tmp_path / "deep" / "codes", "abc", 65_536, (3, 4)) as writer:
        add(writer, "ab", indices[:2])
        add(writer, "", indices[:0])
        writer.add(["ç/d.png", "e", "f"], [("x",), (), ("y", "z")], ["train", "val", "test"], indices[2:5])
        add(writer, "gh", indices[5:].to(torch.int32))
    source = CodesSource(tmp_path / "deep" / "codes")
    assert (len(source), source.fingerprint, source.codebook_size, source.grid_size) == (7, "abc", 65_536, (3, 4))
    assert torch.equal(torch.stack([source.codes(i) for i in range(7)]), indices)
    assert source.codes(0).dtype == torch.int64
    assert [source.key(i) for i in range(7)] == ["a", "b", "ç/d.png", "e", "f", "g", "h"]
    assert [source.captions(i) for i in (0, 2, 3, 4)] == [("a a", "zwei Wörter\n"), ("x",), (), ("y", "z")]
    assert [source.split(i) for i in range(5)] == [None, None, "train", "val", "test"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["codes"]
    assert np.load(tmp_path / "deep" / "codes" / "codes.npy").dtype == np.uint16


def test_the_fingerprint_of_the_data_names_the_codes_and_the_image_tokenizer_too(tmp_path):
    def made(folder: str, tokenizer: str = "abc", caption: str = "one", code: int = 1) -> str:
        with CodesWriter(tmp_path / folder, tokenizer, 10, (1, 1)) as writer:
            writer.add(["a"], [(caption,)], ["val"], torch.full((1, 1, 1), code))
        return fingerprint(CodesSource(tmp_path / folder))

    assert made("first") == made("elsewhere")
    assert len({made("a"), made("b", tokenizer="abd"), made("c", caption="two"), made("d", code=2)}) == 4


def test_what_is_read_is_a_copy(tmp_path):
    source = CodesSource(write(tmp_path / "codes"))
    source.codes(0).zero_()
    assert torch.equal(source.codes(0), codes_of(5)[0])


def test_pickling_sends_the_path_and_not_the_content(tmp_path):
    source = CodesSource(write(tmp_path / "codes"))
    sent = pickle.dumps(source)
    assert len(sent) < 500
    assert torch.equal(pickle.loads(sent).codes(4), source.codes(4))


def test_many_rows_fit_the_header(tmp_path):
    with CodesWriter(tmp_path / "codes", "abc", 9, (1, 1)) as writer:
        for start in range(0, 12_000, 4000):
            names = [str(i) for i in range(start, start + 4000)]
            writer.add(names, [("c",)] * 4000, [None] * 4000, torch.full((4000, 1, 1), start // 4000))
    source = CodesSource(tmp_path / "codes")
    assert [source.codes(i).item() for i in (0, 3999, 4000, 11_999)] == [0, 0, 1, 2]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), CodesWriter(tmp_path / "codes", "abc", 9, (1, 1)) as writer:
        writer.add(["a"], [()], [None], torch.zeros(1, 1, 1))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_does_not_hinder_the_next(tmp_path):
    killed = CodesWriter(tmp_path / "codes", "abc", 65_536, (3, 4))
    add(killed, "ab", codes_of(2))
    assert not (tmp_path / "codes").exists()
    assert len(CodesSource(write(tmp_path / "codes"))) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


def test_an_empty_writer_is_an_error_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(ValueError, match="at least one picture"),
        CodesWriter(tmp_path / "codes", "abc", 9, (1, 1)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept(tmp_path):
    write(tmp_path / "codes")
    with pytest.raises(ValueError, match="exists already"):
        CodesWriter(tmp_path / "codes", "other", 9, (1, 1))
    assert CodesSource(tmp_path / "codes").fingerprint == "abc"


@pytest.mark.parametrize(
    ("codebook_size", "grid", "message"),
    [
        (65_537, (3, 4), "codebook_size is 65537, expected 1 to 65536"),
        (0, (3, 4), "codebook_size is 0"),
        (9, (0, 4), r"grid_size is \(0, 4\)"),
    ],
)
def test_writer_arguments(tmp_path, codebook_size, grid, message):
    with pytest.raises(ValueError, match=message):
        CodesWriter(tmp_path / "codes", "abc", codebook_size, grid)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "indices", "message"),
    [
        ("ab", torch.zeros(3, 1, 2), r"got indices \(3, 1, 2\) for 2 keys"),
        ("ab", torch.zeros(2, 2, 1), r"expected indices \(2, 1, 2\)"),
        ("ab", torch.full((2, 1, 2), 9), "from 9 to 9, expected 0 to 8"),
        ("ab", torch.full((2, 1, 2), -1), "from -1 to -1, expected 0 to 8"),
        ("aa", torch.zeros(2, 1, 2), "'a' comes twice"),
        ("k", torch.zeros(1, 1, 2), "'k' comes twice"),
    ],
)
def test_bad_batches(tmp_path, names, indices, message):
    with pytest.raises(ValueError, match=message), CodesWriter(tmp_path / "codes", "abc", 9, (1, 2)) as writer:
        add(writer, "k", torch.zeros(1, 1, 2))
        add(writer, names, indices)
    assert list(tmp_path.iterdir()) == []


def test_captions_must_be_as_many_as_keys(tmp_path):
    with pytest.raises(ValueError, match="2 keys, 1 captions"), CodesWriter(tmp_path / "c", "abc", 9, (1, 1)) as writer:
        writer.add(["a", "b"], [()], [None, None], torch.zeros(2, 1, 1))


def manifest_with(folder, **parts) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def drop_last_row(folder) -> None:
    path = folder / "captions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def cut_codes(folder) -> None:
    path = folder / "codes.npy"
    path.write_bytes(path.read_bytes()[:-3])


def row_with(folder, **parts) -> None:
    path = folder / "captions.jsonl"
    rows = path.read_text().splitlines()
    rows[1] = json.dumps(json.loads(rows[1]) | parts)
    path.write_text("\n".join(rows))


BREAK = [
    (lambda folder: (folder / "codes.npy").unlink(), "codes.npy is missing"),
    (lambda folder: (folder / "captions.jsonl").unlink(), "captions.jsonl is missing"),
    (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is not JSON"),
    (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json has no 'fingerprint'"),
    (lambda folder: manifest_with(folder, codebook_size="9"), "manifest.json has no 'codebook_size' of type int"),
    (lambda folder: manifest_with(folder, count=6), r"codes.npy holds uint16 \(5, 3, 4\), but manifest.json says"),
    (lambda folder: manifest_with(folder, grid_size=[4, 3]), r"says uint16 \(5, 4, 3\)"),
    (drop_last_row, "captions.jsonl has 4 rows, but manifest.json says 5"),
    (lambda folder: (folder / "captions.jsonl").write_text('{"key": "a"}\n'), "captions.jsonl line 1: expected key"),
    (lambda folder: (folder / "captions.jsonl").write_text("no\n"), "captions.jsonl line 1: expected key"),
    (lambda folder: (folder / "captions.jsonl").write_bytes(b'{"key": "\xff'), "captions.jsonl line 1: expected key"),
    (lambda folder: (folder / "manifest.json").write_bytes(b"\xff"), "manifest.json is not JSON"),
    (lambda folder: row_with(folder, key=3), "captions.jsonl line 2: .*key is 3"),
    (lambda folder: row_with(folder, captions="x y"), "captions.jsonl line 2: .*captions is 'x y', no list of strings"),
    (lambda folder: row_with(folder, captions=["x", None]), "captions.jsonl line 2: .*no list of strings"),
    (lambda folder: row_with(folder, split="dev"), "captions.jsonl line 2: .*split is 'dev'"),
    (cut_codes, "codes.npy cannot be read"),
    (lambda folder: (folder / "codes.npy").write_bytes(b""), "codes.npy cannot be read"),
    (lambda folder: np.save(folder / "codes.npy", codes_of(5).numpy()), "codes.npy holds int64"),
    (lambda folder: np.save(folder / "codes.npy", np.array([{}]), allow_pickle=True), "codes.npy cannot be read"),
]


@pytest.mark.parametrize(("spoil", "message"), BREAK)
def test_a_spoilt_folder_is_named(tmp_path, spoil, message):
    folder = write(tmp_path / "codes")
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        CodesSource(folder)
    assert str(folder) in str(error.value)


def test_a_code_that_the_tokenizer_has_not_is_named(tmp_path):
    folder = write(tmp_path / "codes")
    codes = codes_of(5) % 9
    codes[3, 1, 2] = 9
    np.save(folder / "codes.npy", codes.numpy().astype("<u2"))
    manifest_with(folder, codebook_size=9)
    source = CodesSource(folder)
    assert torch.equal(source.codes(2), codes[2])
    with pytest.raises(ValueError, match=r"codes\.npy: the code 9 of 'y', expected 0 to 8"):
        source.codes(3)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is no folder: expected one with codes\.npy"):
        CodesSource(tmp_path / "nowhere")
