"""The comparison of blocks, with a clock on which every step takes a second."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from benchmarks import blocks
from benchmarks.plot import COLOURS, draw_curves
from data.codes import CodesWriter

SETTINGS = ["--preset=tiny", "--batch-size=4", "--text-len=6", "--minutes=0.1", "--slice=2"]  # 6 steps each, in 3 turns


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(blocks, "time", SimpleNamespace(perf_counter=itertools.count().__next__))


@pytest.fixture
def codes(tmp_path):
    """24 pictures of one code each, named in their caption."""
    folder = tmp_path / "codes"
    with CodesWriter(folder, "0123456789abcdef", codebook_size=4, grid_size=(2, 3)) as writer:
        for index in range(24):
            code = index % 4
            split = "val" if index < 8 else "train"
            writer.add([str(index)], [[f"the colour {code}"]], [split], torch.full((1, 2, 3), code))
    return folder


def test_both_train_for_the_same_time_and_are_recorded(codes, tmp_path, capsys):
    out = tmp_path / "results" / "blocks.json"
    blocks.main([*SETTINGS, "--lr=3e-4", f"--codes={codes}", f"--out={out}"])
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert result.keys() >= {"date", "commit", "hardware", "threads", "python", "torch", "settings", "precision"}
    assert result["data"]["training_pictures"] == 16
    assert result["blocks"].keys() == {"paper", "modern"}
    for block in result["blocks"].values():
        assert [point[:2] for point in block["curve"]] == [[0, 0], [2, 2], [4, 4], [6, 6]]
        assert block["curve"][-1][2] == block["val_loss_image"] < block["curve"][0][2]
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.size == (640, 400)


def test_turns_alternate_on_the_same_batches_dropped_captions_and_step_sizes(codes, monkeypatch):
    seen = []

    def watched(self, text_tokens, image_tokens):
        if self.prior.training:
            size = self.optimizer.param_groups[0]["lr"]
            seen.append((self.prior.config.block, (text_tokens.tolist(), image_tokens.tolist(), size)))
        return loss(self, text_tokens, image_tokens)

    loss = blocks.Contestant._loss
    monkeypatch.setattr(blocks.Contestant, "_loss", watched)
    monkeypatch.setattr(blocks, "CAPTION_DROPOUT", 0.5)
    blocks.main([*SETTINGS, f"--codes={codes}"])
    turns = [(block, len(list(steps))) for block, steps in itertools.groupby(block for block, _ in seen)]
    assert turns == [("paper", 2), ("modern", 4), ("paper", 4), ("modern", 2)]  # who ended a round begins the next
    paper, modern = ([what for name, what in seen if name == block] for block in ("paper", "modern"))
    assert paper == modern
    sizes = [size for _, _, size in paper]
    assert sizes[0] < sizes[1] == max(sizes) <= 2e-3
    assert sizes[1:] == sorted(sizes[1:], reverse=True)


@pytest.mark.parametrize("setting", ["--minutes=0", "--slice=-1", "--lr=nan"])
def test_impossible_settings_are_refused(codes, setting):
    with pytest.raises(ValueError, match="expected more than 0"):
        blocks.main([f"--codes={codes}", setting])


def test_a_missing_folder_of_codes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no folder: expected one with codes\.npy"):
        blocks.main([f"--codes={tmp_path / 'none'}"])


def test_curves_lie_where_their_values_are():
    picture = draw_curves({"rises": [(0, 1), (10, 5)], "flat": [(0, 1), (10, 1)]}, "seconds", "loss")
    pixels = {tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)): colour for colour in COLOURS[:2]}
    found = {colour: [] for colour in COLOURS[:2]}
    for x, y in itertools.product(range(60, 500), range(50, 400)):
        if (colour := pixels.get(picture.getpixel((x, y)))) is not None:
            found[colour].append((x, y))
    rising, flat = found.values()
    assert max(y for _, y in rising) > min(y for _, y in rising) + 100
    assert max(y for _, y in flat) - min(y for _, y in flat) <= 2
    assert min(rising)[1] > max(rising)[1]  # y counts from the top
