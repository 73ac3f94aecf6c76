"""Files that are whole or not there."""

from pathlib import Path

import whole_files
from whole_files import write_file


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
