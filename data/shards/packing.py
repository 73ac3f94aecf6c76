"""A folder of pictures as tar shards, which every reader of WebDataset and img2dataset shards understands.

Of each picture a shard holds `000000017.jpg` (the file's own bytes), `.json` ("key": the picture's path in the folder,
"captions", "split") and, where there is a caption, `.txt` with the first one: names are numbers, for keys may hold dots
and letters that other readers trip over. The pictures come in an order that has nothing to do with their names, the
same each time, so that whoever reads the shards as a stream sees them mixed. The same folder gives the same bytes.
"""

import hashlib
import io
import json
import shutil
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data.folder import FolderSource
from whole_files import sync, sync_folder


def pack(source: FolderSource, out: str | Path, *, size: int) -> int:
    """Write every picture of `source` to shards `out/00000.tar`, ...; `out` appears when all of it is there.

    Args:
        source: the pictures.
        out: must not exist yet.
        size: pictures a shard.

    Returns the number of shards. Raises ValueError where `out` exists or a picture has gone or changed since it was
    opened.
    """
    out = Path(out)
    refuse_existing(out)
    if size < 1:
        raise ValueError(f"size={size}, expected at least 1 picture a shard")
    beside = out.with_name(f"{out.name}.{uuid.uuid4().hex}.partial")  # nobody else's, whoever packs at the same time
    beside.mkdir(parents=True)
    try:
        order = sorted(range(len(source)), key=lambda index: hashlib.blake2b(source.key(index).encode()).digest())
        firsts = range(0, len(order), size)
        for number, first in enumerate(firsts):
            path = beside / f"{number:05d}.tar"
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
                for row, index in enumerate(order[first : first + size], start=first):
                    for name, content in _members(source, index):
                        member = tarfile.TarInfo(f"{row:09d}.{name}")  # of nobody, at time 0
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
            sync(path)
        sync_folder(beside)
        refuse_existing(out)
        beside.rename(out)
        sync_folder(out.parent)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(beside, ignore_errors=True)  # it may have been renamed already
        raise
    return len(firsts)


def refuse_existing(out: str | Path) -> None:
    """ValueError where shards cannot be written to `out` because something is there."""
    if Path(out).exists():
        raise ValueError(f"{out} exists already: remove it or write the shards elsewhere")


def _members(source: FolderSource, index: int) -> Iterator[tuple[str, bytes]]:
    """Suffix and content of each member of a sample, in the order of the suffixes."""
    key, captions = source.key(index), source.captions(index)
    meta = {"key": key, "captions": captions, "split": source.split(index)}
    parts = {
        PurePosixPath(key).suffix.lower().removeprefix("."): source.file(index),
        "json": json.dumps(meta, ensure_ascii=False).encode(),
    }
    if captions:
        parts["txt"] = captions[0].encode()
    yield from sorted(parts.items())
