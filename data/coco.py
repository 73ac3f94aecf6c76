"""COCO's caption annotations, `captions_train2017.json` and the like, to rows (https://cocodataset.org/#format-data)."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from data.caption_tables import Row, is_unicode, parse_json, read_text, same_form

_NAME = re.compile(r"(annotations/)?captions_(?P<part>[^/]*)\.json")


def is_annotations(name: str) -> bool:
    """Whether a path relative to the folder is that of caption annotations."""
    return _NAME.fullmatch(name) is not None


def coco_rows(folder: Path, name: str, pictures: Sequence[str]) -> list[Row]:
    """One row an image of `folder / name`, the file resolved to one of `pictures` where there is one of that name.

    The split is what the file's name begins with: train, val or test.
    """
    path = folder / name
    part = _NAME.fullmatch(name)["part"]  # "train2017"
    split = next((split for split in ("train", "val", "test") if part.startswith(split)), None)
    by_base = defaultdict(list)
    for picture in pictures:
        by_base[same_form(PurePosixPath(picture).name)].append(picture)
    record = parse_json(read_text(path), str(path))
    texts: dict[object, list[str]] = {}
    files: dict[object, str] = {}
    for where, image in _entries(path, record, "images", ("id", "file_name")):
        if image["id"] in files:
            raise ValueError(f"{where}: a second image with id {image['id']!r}")
        files[image["id"]] = _resolve(str(image["file_name"]), part, by_base, where)
        texts[image["id"]] = []
    for where, annotation in _entries(path, record, "annotations", ("image_id", "caption")):
        if annotation["image_id"] not in files:
            raise ValueError(f"{where}: image_id {annotation['image_id']!r} is the id of no image")
        if not isinstance(annotation["caption"], str):
            raise ValueError(f"{where}: caption is {annotation['caption']!r}, expected a string")
        if not is_unicode(annotation["caption"]):
            raise ValueError(f"{where}: caption {annotation['caption']!r} holds half of a surrogate pair")
        texts[annotation["image_id"]].append(annotation["caption"])
    return [Row(f"{name} image {key}", file, tuple(texts[key]), split) for key, file in files.items()]


def _entries(path: Path, record: object, name: str, keys: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    entries = record.get(name) if isinstance(record, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: no list of {name!r}; expected COCO's caption annotations")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or any(not isinstance(entry.get(key), int | str) for key in keys):
            raise ValueError(f"{path} {name}[{i}]: expected an object with {' and '.join(keys)}, got {str(entry)[:80]}")
        yield f"{path} {name}[{i}]", entry


def _resolve(file: str, part: str, by_base: Mapping[str, Sequence[str]], where: str) -> str:
    """COCO names pictures without their folder: that is any folder, one called like the annotations first."""
    file = str(PurePosixPath(file.replace("\\", "/")))  # "./b.jpg" is b.jpg
    same_base = by_base.get(same_form(PurePosixPath(file).name), ())
    # To the letter, else in another Unicode form.
    found = [p for p in same_base if f"/{p}".endswith(f"/{file}")]
    found = found or [p for p in same_base if same_form(f"/{p}").endswith(same_form(f"/{file}"))]
    if not found:
        return file
    whole = [p for p in found if same_form(p) == same_form(file)]
    preferred = whole or [p for p in found if part in p.split("/")] or found
    if len(preferred) > 1:
        raise ValueError(f"{where}: {file} could be any of {', '.join(preferred[:3])}; keep its pictures in {part}/")
    return preferred[0]
