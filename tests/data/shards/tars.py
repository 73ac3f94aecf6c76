"""Shards for tests, written by the standard library's tarfile."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

Member = tuple[str, bytes] | tarfile.TarInfo


def write_tar(path: Path, members: Iterable[Member], **settings) -> Path:
    """A tar of (name, content) pairs and of members without content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **settings) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def picture(number: int, form: str = "PNG", size: tuple[int, int] = (6, 4)) -> bytes:
    """A flat picture whose colour tells its number; JPEG, which is not exact, has it as a comment too."""
    content = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 7)).save(content, form, comment=str(number).encode())
    return content.getvalue()


def number_of(image: Image.Image) -> int:
    red, green, _ = image.getpixel((0, 0))
    return red + 256 * green


def sample(number: int, **meta) -> list[tuple[str, bytes]]:
    """Members as img2dataset writes them; the picture is a PNG, whose colour is exact."""
    key = f"{number:09d}"
    content = {"url": f"http://there/{number}", "caption": f"thing {number}", "status": "success", "key": key} | meta
    return [
        (f"{key}.png", picture(number)),
        (f"{key}.txt", f"thing {number}".encode()),
        (f"{key}.json", json.dumps(content).encode()),
    ]


def shards_of(folder: Path, numbers: Iterable[int], size: int = 10) -> Path:
    """A folder of shards as img2dataset leaves it, the files beside the tars too."""
    numbers = list(numbers)
    for place, first in enumerate(range(0, len(numbers), size)):
        path = folder / f"{place:05d}.tar"
        write_tar(path, [member for number in numbers[first : first + size] for member in sample(number)])
        path.with_suffix(".parquet").write_bytes(b"PAR1")
        path.with_name(f"{path.stem}_stats.json").write_text("{}")
    return folder
