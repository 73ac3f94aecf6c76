"""Completion and variations: some tokens of a given picture stay, the others are drawn.

    from completion import open_original

    original = open_original(pipeline, "cat.jpg", keep_rows=128)  # or mask="mask.png", or strength=0.3
    pictures = pipeline("a tabby cat", n=4, given=original)

As everywhere, the picture's middle square is taken, resized and encoded. What stays are tokens: the kept part of a
result is the image tokenizer's reconstruction, and its pixels are not the picture's own. Tokens are drawn in raster
order, each knowing those before it, given or drawn, and none behind it. First rows are thus honoured in full; what lies
before a kept region is drawn without knowing of it.

Shapes: B batch, h w token grid.
"""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.opening import check_one_given
from data.pictures import load_picture
from data.transforms import middle_square
from pipeline import TextToImage
from transformer.decoding import UNKNOWN
from transformer.noise import uniform_noise

WHITE = 128  # from here on a mask's grey counts as white
MASK_MODES = ("1", "L", "RGB")


class Place(NamedTuple):
    """Where the tokens of a picture lie in it."""

    picture_size: tuple[int, int]
    """(width, height) in pixels."""
    image_size: int
    """Pixels a side of what its middle square becomes."""
    grid_size: tuple[int, int]


class Rule(Protocol):
    """Says which tokens are to be kept."""

    def keep(self, place: Place, seeds: Tensor) -> Tensor:
        """Of pictures with int64 seeds (B,), on the CPU: bool (B, h, w), True where a token stays."""

    def notes(self, place: Place) -> list[str]:
        """What comes of it, in sentences. Raises ValueError where it does not fit or leaves nothing to draw."""

    @property
    def settings(self) -> dict[str, Any]:
        """What fixes it, in values that JSON has."""


@dataclass(frozen=True)
class FirstRows:
    """Keeps the tokens whose pixels all lie in the first `rows` rows of the resized square.

    Raises ValueError for less than 1 row.
    """

    rows: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"{self.rows} rows of pixels are to be kept, expected at least 1")

    def keep(self, place: Place, seeds: Tensor) -> Tensor:
        height, width = place.grid_size
        kept = torch.arange(height) < self._token_rows(place)
        return kept[:, None].expand(len(seeds), height, width)

    def notes(self, place: Place) -> list[str]:
        if self.rows > place.image_size:
            raise ValueError(f"{self.rows} rows of pixels are to be kept, but pictures have {place.image_size}")
        of_tokens = place.image_size // place.grid_size[0]
        if self.rows < of_tokens:
            raise ValueError(
                f"{self.rows} rows of pixels are to be kept, expected at least {of_tokens}, a row of tokens' number"
            )
        used = self._token_rows(place) * of_tokens
        shorter = f"of the {self.rows} rows of pixels asked for, the first {used} are whole rows of tokens"
        return ([] if used == self.rows else [shorter]) + _notes_of_region(self.keep(place, torch.zeros(1))[0])

    @property
    def settings(self) -> dict[str, Any]:
        return {"use": "completion", "keep_rows": self.rows}

    def _token_rows(self, place: Place) -> int:
        return self.rows * place.grid_size[0] // place.image_size


@dataclass(frozen=True)
class Unmasked:
    """Keeps the tokens of which every pixel is black in a mask; what is white is drawn.

    The mask has the shape of the picture, or is a square that stands for the picture's middle square; how many pixels,
    does not matter. A token is drawn if a white pixel touches it, though by an edge. White is what is nearer to white.

    Raises ValueError for a mask of another mode than 1, L or RGB. `data.pictures.load_picture` gives RGB of any file,
    and what is transparent becomes white.
    """

    mask: Image.Image
    file: dict[str, str] = field(default_factory=dict)
    """What `settings` are to say of it."""
    _kept: dict[Place, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    """bool (h, w), by place: a mask of a photograph takes as long as some codes do."""

    def __post_init__(self) -> None:
        if self.mask.mode not in MASK_MODES:
            raise ValueError(f"the mask's mode is {self.mask.mode}, expected one of {', '.join(MASK_MODES)}")

    def keep(self, place: Place, seeds: Tensor) -> Tensor:
        if place not in self._kept:
            self._kept[place] = self._untouched(place)
        return self._kept[place].expand(len(seeds), -1, -1)

    def _untouched(self, place: Place) -> Tensor:
        """bool (h, w), True where no white pixel touches a token."""
        rows, columns = self._edges(place)
        white = np.asarray(self.mask.convert("L")) >= WHITE  # (H, W)
        return torch.from_numpy(~_any_between(_any_between(white, *rows).T, *columns).T)

    def notes(self, place: Place) -> list[str]:
        return _notes_of_region(self.keep(place, torch.zeros(1))[0])

    @property
    def settings(self) -> dict[str, Any]:
        return {"use": "completion"} | self.file

    def _edges(self, place: Place) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Of the rows and of the columns of tokens: where they begin and end in the mask, in pixels."""
        (width, height), (rows, columns) = self.mask.size, place.grid_size
        left, top, side = middle_square(place.picture_size)
        if width == height:
            return _edges(rows, 0, 1, 1, height), _edges(columns, 0, 1, 1, width)
        if not _same_shape(self.mask.size, place.picture_size):
            raise ValueError(
                f"the mask is {width}x{height}, expected a square or the shape of the picture, which is "
                f"{place.picture_size[0]}x{place.picture_size[1]}"
            )
        return (
            _edges(rows, top, side, place.picture_size[1], height),
            _edges(columns, left, side, place.picture_size[0], width),
        )


@dataclass(frozen=True)
class Variation:
    """Redraws each token with the probability `strength`: 0 gives the reconstruction, 1 forgets the picture.

    Put otherwise, each token is drawn from a mixture of the picture's own (1 - strength) and the prior's (strength).
    Which ones are redrawn is a function of the seed; those of one strength are so at every larger one. A redrawn token
    knows of the kept ones before it only, so that much strength leaves spots of the picture in another one.

    Raises ValueError for a strength outside of [0, 1].
    """

    strength: float

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}, expected 0 to 1")

    def keep(self, place: Place, seeds: Tensor) -> Tensor:
        noise = uniform_noise(seeds, math.prod(place.grid_size))  # never 0 or 1
        return (noise > self.strength).unflatten(1, place.grid_size)

    def notes(self, place: Place) -> list[str]:
        return []

    @property
    def settings(self) -> dict[str, Any]:
        return {"use": "variation", "strength": self.strength}


@dataclass(frozen=True)
class Original:
    """A picture of which some tokens stay: the argument `given` of TextToImage."""

    tokens: Tensor
    """int64 (h, w), on the CPU."""
    place: Place
    rule: Rule
    file: dict[str, str] = field(default_factory=dict)
    """What `settings` are to say of the picture."""

    @classmethod
    def of(
        cls, pipeline: TextToImage, picture: Image.Image, rule: Rule, file: dict[str, str] | None = None
    ) -> "Original":
        """Encodes a picture of mode RGB and any size.

        Raises ValueError for another mode, and for a rule that does not fit the picture or leaves nothing to draw.
        """
        tokenizer = pipeline.image_tokenizer
        place = Place(picture.size, tokenizer.config.image_size, tuple(tokenizer.grid_size))
        rule.notes(place)  # raises
        return cls(pipeline.encode(picture).cpu(), place, rule, file or {})

    @property
    def notes(self) -> list[str]:
        """What the user may want to know: what is kept, and what raster order cannot honour."""
        size, (width, height) = self.place.image_size, self.place.picture_size
        small = [f"the picture is {width}x{height} pixels, enlarged to {size}x{size}"]
        return (small if min(width, height) < size else []) + self.rule.notes(self.place)

    @property
    def settings(self) -> dict[str, Any]:
        """What a picture is a function of besides the usual, in values that JSON has."""
        return self.rule.settings | self.file

    def __call__(self, seeds: Tensor) -> Tensor:
        """What pictures with int64 seeds (B,) are given: int64 (B, h, w) on the CPU, UNKNOWN where they are drawn."""
        return self.tokens.where(self.rule.keep(self.place, seeds.cpu()), UNKNOWN)


def open_original(
    pipeline: TextToImage,
    picture: str | Path,
    *,
    keep_rows: int | None = None,
    mask: str | Path | None = None,
    strength: float | None = None,
) -> Original:
    """The picture in a file, with one of the three rules; its `settings` name the files and hashes of them.

    Raises ValueError unless exactly one rule is given, for files that are no pictures (PictureError), and as
    `Original.of` and the rules do.
    """
    check_one_given(keep_rows=keep_rows, mask=mask, strength=strength)
    if mask is not None:
        rule: Rule = Unmasked(load_picture(mask), _named("mask", mask))
    else:
        rule = Variation(strength) if keep_rows is None else FirstRows(keep_rows)
    return Original.of(pipeline, load_picture(picture), rule, _named("picture", picture))


def _named(name: str, path: str | Path) -> dict[str, str]:
    digest = hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()
    return {name: Path(path).name, f"{name}_hash": digest}


def drawn_unaware(keep: Tensor) -> int:
    """How many tokens of a picture, bool (h, w), are drawn before one that is kept, and so do not know of it."""
    kept = keep.flatten().nonzero()
    return int((~keep.flatten()[: kept[-1]]).sum()) if len(kept) else 0


def _notes_of_region(keep: Tensor) -> list[str]:
    of, kept, unaware = keep.numel(), int(keep.sum()), drawn_unaware(keep)
    if kept == of:
        raise ValueError(f"all {of:,} tokens of the picture are to be kept, expected at least 1 to draw")
    if kept == 0:
        return [f"no token of the picture is kept whole: all {of:,} are drawn, as without it"]
    notes = [f"{kept:,} of {of:,} tokens are kept"]
    if unaware:
        notes.append(f"{unaware:,} of the {of - kept:,} drawn come before kept ones in raster order, unaware of them")
    return notes


def _any_between(values: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """bool (N, M) -> bool (parts, M): whether any is True from the row where a part begins to before the one where it
    ends."""
    return np.stack([values[begin:end].any(axis=0) for begin, end in zip(begins, ends, strict=True)])


def _same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one is the other at another scale, its sides rounded to whole pixels: off by half of a pixel each."""
    (width, height), (of_width, of_height) = size, other
    return abs(width * of_height - height * of_width) < max(*size, *other)


def _edges(parts: int, first: int, side: int, whole: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Begins and ends of equal parts of the `side` pixels from `first` on, of `whole`, where these are `length` pixels:
    int64 (parts,) each, rounded outwards."""
    edges = (first * parts + side * np.arange(parts + 1)) * length
    return edges[:-1] // (whole * parts), -(-edges[1:] // (whole * parts))
