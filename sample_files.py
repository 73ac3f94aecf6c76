"""The files of a sampling: what pictures are called, what their metadata say, the grid and the list of them all."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from grids import captioned_grid, save_png
from transformer.sampling import SamplingConfig

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


@dataclass(frozen=True)
class Sample:
    """A picture and what it is a function of; `model` is the pipeline's fingerprint."""

    picture: Image.Image
    caption: str
    seed: int
    config: SamplingConfig
    model: str

    @property
    def name(self) -> str:
        """A file name: the same for the same picture, another one for another picture."""
        usual = SamplingConfig()
        changed = {name: value for name, value in asdict(self.config).items() if value != getattr(usual, name)}
        settings = [f"{SHORT[name]}{value}" for name, value in changed.items()]
        return "_".join([slug(self.caption), f"seed{self.seed}", *settings, self.model[:8]]) + ".png"

    @property
    def metadata(self) -> dict[str, str]:
        settings = json.dumps(asdict(self.config))
        return {"caption": self.caption, "seed": str(self.seed), "settings": settings, "model": self.model}


def slug(caption: str) -> str:
    """A caption as part of a file name: no two captions have the same one.

    Where lower-case words and dashes do not say everything, a hash of the caption follows after two dashes.
    """
    plain = unicodedata.normalize("NFKD", caption).encode("ascii", "ignore").decode().lower()
    words = "-".join(re.findall("[a-z0-9]+", plain))
    if words.replace("-", " ") == caption and len(words) <= SLUG_LENGTH:
        return words
    return f"{words[:SLUG_LENGTH]}--{_digest(caption)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def write(samples: Iterable[Sample], folder: Path) -> Path:
    """Writes each sample as it comes, at least one, then a grid of the first GRID_PICTURES and, last, the JSON file
    that lists them all; returns the grid's path."""
    listed: list[dict[str, str | int]] = []
    groups: dict[str, list[Image.Image]] = {}
    for sample in samples:
        save_png(sample.picture, folder / sample.name, sample.metadata)
        listed.append({"file": sample.name, "caption": sample.caption, "seed": sample.seed})
        if len(listed) <= GRID_PICTURES:
            groups.setdefault(sample.caption, []).append(sample.picture)
    model, settings = sample.model, asdict(sample.config)  # of the last; all have the same
    content = {"model": model, "settings": settings, "pictures": listed}
    grid = folder / f"grid_{_digest(json.dumps(content))}.png"  # the same for the same call, another for another
    about = {"captions": json.dumps(list(groups), ensure_ascii=False), "settings": json.dumps(settings), "model": model}
    save_png(captioned_grid(list(groups.items())), grid, about)
    manifest = grid.with_suffix(".json")
    beside = manifest.with_name(f".{manifest.name}.part")
    beside.write_text(json.dumps(content | {"grid": grid.name}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(manifest)
    return grid
