"""Folders of small pictures that tests make, and what is told of them."""

from pathlib import Path

from PIL import Image

from data.folder import FolderSource
from data.rejects import Reason


def picture(path: Path, colour: int, **options: object) -> None:
    """A file of its own bytes for every colour of 0..255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (colour, 255 - colour, 7)).save(path, **options)


def folder_of(folder: Path, names: list[str], *, captions: bool = True) -> Path:
    for i, name in enumerate(names):
        picture(folder / name, i)
    if captions:
        table(folder, names)
    return folder


def table(folder: Path, names: list[str]) -> None:
    (folder / "captions.csv").write_text("file_name,text\n" + "".join(f"{name},a {name}\n" for name in names))


def keys(source: FolderSource) -> list[str]:
    return [source.key(i) for i in range(len(source))]


def rejected(source: FolderSource) -> dict[str, Reason]:
    return {reject.file: reject.reason for reject in source.report.rejects}
