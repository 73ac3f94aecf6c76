"""A folder of pictures as tar shards, which every reader of WebDataset and img2dataset shards understands.

Of each picture a shard holds `000000017.jpg` (the file's own bytes), `.json` ("key": the picture's path in the folder,
"captions", "split") and, where there is a caption, `.txt` with the first one: names are numbers, for keys may hold dots
and letters that other readers trip over. The pictures come in an order that has nothing to do with their names, the
same each time, so that whoever reads the shards as a stream sees them mixed. The same folder gives the same bytes.

They are written beside, in NAME.partial, which whoever writes there has locked: what a process that was killed has left
of it, the next one removes.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data.folder import FolderSource
from locks import LOCK, only_writer
from whole_files import sync, sync_folder


def pack(source: FolderSource, out: str | Path, *, size: int) -> int:
    """Write every picture of `source` to shards `out/00000.tar`, ...; `out` appears when all of it is there.

    Args:
        source: the pictures.
        out: must not exist yet.
        size: pictures a shard.

    Returns the number of shards. Raises ValueError where `out` exists, another process packs to it, something else lies
    in `out`.partial, or a picture has gone or changed since it was opened.
    """
    out = Path(out)
    if size < 1:
        raise ValueError(f"size={size}, expected at least 1 picture a shard")
    with only_writer(beside := out.with_name(f"{out.name}.partial")):
        refuse_existing(out)  # now that nobody else makes it
        _clear(beside)
        try:
            return _pack(source, out, beside, size)
        except BaseException:  # Ctrl-C too
            if beside.exists():  # else it has been renamed
                _clear(beside)
            raise


def _clear(beside: Path) -> None:
    """Removes the shards that a process left which was killed. Raises ValueError where there is anything else."""
    left = [path for path in beside.iterdir() if path.name != LOCK]
    for path in left:
        if path.suffix != ".tar" or not path.stem.isdecimal() or not path.is_file():
            raise ValueError(f"{path} is none of the shards that packing leaves: remove {beside} or write elsewhere")
    for path in left:
        path.unlink()


def _pack(source: FolderSource, out: Path, beside: Path, size: int) -> int:
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
    (out / LOCK).unlink(missing_ok=True)  # not before: another process would take the shards for left ones
    sync_folder(out.parent)
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
