"""A folder of one's own pictures as a source of training samples.

Every picture is read and decoded once when the source is made, so that a broken file is found then and not in the
middle of a run. What was found is kept beside the report (scans.py), so that the next start, and the run's other
devices, decode only what is new or has changed. What cannot be used is rejected with its reason (rejects.py) and never
replaced by another sample.
"""

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.caption_tables import SPLITS, SplitError, is_unicode
from data.captions import LOOKED_FOR, Captions, read_captions
from data.near_duplicates import LEAST_SIDE, Hashes, picture_hash
from data.pictures import PICTURE_SUFFIXES, PictureError, decode_picture, place_of, read_file
from data.rejects import Reason, Reject, Rejected, Report, printable
from data.scans import DIGEST_BYTES, Scanned, Scans, Stamp, stamp_of
from data.threads import in_threads
from data.waiting import with_progress

log = logging.getLogger(__name__)
WAITS = (0.1, 1.0)  # seconds before a file that could not be read is tried once more
_GONE = (FileNotFoundError, NotADirectoryError)
_UNREAD = {".avif", ".bmp", ".heic", ".jfif", ".jp2", ".svg", ".tif", ".tiff"}  # pictures that people will miss


class _Sample(NamedTuple):
    key: str
    captions: tuple[str, ...]
    split: str | None


class FolderSource:
    """The usable pictures of a folder and its subfolders, sorted by path; satisfies `data.source.Source`.

    PNG, JPEG, WebP and GIF files are pictures, whatever the case of their suffix; other files and all hidden ones are
    ignored. Captions come from the layouts of captions.py. A picture's split is what its table (or COCO file) says,
    else the name of its first folder where that is train, val, validation, test or the like, else None.

    Args:
        folder: the folder; linked subfolders are followed.
        need_captions: rejects pictures without a caption. Where it is False, only pictures count: a folder without
            caption files will do, and caption files that are foreign or malformed, or name what is not there, are
            noted, not rejected. Captions and splits are taken where they can be had.
        max_rejected: the largest fraction of rejected files that is put up with, in [0, 1].
        report: a JSON file that is given the full list of rejects, also where the source then refuses the folder. What
            decoding has found is kept beside it.

    Raises:
        ValueError: no pictures, no known layout of captions, captions that name no file, malformed caption tables,
            or more than `max_rejected` of the files rejected; the message says what was looked for or which file.
            An unknown or contradictory split is one also where captions are not needed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        need_captions: bool,
        max_rejected: float = 0.05,
        report: str | Path | None = None,
    ) -> None:
        if not 0 <= max_rejected <= 1:
            raise ValueError(f"max_rejected={max_rejected}, expected a fraction from 0 to 1 (0.05 is 5%)")
        self.folder = Path(folder).expanduser()
        pictures, others, rejects = _list_files(self.folder)
        read = _captions if need_captions else _captions_at_hand
        captions, notes = read(self.folder, pictures, others)
        candidates, without = _candidates(pictures, captions, need_captions)
        report = report and Path(report)
        self._record = report and report.with_name(f"{report.stem}-scan.safetensors")
        scans = Scans(self._record, self.folder)
        self._scanned, broken = _scan(self.folder, [sample.key for sample in candidates], scans)
        self._samples = [sample for sample in candidates if sample.key in self._scanned]
        self.report = Report(
            folder=self.folder,
            captions_from=captions.origin if captions else "",
            kept=len(self._samples),
            splits=dict(Counter(sample.split for sample in self._samples if sample.split is not None)),
            rejects=(*rejects, *(captions.rejects if captions else ()), *without, *broken),
            doubled_captions=captions.doubled if captions else 0,
            notes=(*notes, *_unread(others)),
        )
        if report is not None:
            self.report.save(report)
        self.report.enforce(max_rejected)
        log.log(logging.WARNING if self.report.rejects else logging.INFO, self.report.summary())

    def __len__(self) -> int:
        return len(self._samples)

    def key(self, index: int) -> str:
        """The picture's path relative to the folder, with forward slashes."""
        return self._samples[index].key

    def image(self, index: int, least: int | None = None) -> Image.Image:
        """The picture, mode RGB, any size.

        Raises `Rejected` where it vanished or broke since the scan, `PictureError` where the system cannot read it, not
        even after a while; both name the file.
        """
        key = self._samples[index].key
        for wait in WAITS:
            try:
                return self._image(key, least)
            except PictureError as error:
                log.warning("%s; once more in %.1f s", printable(error), wait)
            time.sleep(wait)
        return self._image(key, least)

    def _image(self, key: str, least: int | None) -> Image.Image:
        path, data = self.folder / key, None
        try:
            data = read_file(path)
            return decode_picture(data, least)
        except PictureError as error:
            if data is None and _is_of_the_system(error):
                raise PictureError(f"{path}: {error}") from error
            gone = "; it has gone since the folder was checked" if isinstance(error.__cause__, _GONE) else ""
            raise Rejected(Reject(key, Reason.BROKEN, f"{path}: {error}{gone}")) from error

    def file(self, index: int) -> bytes:
        """The bytes of the picture's file. Raises `PictureError` where it is not the one that was scanned."""
        path = self.folder / self._samples[index].key
        data = read_file(path)
        if _digest(data) != self._scanned[self._samples[index].key].digest:
            raise PictureError(f"{path} has changed since it was checked")
        return data

    def captions(self, index: int) -> tuple[str, ...]:
        """Every caption in the order of its file, none twice; () only where captions were not needed."""
        return self._samples[index].captions

    def split(self, index: int) -> str | None:
        """ "train", "val" or "test" where the folder says so, else None."""
        return self._samples[index].split

    def sizes(self) -> np.ndarray:
        """(N, 2) uint32, width and height of each picture."""
        return np.array([self._scanned[sample.key].size for sample in self._samples], np.uint32)

    def hashes(self) -> Hashes:
        """What the pictures look like, and which broke since the scan. They are decoded for it, unless what was found
        an earlier time has been kept.

        Raises `PictureError` as `image` does.
        """

        def look(row: int) -> int | Reject:
            scanned = scans.get(self.key(row), self._scanned[self.key(row)].stamp)
            if scanned is not None and scanned.look is not None:
                return scanned.look
            try:
                return picture_hash(self.image(row, LEAST_SIDE))
            except Rejected as error:
                return error.reject

        scans = Scans(self._record, self.folder)
        bits, broken = np.zeros(len(self), np.uint64), {}
        looks = in_threads(look, range(len(self)))
        for row, found in enumerate(with_progress(looks, len(self), self.folder, done="looked at", things="pictures")):
            if isinstance(found, Reject):
                broken[row] = found
            else:
                bits[row] = found
                key = self.key(row)
                if stamp_of(self.folder / key) == self._scanned[key].stamp:  # else it was another file's look
                    scans.add(key, self._scanned[key]._replace(look=found))
        scans.keep()
        return Hashes(bits, broken)

    def identity(self) -> Iterator[str]:
        """Key, captions and split of each sample and what its file holds; the folder may lie anywhere."""
        for sample in self._samples:
            yield json.dumps([*sample, self._scanned[sample.key].digest.hex()])


def _list_files(folder: Path) -> tuple[list[str], set[str], list[Reject]]:
    """Pictures in order, the other files, and pictures whose names no text file could hold."""
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}; expected a folder of pictures"
        )
    keys = sorted(path.relative_to(folder).as_posix() for path in walk_files(folder))
    pictures = [key for key in keys if PurePosixPath(key).suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        suffixes = Counter(PurePosixPath(key).suffix.lower() or "no suffix" for key in keys)
        there = ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common(5)) or "no files at all"
        raise ValueError(
            f"{folder}: no pictures; looked for {', '.join(PICTURE_SUFFIXES)} in it and below, found {there}"
        )
    bad = {key for key in pictures if not is_unicode(key)}
    rejects = [Reject(key, Reason.BAD_NAME, "rename it") for key in sorted(bad)]
    return [key for key in pictures if key not in bad], set(keys).difference(pictures), rejects


def _captions(folder: Path, pictures: Sequence[str], others: AbstractSet[str]) -> tuple[Captions, tuple[str, ...]]:
    """Captions that are needed, and notes on them."""
    captions = read_captions(folder, pictures, others, need_text=True)
    if captions is None:
        raise ValueError(f"{folder}: {len(pictures):,} pictures, but no captions; looked for {LOOKED_FOR}")
    return captions, captions.notes


def _captions_at_hand(
    folder: Path, pictures: Sequence[str], others: AbstractSet[str]
) -> tuple[Captions | None, tuple[str, ...]]:
    """Captions and splits as far as they can be read, without rejects, and notes on what was passed over."""
    try:
        captions = read_captions(folder, pictures, others, need_text=False)
    except SplitError:
        raise
    except ValueError as error:
        return None, (f"no captions or splits read, and none needed: {error}",)
    if captions is None or not captions.rejects:
        return captions, captions.notes if captions else ()
    passed_over = f"{len(captions.rejects):,} captions passed over, first {captions.rejects[0]}"
    return replace(captions, rejects=()), (*captions.notes, passed_over)


def _unread(others: Iterable[str]) -> list[str]:
    """A note on pictures of other formats, so that nobody believes them used."""
    suffixes = Counter(PurePosixPath(key).suffix.lower() for key in others)
    there = [f"{count:,} {suffix}" for suffix, count in sorted(suffixes.items()) if suffix in _UNREAD]
    return [f"not read: {', '.join(there)} files"] if there else []


def walk_files(folder: Path) -> Iterator[Path]:
    """All files below that are not hidden. Linked folders come last, each real folder once: links may form a loop."""
    seen = set()
    above = folder.resolve().parents
    pending = [folder]
    while pending:
        top = pending.pop(0)
        for parent, folders, files in os.walk(top, onerror=_refuse):
            here = Path(parent).resolve()
            if here in seen or here in above:
                folders.clear()
                continue
            seen.add(here)
            yield from (Path(parent, name) for name in files if not name.startswith("."))
            visible = [Path(parent, name) for name in sorted(folders) if not name.startswith(".")]
            pending += [path for path in visible if path.is_symlink()]
            folders[:] = [path.name for path in visible if not path.is_symlink()]


def _refuse(error: OSError) -> None:
    raise ValueError(f"{error.filename}: the folder cannot be listed ({error.strerror})") from error


def _candidates(
    pictures: Sequence[str], captions: Captions | None, need_captions: bool
) -> tuple[list[_Sample], list[Reject]]:
    """Pictures worth decoding, and those rejected for the want of a caption."""
    by_picture = captions.by_picture if captions else {}
    splits = captions.splits if captions else {}
    rejected = {reject.file for reject in captions.rejects} if captions else set()
    samples, rejects = [], []
    for key in pictures:
        if key in rejected:
            continue
        if need_captions and not by_picture.get(key):
            detail = "its captions are empty" if key in by_picture else f"not named in {captions.origin}"
            rejects.append(Reject(key, Reason.NO_CAPTION, detail))
        else:
            samples.append(_Sample(key, by_picture.get(key, ()), splits.get(key) or _split_of_folder(key)))
    return samples, rejects


def _split_of_folder(key: str) -> str | None:
    first, _, rest = key.partition("/")
    return SPLITS.get(first.lower()) if rest else None


def _scan(folder: Path, keys: Sequence[str], scans: Scans) -> tuple[dict[str, Scanned], list[Reject]]:
    """What is known of the whole pictures by key, and the rejects: broken ones and later copies of the same bytes."""
    first: dict[bytes, str] = {}
    scanned, rejects = {}, []
    # Decoding and hashing release the interpreter's lock.
    read = in_threads(lambda key: _read(folder / key, partial(scans.get, key)), keys)
    try:
        for key, result in zip(
            keys, with_progress(read, len(keys), folder, done="checked", things="pictures"), strict=True
        ):
            if isinstance(result, PictureError):
                rejects.append(Reject(key, Reason.BROKEN, str(result)))
                continue
            scans.add(key, result)
            if first.setdefault(result.digest, key) != key:
                rejects.append(Reject(key, Reason.DUPLICATE, f"same bytes as {first[result.digest]}"))
            else:
                scanned[key] = result
    except BaseException:  # Ctrl-C too: the next start goes on from here
        scans.keep()
        raise
    scans.keep(keys)
    return scanned, rejects


def _read(path: Path, known: Callable[[Stamp | None], Scanned | None]) -> Scanned | PictureError:
    """What is known of the picture; else it is decoded from the whole file: what it is, or what is wrong with it."""
    stamp = stamp_of(path)
    if (scanned := known(stamp)) is not None:
        return scanned
    try:
        data = read_file(path)
        size = place_of(decode_picture(data, least=1)).size
    except PictureError as error:
        return error
    return Scanned(stamp if stamp_of(path) == stamp else None, _digest(data), size)


def _is_of_the_system(error: PictureError) -> bool:
    """Whether a file could not be read for a reason that says nothing of it, not even that it has gone."""
    cause = error.__cause__
    return isinstance(cause, OSError) and not isinstance(cause, _GONE)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
