"""What a folder of codes was made by, and what it holds: RECIPE while it is being made, MANIFEST once it is whole.

Both are JSON and written beside their place, synced and renamed. The recipe comes first, so that a folder that was left
half-made is gone on with by the same pictures, tokenizer and settings only; the manifest comes last.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data.code_shards import MAX_CODEBOOK_SIZE
from whole_files import read_object, write_file

RECIPE, MANIFEST = "recipe.json", "manifest.json"
KIND = "codes"
TEXTS = {"fingerprint", "data", "device"}  # of a recipe; all else in it is numbers
ADDED = {"batch_size", "device"}  # which the first manifests do not have


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides every byte of the shards.

    Attributes:
        fingerprint: names the image tokenizer.
        codebook_size: the codes are 0 .. codebook_size - 1; at most 65,536.
        grid_size: (h, w) of each picture's codes.
        image_size: side in pixels of the pictures that were encoded.
        crops: of each picture; the first is the evaluation crop.
        seed: of the other crops.
        data: `data.split.fingerprint` of the pictures.
        count: of the pictures.
        batch_size: pictures that were encoded at a time, which decides the last bits, and so which of two codes as good
            as each other is taken; None where a former version made them, which did not say.
        device: the kind of what they were encoded on, for the same reason.
        rows_per_shard: shard i holds pictures i * rows_per_shard and on.
    """

    fingerprint: str
    codebook_size: int
    grid_size: tuple[int, int]
    image_size: int
    crops: int = 1
    seed: int = 0
    data: str = ""
    count: int
    batch_size: int | None = None
    device: str | None = None
    rows_per_shard: int = 4096

    def __post_init__(self) -> None:
        if not 1 <= self.codebook_size <= MAX_CODEBOOK_SIZE:
            raise ValueError(
                f"codebook_size is {self.codebook_size}, expected 1 to {MAX_CODEBOOK_SIZE}: codes are uint16"
            )
        if len(self.grid_size) != 2 or min(self.grid_size) < 1:
            raise ValueError(f"grid_size is {tuple(self.grid_size)}, expected two positive numbers")
        if min(self.image_size, self.crops, self.count, self.rows_per_shard) < 1:
            raise ValueError(
                f"image_size={self.image_size}, crops={self.crops}, count={self.count}, "
                f"rows_per_shard={self.rows_per_shard}, expected at least 1 each"
            )
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}, expected -2**63 to 2**63 - 1: it is mixed as 64 bits")

    @property
    def shards(self) -> int:
        return -(-self.count // self.rows_per_shard)

    def rows(self, number: int) -> range:
        """The pictures of a shard."""
        start = number * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.count))

    @property
    def digest(self) -> str:
        """16 hexadecimal digits, which every shard carries."""
        return hashlib.blake2b(json.dumps(self.said()).encode(), digest_size=8).hexdigest()

    def said(self) -> dict[str, Any]:
        """All that is known, as JSON has it."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def check_same(self, other: "Recipe", folder: Path) -> None:
        """ValueError that names what `folder`, made by `other`, was made of and this recipe is not."""
        ours, theirs = self.said(), other.said()
        different = [name for name in ours if theirs.get(name, ours[name]) != ours[name]]
        changes = [f"{name} was {theirs[name]} and is {ours[name]}" for name in different]
        if changes:
            raise ValueError(
                f"{folder} was begun with others: {', '.join(changes)}. Set them back, or remove the folder, or write "
                "elsewhere"
            )


class ShardEntry(NamedTuple):
    """A shard as the manifest names it."""

    name: str
    pictures: int
    bytes: int
    digest: str  # of `data.code_shards.Header`


class Manifest(NamedTuple):
    """What a whole folder holds.

    Attributes:
        recipe: what it was made by.
        source: the pictures, in words.
        captions: how many in all.
        bare: as in `data.code_shards.Header`, of all shards.
        shards: in their order.
    """

    recipe: Recipe
    source: str
    captions: int
    bare: tuple[int, str | None]
    shards: tuple[ShardEntry, ...]

    def shape(self, entry: ShardEntry) -> tuple[int, int, int, int]:
        """(N, K, h, w), of the codes of a shard."""
        return entry.pictures, self.recipe.crops, *self.recipe.grid_size


def shard_name(number: int) -> str:
    return f"{number:06}.safetensors"


def write_recipe(folder: Path, recipe: Recipe, source: str) -> None:
    write_file(folder / RECIPE, _to_json(recipe.said() | {"source": source}))


def read_recipe(folder: Path) -> tuple[Recipe, str]:
    """What `write_recipe` wrote. Raises ValueError naming the file where it is damaged."""
    path = folder / RECIPE
    content = _read(path)
    try:
        return _recipe(content), str(content["source"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    content = {"kind": KIND} | manifest.recipe.said()
    content |= {"source": manifest.source, "captions": manifest.captions, "bare": manifest.bare}
    content |= {"shards": [entry._asdict() for entry in manifest.shards]}
    write_file(folder / MANIFEST, _to_json(content))


def read_manifest(folder: Path) -> Manifest:
    """What `write_manifest` wrote. Raises ValueError naming the file where it is missing, foreign or damaged."""
    path = folder / MANIFEST
    content = _read(path)
    try:
        if content["kind"] != KIND:
            raise ValueError(f"kind is {content['kind']!r}, expected {KIND!r}")
        bare, first = content["bare"]
        manifest = Manifest(
            _recipe(content),
            str(content["source"]),
            int(content["captions"]),
            (int(bare), first),
            tuple(ShardEntry(**_typed(entry)) for entry in content["shards"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no manifest of codes: {error!r}") from error
    pictures, count = sum(entry.pictures for entry in manifest.shards), manifest.recipe.count
    if pictures != count:
        raise ValueError(f"{path}: its shards hold {pictures} pictures, but count is {count}")
    return manifest


def _recipe(content: dict[str, Any]) -> Recipe:
    known = [field.name for field in dataclasses.fields(Recipe) if field.name in content or field.name not in ADDED]
    fields = {name: content[name] for name in known}
    height, width = fields.pop("grid_size")
    numbers = {name: fields[name] for name in fields.keys() - TEXTS} | {"h": height, "w": width}
    wrong = {name: value for name, value in numbers.items() if type(value) is not int}
    wrong |= {name: fields[name] for name in fields.keys() & TEXTS if not isinstance(fields[name], str)}
    if wrong:
        raise TypeError(f"expected whole numbers, and texts for {', '.join(sorted(TEXTS))}, got {wrong}")
    return Recipe(**fields, grid_size=(height, width))


def _typed(entry: dict[str, Any]) -> dict[str, Any]:
    """A shard's entry; its name is one that we give, so that it leads nowhere else."""
    if entry["name"] != Path(entry["name"]).name or {type(entry["pictures"]), type(entry["bytes"])} != {int}:
        raise ValueError(f"{entry} names no shard")
    return entry


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    return read_object(path)


def _to_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
