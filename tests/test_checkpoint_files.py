"""A checkpoint is whole or not there, and whatever happens to it on the disk is found."""

import builtins
import errno
import hashlib
import io
import os
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from checkpoint_files import DamagedCheckpoint, _HashedFile, check_undamaged, load_checkpoint, step_of, write_checkpoint


def checkpoint_at(step: int, values: int = 6) -> dict:
    weight = torch.arange(values, dtype=torch.float32).reshape(2, -1) + step
    return {"state_dict": {"weight": weight}, "global_step": step, "pytorch-lightning_version": "2"}


@pytest.fixture
def written(tmp_path) -> Path:
    path = tmp_path / "some.ckpt"
    write_checkpoint(checkpoint_at(3), path)
    return path


def is_damaged(path: Path) -> bool:
    try:
        check_undamaged(path)
    except DamagedCheckpoint as error:
        assert str(error).startswith(f"{path} is damaged or no training checkpoint: ")
        return True
    return False


def test_anything_reads_it(written):
    """Mapped or not, as torch does and as we do."""
    expected = checkpoint_at(3)["state_dict"]["weight"]
    for mmap in (True, False):
        assert torch.equal(torch.load(written, weights_only=True, mmap=mmap)["state_dict"]["weight"], expected)
    assert torch.equal(torch.load(io.BytesIO(written.read_bytes()))["state_dict"]["weight"], expected)
    assert torch.equal(load_checkpoint(written, nn.Linear(3, 2, bias=False))["state_dict"]["weight"], expected)
    assert step_of(written) == 3


def test_one_flipped_bit_anywhere_is_found(written):
    whole = written.read_bytes()
    for place in [*range(0, len(whole) - 150, 5), *range(len(whole) - 150, len(whole))]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        written.write_bytes(flipped)
        assert is_damaged(written), place
    written.write_bytes(whole)
    assert not is_damaged(written)


def test_a_file_that_is_too_short_or_too_long_is_found(written):
    whole = written.read_bytes()
    for end in [*range(0, len(whole) - 100, 17), *range(len(whole) - 100, len(whole) - 1)]:
        written.write_bytes(whole[:end])
        assert is_damaged(written), end
        written.write_bytes(whole[:end] + bytes(len(whole) - end))  # as after a power cut
        assert is_damaged(written), end
    written.write_bytes(whole + b"\0")
    assert is_damaged(written)


def test_files_without_a_digest_are_held_to_the_sums_in_them(tmp_path):
    """Those of earlier versions. Bytes between their parts are nobody's, so what counts is that no content is wrong."""
    path, found = tmp_path / "old.ckpt", 0
    torch.save(checkpoint_at(3), path)
    assert not is_damaged(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        if is_damaged(path):
            found += 1
            continue
        try:
            loaded = torch.load(path, weights_only=True)
        except RuntimeError:
            continue
        assert torch.equal(loaded["state_dict"]["weight"], checkpoint_at(3)["state_dict"]["weight"])
        assert loaded["global_step"] == 3
    assert found > len(whole) / 9


class Unreadable(io.FileIO):
    """A file on a disk, or a server, that does not answer."""

    def read(self, *_) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    readall = readinto = read


def test_what_is_written_is_not_read_again(tmp_path):
    """All devices wait for it, and a checkpoint may be larger than the memory that is free for files."""

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    path = tmp_path / "some.ckpt"
    before = bytes_read()
    write_checkpoint(checkpoint_at(3, values=1 << 20), path)  # 4 MiB
    assert bytes_read() - before < 1 << 20
    check_undamaged(path)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [2, 3], [1, 40, 1], [0, 5, 1, 1], [2]])
def test_the_digest_is_that_of_the_file_whatever_the_blocks(tmp_path, sizes):
    path = tmp_path / "some.ckpt"
    with path.open("wb") as file:
        with _HashedFile(file) as hashed:
            for size in sizes:
                hashed.write(memoryview(os.urandom(size)))
        hashed.sign()
    content, comment = path.read_bytes()[:-71], path.read_bytes()[-71:]
    assert content.endswith(b"\x47\x00") and len(content) == sum(sizes)
    assert comment.decode() == f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.mark.parametrize("signed", [True, False])
def test_a_file_that_cannot_be_read_is_named_and_does_not_count_as_damaged(written, signed, monkeypatch):
    if not signed:
        torch.save(checkpoint_at(3), written)
    for read in (check_undamaged, step_of, lambda path: load_checkpoint(path, nn.Linear(3, 2, bias=False))):
        with monkeypatch.context() as patched:
            for owner in (io, builtins):
                patched.setattr(owner, "open", lambda path, *_: Unreadable(path))
            with pytest.raises(OSError) as unreadable:
                read(written)
        assert (unreadable.value.errno, unreadable.value.filename) == (errno.EIO, str(written))


def test_what_torch_cannot_map_does_not_count_as_damaged(tmp_path):
    """It has no OSError for that, but a RuntimeError."""
    path = tmp_path / "some.ckpt"
    write_checkpoint(checkpoint_at(3, values=1 << 22), path)  # 16 MiB
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), before[1]))
    try:
        with pytest.raises(OSError) as unreadable:
            step_of(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert (unreadable.value.errno, unreadable.value.filename) == (errno.ENOMEM, str(path))


@pytest.mark.parametrize("room", [0, 100, 1 << 19, 1 << 20])
def test_no_part_stays_where_the_disk_is_full(tmp_path, room):
    """As far as a process can have that to itself: files cannot grow beyond `room` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoint = checkpoint_at(3, values=1 << 19)  # 2 MiB
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError) as full:
            write_checkpoint(checkpoint, tmp_path / "some.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert full.value.strerror == "File too large"
    assert list(tmp_path.iterdir()) == []
