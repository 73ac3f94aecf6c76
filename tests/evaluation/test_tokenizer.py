"""evaluate.py tokenizer on tiny models and random weights of the networks that judge."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from data.filters import NothingLeft
from data.folder import FolderSource
from data.shards.packing import pack
from evaluate import evaluate
from tests.test_metrics import Means
from vqvae.config import DiscreteVAEConfig
from vqvae.lpips import LPIPS, file_name
from vqvae.model import DiscreteVAE
from vqvae.palette import Palette, PaletteConfig


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """20 of 40x48 pixels in train/ and test/; their middle squares are of 32 pixels' worth of colours."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, n in {"train": 12, "test": 8}.items():
        (folder / split).mkdir()
        for i in range(n):
            values = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
            Image.fromarray(values).resize((48, 40), Image.BILINEAR).save(folder / split / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def palette(tmp_path_factory):
    folder = tmp_path_factory.mktemp("palette")
    pixels = torch.rand(3000, 3, generator=torch.Generator().manual_seed(0))
    Palette.fit(PaletteConfig(image_size=32, codebook_size=64), pixels, steps=5).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    """Arguments that name an LPIPS and an Inception network."""
    folder = tmp_path_factory.mktemp("judges")
    save_file(LPIPS("alex").state_dict(), folder / file_name("alex"), metadata={"kind": "lpips", "net": "alex"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Means()).save(folder / "means.pt")
    return [f"--lpips={folder}", f"--inception={folder / 'means.pt'}"]


pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*")


def test_all_figures(pictures, palette, judges, tmp_path, capsys):
    out = tmp_path / "out"
    args = ["tokenizer", f"--model={palette}", f"--data={pictures}", f"--out={out}", "--batch_size=3", *judges]
    report = evaluate(args)
    assert report == json.loads((out / "report.json").read_text())
    model = Palette.from_pretrained(palette / "model")
    assert report["pictures"] == 20
    assert report["lpips_net"] == "alex"
    for name in ("psnr", "ssim", "lpips", "rfid", "kid"):
        assert report[name]["low"] <= report[name]["value"] <= report[name]["high"], name
    assert report["bits_per_pixel"] == math.log2(64)
    assert report["tokens"] == 32 * 32
    assert report["entropy_bits_per_pixel"] == report["entropy_bits"] <= 6
    assert 1 <= report["perplexity"] <= report["codes_used"] <= 64
    assert report["usage"] == report["codes_used"] / 64
    assert report["encode_images_per_s"] > 0
    # The worst come first, and are named.
    worst = [entry["psnr"] for entry in report["worst"]]
    assert worst == sorted(worst)
    assert len(worst) == 20
    key = report["worst"][0]["key"]
    picture = Image.open(pictures / key).convert("RGB").crop((4, 0, 44, 40)).resize((32, 32), Image.BOX)
    image = torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None] / 255
    error = (model.decode(model.encode(image)) - image).square().mean()
    assert worst[0] == pytest.approx(-10 * math.log10(error), abs=0.3)  # resized a little otherwise
    assert Image.open(out / "worst.png").width > 8 * 32
    said = capsys.readouterr().out
    assert "20 pictures of 32 pixels (every split, what it was trained on too)" in said
    assert "20 pictures of 32 pixels (every split, what it was trained on too)" in said
    for label in ("PSNR", "SSIM", "LPIPS", "rFID", "KID x 1000", "codes used", "rate"):
        assert label in said


def test_a_discrete_vae_in_bf16_on_one_split(pictures, tmp_path):
    config = DiscreteVAEConfig(image_size=16, n_hid=8, n_init=8, n_groups=3, n_blk_per_group=1, codebook_size=32)
    DiscreteVAE(config).save_pretrained(tmp_path / "model")
    args = [f"--model={tmp_path}", f"--data={pictures}", f"--out={tmp_path / 'out'}", "--split=test", "--bf16=true"]
    report = evaluate(["tokenizer", *args])
    assert report["pictures"] == 8
    assert report["tokens"] == 16
    assert report["bits_per_pixel"] == 16 * 5 / 256
    assert all(entry["key"].startswith("test/") for entry in report["worst"])
    assert "lpips" not in report
    assert report["lpips_net"] is None
    assert "rfid" not in report


def test_shards_and_filters(pictures, palette, tmp_path):
    """Shards are measured as the folder that they were packed from; what filters leave out is not measured."""
    pack(FolderSource(pictures, need_captions=False), tmp_path / "shards", size=7)
    values = {}
    for data in (f"--data={pictures}", f"--shards={tmp_path / 'shards'}"):
        args = [f"--model={palette}", data, f"--out={tmp_path / 'out'}", "--split=test"]
        values[data] = {name: evaluate(["tokenizer", *args])[name] for name in ("pictures", "psnr")}
    folder, shards = values.values()
    assert shards["pictures"] == folder["pictures"] == 8
    assert shards["psnr"]["value"] == pytest.approx(folder["psnr"]["value"])
    with pytest.raises(NothingLeft):
        evaluate(["tokenizer", *args, "--filters.max_aspect_ratio=1.1"])
    assert json.loads((tmp_path / "out-rejects.json").read_text())["filtered"] == 20


def test_drawings_evenly_spread(palette, tmp_path):
    args = [f"--model={palette}", f"--out={tmp_path / 'out'}", "--drawings.count=30", "--drawings.size=32"]
    assert evaluate(["tokenizer", *args, "--count=7"])["pictures"] == 7


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "exactly one of data, drawings, shards; got none"),
        (
            ["--data={pictures}", "--split=val"],
            r"0 pictures of split val \(12 of train, 0 of val, 8 of test\)",
        ),
        (["--data={pictures}", "--split=dev"], "split is 'dev', expected train, val or test"),
        (["--data={pictures}", "--count=1"], "count is 1, expected at least 2"),
        (["--data={pictures}", "--lpips=nowhere"], r"no file nowhere/lpips-alex.safetensors"),
        (["--data={pictures}", "--inception=nowhere"], "no file nowhere: rFID and KID need"),
        (["--drawings.count=9", "--drawings.size=16"], "drawings.size=16, expected at least image_size=32"),
        (["--data={pictures}", "--device=cuda:99"], "cuda:99"),
    ],
)
def test_mistakes_leave_nothing(pictures, palette, tmp_path, args, said):
    args = [arg.format(pictures=pictures) for arg in args]
    with pytest.raises(ValueError, match=said):
        evaluate(["tokenizer", f"--model={palette}", f"--out={tmp_path / 'out'}", *args])
    assert not (tmp_path / "out").exists()


def test_what_is_too_small_or_in_the_way(pictures, palette, judges, tmp_path):
    Palette(PaletteConfig(image_size=5, codebook_size=4)).save_pretrained(tmp_path / "five")
    Palette(PaletteConfig(image_size=16, codebook_size=4)).save_pretrained(tmp_path / "sixteen")
    (tmp_path / "file").write_text("x")
    for args, said in (
        ([f"--model={tmp_path / 'five'}", f"--out={tmp_path / 'out'}"], "have 5 pixels a side, these .* at least 6"),
        ([f"--model={tmp_path / 'sixteen'}", f"--out={tmp_path / 'out'}", judges[0]], "16 pixels .* at least 32"),
        ([f"--model={palette}", f"--out={tmp_path / 'file'}"], "file is a file, expected a folder"),
    ):
        with pytest.raises(ValueError, match=said):
            evaluate(["tokenizer", f"--data={pictures}", *args])


def test_the_folder_one_stands_in(pictures, palette, tmp_path, monkeypatch):
    (tmp_path / "report").mkdir()
    monkeypatch.chdir(tmp_path / "report")
    evaluate(["tokenizer", f"--model={palette}", f"--data={pictures}", "--split=test", "--out=."])
    of_pictures = {"report-rejects.json", "report-rejects-scan.safetensors"}
    assert {path.name for path in tmp_path.rglob("*.*")} == {"report.json", "worst.png", *of_pictures}


def test_a_model_that_is_not_there(pictures, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        evaluate(["tokenizer", "--model=nowhere", f"--data={pictures}", f"--out={tmp_path / 'out'}"])
