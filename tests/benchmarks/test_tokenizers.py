"""The benchmark of tokenizers: that it runs, and that what it counts is right."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import tokenizers
from benchmarks.tokenizer_contestants import contestants, mean_colour
from benchmarks.tokenizer_plot import plot


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six of them, smooth."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, n in {"train": 3, "test": 3}.items():
        (folder / split).mkdir()
        for i in range(n):
            values = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
            Image.fromarray(values).resize((300, 280), Image.BICUBIC).save(folder / split / f"{i}.png")
    return folder


def test_it_runs(photos, tmp_path, capfd):
    out = tmp_path / "out.json"
    tokenizers.main(["--data", str(photos), "--quick", "--only", "ours: lfq", "--out", str(out)])
    result = json.loads(out.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    ours = rows["ours: lfq"]
    assert ours["bits_per_pixel"] == pytest.approx(10 / 64, rel=1e-3)
    assert ours["updates"] > 0
    assert 0 < ours["usage"] <= 1
    assert result["goals"] == {"usage": ours["usage"]}
    assert rows["palette of 8 colours"]["bits_per_pixel"] == 3
    for codec, lowest in {"JPEG": 1, "WEBP": 0}.items():
        of = [rows[f"{codec} quality {quality}"] for quality in (lowest, 20, 90)]
        assert of[0]["bits_per_pixel"] < of[1]["bits_per_pixel"] < of[2]["bits_per_pixel"]
        assert of[0]["mse"] > of[1]["mse"] > of[2]["mse"]
    assert rows["WEBP at equal bytes"]["bits_per_pixel"] <= 10 / 64 * 1.01
    assert rows["WEBP at equal bytes"]["too_large"] == 0
    assert "3 pictures to learn from, 3 to judge by" in capfd.readouterr().out
    plot(out, tmp_path / "plot.png")
    said = capfd.readouterr().out
    assert f"| ours: lfq | {ours['psnr']['value']:.2f} (" in said and "| palette of 8 colours | 3.000 | " in said
    assert Image.open(tmp_path / "plot.png").width > 500


def test_every_contestant_of_ours_learns_and_comes_back():
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name, make in contestants(8, 8, 1024).items():
        if not name.startswith("ours"):
            continue
        torch.manual_seed(0)
        contestant = make().train()
        contestant.loss(images, 0.5).backward()
        contestant.eval()
        indices = contestant.encode(images)
        assert indices.shape == (4, 8, 8), name
        assert contestant.decode(indices).shape == images.shape, name
        contestant.model(images)  # and its own codebook has the size that is counted
        assert contestant.model.codebook_size == 1024


def test_goals_by_hand():
    def row(name: str, mse: float, usage: float = 1.0) -> dict:
        return {"name": name, "mse": mse, "psnr": {"value": -10 * math.log10(mse)}, "usage": usage}

    rows = [row("ours: a", 0.01, 0.9), row("ours: b", 0.02), row("dalle-pytorch: x", 0.04)]
    rows += [row("dalle-pytorch: y", 0.05), row("vqp: a", 0.1), row("vqp: b", 0.02), row("vqp by Muon: b", 0.005)]
    assert tokenizers.goals(rows) == {
        "usage": 0.9,
        "error over DALLE-pytorch": pytest.approx(0.25),
        "dB over the best library variant": pytest.approx(10 * math.log10(2)),
        "dB over the best library variant by Muon too": pytest.approx(-10 * math.log10(2)),
    }


def test_what_a_row_says():
    pictures = torch.randint(256, (2, 3, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = pictures.float() / 255
    row = tokenizers.judged("x", pictures, mean_colour(images), 0.5)
    shown = (mean_colour(images) * 255).round() / 255
    assert row["mse"] == pytest.approx((images - shown).square().mean().item(), rel=1e-4)
    assert tokenizers.judged("x", pictures, images, 0.5)["psnr"]["value"] == 100


def test_crops_are_parts_of_the_pictures():
    """Of a picture whose channels say where a pixel is."""
    places = torch.stack(torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij"))
    pictures = torch.cat([places, torch.zeros(1, 256, 256)]).to(torch.uint8).expand(2, 3, 256, 256)
    found = (255 * tokenizers.crops(pictures, 20, torch.Generator().manual_seed(0))).round()
    assert found.shape == (20, 3, 64, 64)
    for y, x, _ in found:
        assert torch.equal(y, y[0, 0] + torch.arange(64.0)[:, None].expand(64, 64))
        assert torch.equal(x, x[:1].expand(64, 64))
        assert (x[0].diff() == (1 if x[0, 0] < x[0, -1] else -1)).all()
    assert len({crop[0, 0, 0].item() for crop in found}) > 10
    assert len({bool(crop[1, 0, 0] < crop[1, 0, -1]) for crop in found}) == 2
