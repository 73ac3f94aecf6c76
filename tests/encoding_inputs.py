"""What tests of encoding encode: a small tokenizer, drawings, a folder, and the codes that come of them."""

from functools import cache
from pathlib import Path

import torch
from PIL import Image

from data.codes import CodesSource
from data.shapes import ShapesConfig, ShapesSource
from data.transforms import evaluation_crop
from vqvae.config import DiscreteVAEConfig
from vqvae.model import DiscreteVAE

SIZE = 16


@cache
def tokenizer() -> DiscreteVAE:
    """4 x 4 codes of 50 for 16 x 16 pixels; weights so large that what it sees decides, and not its biases."""
    torch.manual_seed(0)
    config = DiscreteVAEConfig(
        image_size=SIZE, n_hid=8, n_init=8, n_groups=3, n_blk_per_group=1, codebook_size=50, post_gain=1.0
    )
    model = DiscreteVAE(config).eval()
    for weight in model.encoder.parameters():
        weight.data *= 3 if weight.ndim > 1 else 1
    return model


def drawings(count: int = 11) -> ShapesSource:
    return ShapesSource(ShapesConfig(size=24, count=count))


def folder_of(path: Path, count: int = 6) -> Path:
    """Oblong pictures of noise, two captions each, splits in the table."""
    path.mkdir()
    rows = ["file_name,text,split"]
    for i in range(count):
        noise = torch.randint(256, (20 + i, 30, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(path / f"{i}.png")
        split = ("train", "train", "val", "test")[i % 4]
        rows += [f"{i}.png,picture {i},{split}", f'{i}.png,"Nummer {i}, größer",{split}']
    (path / "captions.csv").write_text("\n".join(rows), encoding="utf-8")
    return path


def expected_codes(source: object) -> torch.Tensor:
    """One picture at a time, without any of the code under test."""
    return torch.cat([tokenizer().encode(evaluation_crop(source.image(i), SIZE)[None]) for i in range(len(source))])


def codes_in(source: CodesSource) -> torch.Tensor:
    return torch.stack([source.codes(i) for i in range(len(source))])


def rows_of(source: object) -> list[tuple]:
    return [(source.key(i), source.captions(i), source.split(i)) for i in range(len(source))]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
