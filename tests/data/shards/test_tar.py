"""Members of tars against the standard library's reader, and archives that are not whole."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.shards.tar import BLOCK, DamagedShard, members
from tests.data.shards.tars import write_tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
CONTENTS = [b"", b"x", b"a" * 511, b"b" * 512, b"c" * 513, b"d" * 5000]


def read(path: Path) -> list[tuple[str, bytes, str]]:
    with path.open("rb") as file:
        found = list(members(file))
    content = path.read_bytes()
    return [(each.name, content[each.offset : each.offset + each.size], each.kind) for each in found]


def read_by_library(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path, "r:") as archive:
        return [(each.name, archive.extractfile(each).read()) for each in archive if each.isreg()]


@pytest.mark.parametrize("form", FORMATS)
def test_members_are_what_tarfile_finds(tmp_path, form):
    names = [f"{number}.bin" for number in range(len(CONTENTS))]
    if form != "ustar":
        names[1], names[2] = "long/" * 60 + "name.txt", "früchte/ärger 日本.json"
    names[3] = "p" * 120 + "/" + "n" * 90 + ".txt"  # ustar splits it in two fields
    path = write_tar(tmp_path / "a.tar", zip(names, CONTENTS, strict=True), format=FORMATS[form])
    assert [(name, content) for name, content, _ in read(path)] == read_by_library(path)
    assert [name for name, _, _ in read(path)] == names


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=st.lists(
        st.tuples(
            st.text("abc/é.\U0001f600 ", min_size=1, max_size=180).map(lambda n: f"x{n}x"), st.binary(max_size=1500)
        ),
        max_size=6,
    ),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_any_names_and_contents(tmp_path, entries, form):
    path = write_tar(tmp_path / "a.tar", entries, format=form)
    assert [(name, content) for name, content, _ in read(path)] == read_by_library(path)


def test_sizes_in_pax_records_and_in_binary(tmp_path):
    info = tarfile.TarInfo("big.bin")
    info.size = 700
    info.pax_headers = {"size": "700", "comment": "a=b\nc"}
    binary = bytearray(write_tar(tmp_path / "b.tar", [("big.bin", b"z" * 700)]).read_bytes())
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"z" * 700))
    binary[124:136] = b"\x80" + (700).to_bytes(11, "big")
    (tmp_path / "b.tar").write_bytes(checked(binary))
    for name in ("a.tar", "b.tar"):
        assert read(tmp_path / name) == [("big.bin", b"z" * 700, "")]


def checked(archive: bytearray, at: int = 0) -> bytes:
    """With the right checksum in the header at a byte."""
    archive[at + 148 : at + 156] = b" " * 8
    archive[at + 148 : at + 156] = b"%06o\0 " % sum(archive[at : at + BLOCK])
    return bytes(archive)


def test_what_is_no_regular_file_is_named(tmp_path):
    kinds = {
        tarfile.LNKTYPE: "a hard link",
        tarfile.SYMTYPE: "a symbolic link",
        tarfile.DIRTYPE: "a folder",
        tarfile.FIFOTYPE: "a named pipe",
        tarfile.CHRTYPE: "a device",
    }
    infos = []
    for kind in kinds:
        info = tarfile.TarInfo("there")
        info.type, info.linkname = kind, "/etc/passwd"
        infos.append(info)
    path = write_tar(tmp_path / "a.tar", [*infos, ("after.txt", b"here")])
    assert [kind for _, _, kind in read(path)] == [*kinds.values(), ""]
    assert read(path)[-1] == ("after.txt", b"here", "")


def test_sparse_files_are_stepped_over(tmp_path):
    """Old GNU ones, whose map may go on behind the header, and those of pax."""
    old = bytearray(write_tar(tmp_path / "a.tar", [("holes.bin", b"k" * 1024), ("after.txt", b"here")]).read_bytes())
    old[156:157], old[482], old[257:265] = b"S", 1, b"ustar  \0"
    old[BLOCK:BLOCK] = bytes(BLOCK)
    (tmp_path / "a.tar").write_bytes(checked(old))
    assert [(name, kind) for name, _, kind in read(tmp_path / "a.tar")] == [
        ("holes.bin", "a sparse file"),
        ("after.txt", ""),
    ]
    info = tarfile.TarInfo("holes.bin")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    path = write_tar(tmp_path / "b.tar", [info, ("after.txt", b"here")], format=tarfile.PAX_FORMAT)
    assert [(name, kind) for name, _, kind in read(path)] == [("holes.bin", "a sparse file"), ("after.txt", "")]


def test_an_archive_without_members_is_whole(tmp_path):
    assert read(write_tar(tmp_path / "a.tar", [])) == []


ENTRIES = [(f"{number}.txt", b"content" * 100) for number in range(5)]


def test_cut_off_anywhere_is_noticed(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", ENTRIES).read_bytes()
    end = 5 * (BLOCK + 1024)  # of the last member
    path = tmp_path / "cut.tar"
    for length in [*range(0, end + 1, 97), *range(0, end + 1, BLOCK), end - 1, end, end + 100]:
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedShard, match=r"cut off|empty file"):
            read(path)
    path.write_bytes(whole[: end + BLOCK])
    assert len(read(path)) == 5


def test_a_flipped_bit_in_a_header_is_noticed(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", ENTRIES).read_bytes()
    path = tmp_path / "flipped.tar"
    for place in (3, 100, 124, 130, 150, 156, 260, 345, 511):
        damaged = bytearray(whole)
        damaged[2 * (BLOCK + 1024) + place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(DamagedShard, match=r"at byte 3,072"):
            read(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"\x1f\x8b" + b"compressed" * 100, "not an uncompressed tar archive"),
        (b"<html>" * 200, "not an uncompressed tar archive"),
        (bytes(10 << 20), "closed at byte 0, but the file goes on to byte 10,485,760"),
    ],
)
def test_what_is_no_tar(tmp_path, content, said):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DamagedShard, match=said):
        read(tmp_path / "a.tar")


def test_two_archives_in_one_file_are_refused(tmp_path):
    one = write_tar(tmp_path / "a.tar", ENTRIES).read_bytes()
    (tmp_path / "a.tar").write_bytes(one + one)
    with pytest.raises(DamagedShard, match="several in one"):
        read(tmp_path / "a.tar")


def test_headers_that_ask_for_too_much(tmp_path):
    """A negative size, one of a terabyte, and a long name of as much."""
    whole = write_tar(tmp_path / "a.tar", ENTRIES[:1]).read_bytes()
    for size, kind, said in (
        (b"\xff" * 12, b"0", "expected octal digits"),
        (b"\x80" + (1 << 40).to_bytes(11, "big"), b"0", "cut off: '0.txt' would end at byte"),
        (b"\x80" + (1 << 40).to_bytes(11, "big"), b"L", "cut off"),
        (b"-0000000007\0", b"0", "expected octal digits"),
    ):
        damaged = bytearray(bytes(BLOCK) + whole)
        damaged[:BLOCK] = whole[:BLOCK]
        damaged[BLOCK + 124 : BLOCK + 136], damaged[BLOCK + 156 : BLOCK + 157] = size, kind
        damaged[124:136] = b"0" * 11 + b"\0"
        (tmp_path / "a.tar").write_bytes(checked(bytearray(checked(damaged)), BLOCK))
        with pytest.raises(DamagedShard, match=said):
            read(tmp_path / "a.tar")
    large = write_tar(tmp_path / "a.tar", [("n" * (2 << 20), b"")], format=tarfile.GNU_FORMAT)
    with pytest.raises(DamagedShard, match="bytes of extended header"):
        read(large)


@pytest.mark.parametrize("record", [b"8 path=x\n", b"x path=a\n", b"0 path=a\n", b"12 size=-00\n", b"99999999 a=b\n"])
def test_pax_records_that_are_none(tmp_path, record):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.fileobj.write(info.tobuf() + record.ljust(BLOCK, b"\0"))
        archive.offset += 2 * BLOCK
    with pytest.raises(DamagedShard, match="damaged: the pax"):
        read(tmp_path / "a.tar")
