"""Caption files that tests write and read."""

import json
from pathlib import Path

import pytest

from data.captions import Captions, read_captions

PICTURES = ["a.png", "b.png", "sub/c.JPG"]


def write(folder: Path, files: dict[str, str | bytes]) -> set[str]:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return set(files)


def read(
    folder: Path, files: dict[str, str | bytes], *, pictures: list[str] | None = None, need_text: bool = True
) -> Captions:
    captions = read_captions(
        folder, PICTURES if pictures is None else pictures, write(folder, files), need_text=need_text
    )
    assert captions is not None
    return captions


def refused(folder: Path, files: dict[str, str | bytes], message: str, **options: object) -> None:
    with pytest.raises(ValueError, match=message):
        read(folder, files, **options)


def coco(images: list[tuple[int, str]], captions: list[tuple[int, str]]) -> str:
    record = {
        "info": {},
        "images": [{"id": key, "file_name": file, "height": 1} for key, file in images],
        "annotations": [{"image_id": key, "id": i, "caption": text} for i, (key, text) in enumerate(captions)],
    }
    return json.dumps(record)
