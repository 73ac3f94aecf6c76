"""A folder of codes with any part damaged or forged is refused by name, at the latest where the part is read."""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.code_manifest import MANIFEST
from data.codes import CodesSource, verify
from tests.hostile.code_folders import CODES, SHARD
from tests.hostile.models import Hostile
from tests.made_codes import codes_of, write


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "codes"
    write(
        folder,
        codes_of(5) % 50,
        [(f"a {key}", "zwei Wörter") for key in "vwxyz"],
        list("vwxyz"),
        rows_per_shard=2,
        codebook_size=50,
    )
    read_all(CodesSource(folder))
    return folder


def read_all(source: CodesSource) -> None:
    for i in range(len(source)):
        assert source.key(i) and all(map(str.strip, source.captions(i)))
        assert source.split(i) in (None, "train", "val", "test")
        assert source.codes(i).max() < source.codebook_size
    list(source.identity())
    source.split_table()


@pytest.mark.parametrize("hostile", CODES.values(), ids=CODES.keys())
def test_refused_by_name(hostile: Hostile, sound: Path, tmp_path: Path):
    folder = tmp_path / "codes"
    shutil.copytree(sound, folder)
    hostile.damage(folder)
    with pytest.raises((ValueError, OSError), match=f"(?s){hostile.named}"):
        read_all(CodesSource(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([MANIFEST, str(SHARD)]), st.data())
def test_flipped_bits(sound: Path, tmp_path: Path, name: str, data: st.DataObject):
    folder = tmp_path / "codes"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    content = bytearray((folder / name).read_bytes())
    for place in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=4)):
        content[place // 8] ^= 1 << place % 8
    (folder / name).write_bytes(bytes(content))
    for read in (lambda: read_all(CodesSource(folder)), lambda: verify(folder)):
        try:
            read()
        except ValueError as error:
            assert str(folder) in str(error)
