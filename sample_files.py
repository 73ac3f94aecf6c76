"""The files of a sampling: what pictures are called, what their metadata say, which are there already, the grid and the
list of them all."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from grids import captioned_grid, save_png
from transformer.sampling import SamplingConfig
from transformer.serving import Weights
from whole_files import write_object

SLUG_LENGTH = 60
GRID_PICTURES = 256  # at most; the JSON file lists all
SHORT = {  # settings in a file's name; a schedule's own name says what it is
    "temperature": "t",
    "top_k": "k",
    "top_p": "p",
    "min_p": "m",
    "guidance_scale": "g",
    "guidance_schedule": "",
}
LIKELIHOODS = "likelihoods"  # in a picture's metadata
FILES = ("picture", "mask")  # in an original's settings, names of files: their hashes count


@dataclass(frozen=True)
class Sample:
    """What a picture is a function of."""

    caption: str
    seed: int
    config: SamplingConfig
    model: str
    """The pipeline's fingerprint."""
    original: Mapping[str, Any] | None = None
    """Of a picture that goes on from another one, completion.Original's settings."""
    weights: Weights = "float32"
    """What the prior's weights were kept as."""

    @property
    def name(self) -> str:
        """A file name: the same for the same picture, another one for another picture."""
        usual = SamplingConfig()
        changed = {name: value for name, value in asdict(self.config).items() if value != getattr(usual, name)}
        settings = [f"{SHORT[name]}{value}" for name, value in changed.items()]
        if self.original is not None:
            content = {name: value for name, value in self.original.items() if name not in FILES}
            settings.append(f"of{_digest(json.dumps(content))}")
        if self.weights != Sample.weights:  # the usual ones
            settings.append(self.weights)
        return "_".join([slug(self.caption), f"seed{self.seed}", *settings, self.model[:8]]) + ".png"

    @property
    def shared(self) -> dict[str, Any]:
        """All but caption and seed, which other pictures of the same call have too."""
        original = {} if self.original is None else {"original": self.original}
        return {"model": self.model, "weights": self.weights, "settings": asdict(self.config)} | original

    @property
    def metadata(self) -> dict[str, str]:
        return {"caption": self.caption, "seed": str(self.seed)} | _as_text(self.shared)

    def is_in(self, folder: Path, *, weighed: bool = False) -> bool:
        """Whether its file is there, whole, and says that it is of this caption, seed, settings and model; and, where
        it is to be weighed, its likelihoods."""
        try:
            with Image.open(folder / self.name) as picture:
                picture.verify()  # the checksums up to the file's end; pixels are not decoded
                found = {"weights": Sample.weights} | picture.info  # which files of earlier versions do not say
                return self.metadata.items() <= found.items() and (not weighed or LIKELIHOODS in picture.info)
        except (OSError, SyntaxError):  # the latter is Pillow's for damaged files
            return False

    def save(self, picture: Image.Image, folder: Path, likelihoods: Sequence[float] | None = None) -> None:
        """Writes its picture; a file is there whole or not at all."""
        weighed = {} if likelihoods is None else {LIKELIHOODS: json.dumps([round(nats, 4) for nats in likelihoods])}
        save_png(picture, folder / self.name, self.metadata | weighed)

    def likelihoods(self, folder: Path) -> list[float]:
        """Those that it was saved with."""
        with Image.open(folder / self.name) as picture:
            return json.loads(picture.info[LIKELIHOODS])


@dataclass(frozen=True)
class Samples:
    """Samples to be drawn, those of one caption one after the other."""

    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def share(self, rank: int, world_size: int) -> "Samples":
        """What the device `rank` of `world_size` draws: every world_size-th caption, each with all its samples."""
        captions = [list(group) for _, group in groupby(self.samples, key=lambda sample: sample.caption)]
        return Samples([sample for group in captions[rank::world_size] for sample in group])


@dataclass(frozen=True)
class Ranking:
    """How pictures were chosen."""

    about: Mapping[str, Any]
    """By what, and how many of how many."""
    scores: Sequence[float]
    """Of those that were."""


def slug(caption: str) -> str:
    """A caption as part of a file name: no two captions have the same one.

    Where lower-case words and dashes do not say everything, a hash of the caption follows after two dashes. It begins
    with a letter or a digit: what begins with a dash is an option to many programs.
    """
    plain = unicodedata.normalize("NFKD", caption).encode("ascii", "ignore").decode().lower()
    words = "-".join(re.findall("[a-z0-9]+", plain))
    if words and words.replace("-", " ") == caption and len(words) <= SLUG_LENGTH:
        return words
    return f"{words[:SLUG_LENGTH] or 'caption'}--{_digest(caption)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def write_grid(samples: Sequence[Sample], folder: Path, ranking: Ranking | None = None) -> Path:
    """Writes a grid of the first GRID_PICTURES of samples whose pictures lie in the folder, at least one, and then the
    JSON file that lists them all; returns the grid's path."""
    shared = samples[0].shared  # by all
    listed = [{"file": sample.name, "caption": sample.caption, "seed": sample.seed} for sample in samples]
    chosen = {} if ranking is None else {"chosen": ranking.about}
    call = {**shared, **chosen, "pictures": listed}
    grid = folder / f"grid_{_digest(json.dumps(call))}.png"  # the same for the same call, another for another
    groups: dict[str, list[Image.Image]] = {}
    for sample in samples[:GRID_PICTURES]:
        with Image.open(folder / sample.name) as picture:
            groups.setdefault(sample.caption, []).append(picture.copy())
    about = {"captions": json.dumps(list(groups), ensure_ascii=False)} | _as_text(shared)
    save_png(captioned_grid(list(groups.items())), grid, about)
    if ranking is not None:
        listed = [each | {"score": score} for each, score in zip(listed, ranking.scores, strict=True)]
    write_object(grid.with_suffix(".json"), call | {"pictures": listed, "grid": grid.name})
    return grid


def _as_text(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
