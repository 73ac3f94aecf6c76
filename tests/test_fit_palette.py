import json

import numpy as np
import pytest
import torch
from PIL import Image

from encode import encode
from fit_palette import fit_palette
from pipeline import TextToImage
from tests.data.shards.tars import picture, sample, write_tar
from tests.runs import MARKS, fit
from vqvae.palette import Palette

pytestmark = MARKS

DRAWINGS = ["--drawings.count=40", "--drawings.size=32"]


def test_the_prior_learns_and_draws_pixels(tmp_path, capsys):
    """From drawings to a palette, codes, a prior and a picture, each by its script, as with any tokenizer."""
    palette, codes = tmp_path / "palette", tmp_path / "codes"
    fit_palette([*DRAWINGS, "--image_size=8", "--codebook_size=16", f"--out={palette}"])
    assert "16 colours of 2,496" in capsys.readouterr().out  # 64 pixels each of 40 pictures but one, which is held out
    encode(["--tokenizer", str(palette), *DRAWINGS, f"--out={codes}", "--workers=0"])
    for name, source in {"codes": [f"--data.codes={codes}", "--data.drawings=null"], "pictures": []}.items():
        run = fit("prior", tmp_path / name, f"--tokenizer={palette}", *source)
        pipeline = TextToImage.from_pretrained(run / "model")
        assert isinstance(pipeline.image_tokenizer, Palette)
        (picture,) = pipeline("a red circle")
        assert picture.size == (8, 8)
        colours = {tuple((255 * c).round().int().tolist()) for c in pipeline.image_tokenizer.colours}
        assert set(map(tuple, np.asarray(picture).reshape(-1, 3).tolist())) <= colours


def test_a_folder_of_pictures_and_what_is_said_of_bad_ones(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(30):
        values = torch.randint(256, (20, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        Image.fromarray(values.numpy()).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    fit_palette([f"--folder={folder}", "--image_size=8", "--codebook_size=10", f"--out={tmp_path / 'out'}"])
    assert Palette.from_pretrained(tmp_path / "out").codebook_size == 10
    assert "broken.png" in (tmp_path / "out-rejects.json").read_text()


def test_shards_give_the_palette_of_what_filters_leave_of_them(tmp_path):
    """Of twenty pictures of a colour each, the darkest is so wide that a filter leaves it out."""
    wide = ("000000003.png", picture(3, size=(60, 8)))
    write_tar(tmp_path / "a.tar", [wide, *(sample(n)[0] for n in range(100, 119))])
    args = [f"--shards={tmp_path / 'a.tar'}", "--image_size=4", "--codebook_size=18"]
    for name, filters in {"all": [], "square": ["--filters.max_aspect_ratio=2"]}.items():
        fit_palette([*args, *filters, "--val_fraction=0", f"--out={tmp_path / name}"])
    reds = [
        (255 * Palette.from_pretrained(tmp_path / name).colours[:, 0]).round().min().item()
        for name in ("all", "square")
    ]
    assert reds == [3, 100]
    assert json.loads((tmp_path / "square-rejects.json").read_text())["filtered"] == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "exactly one of folder, drawings, shards; got none"),
        ([*DRAWINGS, "--codebook_size=1"], "codebook_size is 1, expected a whole number of at least 2"),
        ([*DRAWINGS, "--image_size=64"], "drawings.size=32, expected at least image_size=64"),
        (["--folder=nowhere"], "nowhere"),
        ([*DRAWINGS, "--image_size=8", "--codebook_size=99999"], "fewer than the 99999 asked for"),
        ([*DRAWINGS, "--wrong=3"], "wrong"),
    ],
)
def test_mistakes(tmp_path, args, said):
    with pytest.raises(ValueError, match=said):
        fit_palette([*args, f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_left_alone(tmp_path):
    with pytest.raises(ValueError, match="exists already"):
        fit_palette([*DRAWINGS, f"--out={tmp_path}"])
