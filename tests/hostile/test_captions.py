"""Every hostile set of captions is read, refused with its file named, or counted with its reason."""

import csv
import io
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.folder import FolderSource
from data.rejects import Reason
from tests.hostile.captions import FOLDERS, Folder, write
from tests.hostile.formats import encoded

PICTURES = {
    name: encoded(Image.new("RGB", (8, 8), colour), "PNG") for name, colour in (("a.png", "red"), ("b.png", "blue"))
}


def opened(place: Path, **options: object) -> FolderSource:
    return FolderSource(place, **{"need_captions": True, "max_rejected": 0.9} | options)


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS.keys())
def test_read_refused_or_counted(folder: Folder, tmp_path: Path):
    write(folder, tmp_path / "set", PICTURES)
    if isinstance(folder.outcome, str) and not isinstance(folder.outcome, Reason):
        with pytest.raises(ValueError, match=f"(?s){re.escape(str(tmp_path / 'set'))}.*({folder.outcome})"):
            opened(tmp_path / "set")
        opened(tmp_path / "set", need_captions=False) if "split" not in folder.outcome else None
    else:
        report = opened(tmp_path / "set", report=tmp_path / "report.json").report
        reasons = {reject.reason for reject in report.rejects}
        assert reasons == ({folder.outcome} if folder.outcome else set())
        assert json.loads((tmp_path / "report.json").read_text("utf-8"))["rejected"] == len(report.rejects)
        report.summary().encode()
    assert {path.name for path in tmp_path.iterdir()} <= {"set", "report.json", "report-scan.safetensors"}


def test_a_pipe_does_not_block(tmp_path: Path):
    write(FOLDERS["link to nothing"]._replace(links={}), tmp_path / "set", PICTURES)
    os.mkfifo(tmp_path / "set" / "c.png")
    reasons = [reject.reason for reject in opened(tmp_path / "set").report.rejects]
    assert reasons == [Reason.BROKEN]
    (tmp_path / "set" / "captions.csv").unlink()
    os.mkfifo(tmp_path / "set" / "captions.csv")
    with pytest.raises(ValueError, match=r"captions\.csv: not a regular file"):
        opened(tmp_path / "set")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60))
def test_any_caption_is_kept_or_counted(tmp_path: Path, caption: str):
    """Whatever a caption says, as csv's own writer has it."""
    place = tmp_path / "set"
    if not place.exists():
        write(Folder({}, None), place, PICTURES)
    rows = io.StringIO(newline="")
    csv.writer(rows).writerows([["file_name", "text"], ["a.png", caption], ["b.png", "x"]])
    (place / "captions.csv").write_bytes(rows.getvalue().encode())
    source = opened(place)
    assert [source.key(i) for i in range(len(source))] in (["a.png", "b.png"], ["b.png"])
    if len(source) == 2:
        assert source.captions(0) == (caption.strip(),)
    else:
        assert source.report.rejects[0].reason == Reason.NO_CAPTION


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["captions.csv", "captions.tsv", "captions.jsonl", "captions_val.json"]), st.data())
def test_damaged_tables(tmp_path: Path, name: str, data: st.DataObject):
    sound = {
        "captions.csv": b'file_name,text,split\na.png,"a cat",val\nb.png,a dog,\n',
        "captions.tsv": b"file_name\ttext\na.png\ta cat\nb.png\ta dog\n",
        "captions.jsonl": b'{"file_name": "a.png", "text": ["x", "y"]}\n{"file_name": "b.png", "text": "z"}\n',
        "captions_val.json": b'{"images": [{"id": 1, "file_name": "a.png"}], '
        b'"annotations": [{"image_id": 1, "caption": "x"}]}',
    }[name]
    damaged = bytearray(sound)
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(sound) - 1), st.integers(0, 255)), max_size=5)):
        damaged[place] = value
    cut = data.draw(st.integers(0, len(sound)))
    place = tmp_path / "set"
    if not place.exists():
        write(Folder({}, None), place, PICTURES)
    for path in place.glob("captions*"):
        path.unlink()
    (place / name).write_bytes(bytes(damaged[:cut]) if data.draw(st.booleans()) else bytes(damaged))
    try:
        assert opened(place)
    except ValueError as error:
        assert str(place) in str(error)
