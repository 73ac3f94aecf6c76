"""Files that are whole or not there."""

from pathlib import Path

import whole_files
from whole_files import read_object, write_file, write_object


def test_a_file_is_synced_before_it_has_its_name_and_the_folder_after(tmp_path, monkeypatch):
    """Else, after a power loss, the name may be there and the content not."""
    done = []

    def fsync(descriptor: int) -> None:
        done.append(("synced", Path(f"/proc/self/fd/{descriptor}").readlink().name[:5]))

    def renamed(beside: Path, path: Path) -> None:
        done.append(("renamed", path.name))
        beside.rename(path)

    monkeypatch.setattr(whole_files.os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", renamed)
    write_file(tmp_path / "file", b"content")
    assert done == [("synced", ".file"), ("renamed", "file"), ("synced", tmp_path.name[:5])]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_object_comes_back_as_it_was_and_is_valid_utf8(tmp_path):
    content = {"größe": 1, "name": "caf\udce9.png", "list": [None, 2.5]}
    write_object(tmp_path / "new" / "object.json", content)
    assert read_object(tmp_path / "new" / "object.json") == content
    text = (tmp_path / "new" / "object.json").read_bytes().decode("utf-8")
    assert "größe" in text and text.endswith("}\n")  # for people's eyes
