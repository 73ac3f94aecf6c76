"""Files of torch.save, of both kinds: what torch writes is read as torch would, and what is damaged is said to be."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn as nn

from vqvae.foreign.archives import LEGACY_MAGIC, LEGACY_PROTOCOL, TorchFile, is_tensor
from vqvae.foreign.pickles import UnsafePickle

KINDS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])


@pytest.fixture
def save(tmp_path):
    def write(thing, zipped: bool = True) -> Path:
        torch.save(thing, tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
        return tmp_path / "file.pt"

    return write


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


@KINDS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(save, zipped, dtype):
    expected = (torch.arange(-12, 12).reshape(2, 3, 4) * 5).to(dtype)
    with TorchFile(save([expected], zipped)) as file:
        (record,) = file.root
        found = file.tensor(record)
    assert is_tensor(record)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


@KINDS
def test_views_parameters_and_empty_tensors(save, zipped):
    whole = torch.arange(24.0).reshape(4, 6)
    expected = {
        "whole": whole,
        "part": whole[1:3, 2:],
        "transposed": whole.T,
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(whole + 1),
        "frozen": nn.Parameter(whole + 2, requires_grad=False),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
    }
    with TorchFile(save(expected, zipped)) as file:
        assert file.root.keys() == expected.keys()
        found = {name: file.tensor(record) for name, record in file.root.items()}
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].is_contiguous()
        assert not found[name].requires_grad
    found["whole"].zero_()
    assert torch.equal(found["part"], whole[1:3, 2:])


@KINDS
def test_what_is_around_the_tensors(save, zipped):
    with TorchFile(save({"epoch": 3, "name": "a", "list": [1, (2, None)], "size": torch.Size([1, 2])}, zipped)) as file:
        assert (file.root["epoch"], file.root["name"], file.root["list"]) == (3, "a", [1, (2, None)])
        assert not any(is_tensor(value) for value in file.root.values())


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*nothing\.pt"):
        TorchFile(tmp_path / "nothing.pt")


@KINDS
@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.97])
def test_half_a_file_is_refused(save, zipped, share):
    path = save({"a": torch.arange(1000.0), "b": torch.arange(1000.0)}, zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"file\.pt: ."), TorchFile(path) as file:
        [file.tensor(record) for record in file.root.values()]


@pytest.mark.parametrize("content", [b"hello", b"\x80\x04.", pickle.dumps({"a": 1}, 2), pickle.dumps(LEGACY_MAGIC, 2)])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.pt: ."):
        TorchFile(tmp_path / "file.pt")


def test_another_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "file.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"file\.zip: a zip archive without data\.pkl, so no file of torch\.save"):
        TorchFile(tmp_path / "file.zip")


# ---- archives that torch would not write


def write_zip(path: Path, program: bytes, storage: bytes = b"", **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", storage)
        for name, content in more.items():
            archive.writestr(f"archive/{name}", content)
    return path


def write_legacy(path: Path, program: bytes) -> Path:
    stream = io.BytesIO()
    for value in (LEGACY_MAGIC, LEGACY_PROTOCOL, {"little_endian": True}):
        pickle.dump(value, stream, 2)
    stream.write(program)
    pickle.dump([], stream, 2)
    path.write_bytes(stream.getvalue())
    return path


def rebuilding(size: tuple, stride: tuple, offset: int = 0, n_values: int = 4, kind: str = "FloatStorage") -> bytes:
    """The pickle of a tensor in storage 0."""

    def numbers(values: tuple) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    storage = b"(Vstorage\nctorch\n" + kind.encode() + b"\nV0\nVcpu\n" + b"J" + struct.pack("<i", n_values) + b"tQ"
    place = storage + b"J" + struct.pack("<i", offset) + numbers(size) + numbers(stride)
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + place + b"\x89NtR."


FOUR = struct.pack("<4f", 1, 2, 3, 4)


def test_what_such_a_pickle_says(tmp_path):
    with TorchFile(write_zip(tmp_path / "file.pt", rebuilding((2, 2), (1, 2)), FOUR)) as file:
        assert file.tensor(file.root).tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("program", "storage", "message"),
    [
        (rebuilding((2, 2), (2, 1)), FOUR[:12], "storage 0 has 12 bytes, expected 16"),
        (rebuilding((2, 2), (2, 1)), FOUR * 2, "0 has 32 bytes, expected at most 16"),
        (rebuilding((2, 2), (2, 1), offset=1), FOUR, "out of bounds"),
        (rebuilding((2, 2), (2, 1), offset=-1), FOUR, "damaged"),
        (rebuilding((2, 2), (2, -1)), FOUR, "damaged"),
        (rebuilding((-2, -2), (2, 1)), FOUR, "damaged"),
        (rebuilding((2, 2), (2,)), FOUR, "damaged"),
        (rebuilding((1000, 1000), (0, 0)), FOUR, r"a tensor of \(1000, 1000\) in a storage of 4 values"),
        (rebuilding((2, 2), (2, 1), n_values=-4), FOUR, "0 has 16 bytes, expected at most -16"),
        (rebuilding((2, 2), (2, 1), kind="UntypedStorage"), FOUR, "UntypedStorage"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", FOUR, "expected 4, got 0"),
        (b"\x80\x02ctorch._utils\n_rebuild_parameter\n(K\x01tR.", FOUR, "damaged"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, program, storage, message):
    path = write_zip(tmp_path / "file.pt", program, storage)
    with TorchFile(path) as file, pytest.raises(ValueError, match=rf"file\.pt: .*{message}"):
        file.tensor(file.root)


def test_the_byte_order_is_looked_at(tmp_path):
    write_zip(tmp_path / "little.pt", rebuilding((2,), (1,)), FOUR, byteorder=b"little")
    TorchFile(tmp_path / "little.pt").__exit__()
    path = write_zip(tmp_path / "big.pt", rebuilding((2,), (1,)), FOUR, byteorder=b"big")
    with pytest.raises(ValueError, match=r"big\.pt: its numbers are big-endian"):
        TorchFile(path)


def test_a_compressed_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "file.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", rebuilding((2,), (1,)))
        archive.writestr("archive/data/0", FOUR)
    with pytest.raises(ValueError, match=r"file\.pt: data\.pkl is compressed, which torch\.save does not do"):
        TorchFile(tmp_path / "file.pt")


def test_many_names_for_one_storage(tmp_path):
    """A file of 4 kB would come to as many times that as it has names; some may share, as tied weights do."""
    path = write_zip(tmp_path / "file.pt", rebuilding((1000,), (1,), n_values=1000), bytes(4000))
    with TorchFile(path) as file:
        for _ in range(3):
            file.tensor(file.root)
        with pytest.raises(ValueError, match=r"its tensors have more than 4 times the bytes of the file"):
            for _ in range(3):
                file.tensor(file.root)


def test_what_is_no_file_of_torch_is_shown(tmp_path):
    (tmp_path / "page.pkl").write_text("<!DOCTYPE html><html>not found</html>")
    with pytest.raises(ValueError, match=r"page\.pkl: no file of torch\.save, it begins with b'<!DOCTYPE html><'"):
        TorchFile(tmp_path / "page.pkl")
    with pytest.raises(ValueError, match=r"is a folder, expected a file"):
        TorchFile(tmp_path)


class System:
    def __reduce__(self):
        import os

        return os.system, ("touch MARKER",)


class Nested:
    def __reduce__(self):
        return torch.load, (io.BytesIO(b"anything"), None, None)


@KINDS
@pytest.mark.parametrize(
    ("thing", "named"), [(System(), r"(posix|nt)\.system"), (Nested(), r"torch\.(serialization\.)?load")]
)
def test_a_malicious_file_is_refused(save, tmp_path, monkeypatch, zipped, thing, named):
    monkeypatch.chdir(tmp_path)
    path = save({"state_dict": {"a": torch.ones(2)}, "b": thing}, zipped)
    with pytest.raises(UnsafePickle, match=rf"file\.pt: it names {named}, which no weights need"):
        TorchFile(path)
    assert not Path("MARKER").exists()


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_malicious_bytes_are_refused(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    program = b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(Vos\ntRVsystem\ntR(Vtouch MARKER\ntR."
    pickle.loads(program)
    Path("MARKER").unlink()  # it does what it is there for
    with pytest.raises(UnsafePickle, match=r"file\.pt: it names builtins\.getattr"):
        TorchFile(write(tmp_path / "file.pt", program))
    assert not Path("MARKER").exists()


def test_a_storage_of_another_folder_is_not_reached(tmp_path):
    program = rebuilding((2,), (1,), n_values=2).replace(b"V0\n", b"V../../secret\n")
    (tmp_path / "secret").write_bytes(FOUR[:8])
    path = write_zip(tmp_path / "file.pt", program, FOUR)
    with TorchFile(path) as file, pytest.raises(ValueError, match=r"file\.pt: damaged: .*secret"):
        file.tensor(file.root)
