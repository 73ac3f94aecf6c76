import json
import math
import shutil
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

from clip_scores import CONFIG, ClipScores
from tests.clip_models import MEAN, SIZES, STD, WEIGHTS


@pytest.fixture
def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue", "black")]


def test_scores_are_cosines_of_the_models_embeddings(clip_folder, pictures):
    clip_model = open_clip.CLIP(**SIZES).eval()
    clip_model.load_state_dict(torch.load(clip_folder / WEIGHTS, weights_only=True))
    scores = ClipScores(clip_folder)("a red circle", pictures)
    tokens = open_clip.SimpleTokenizer(context_length=16)(["a red circle"])
    images = torch.stack([torch.tensor(picture.getpixel((0, 0))) / 255 for picture in pictures])
    images = ((images - torch.tensor(MEAN)) / torch.tensor(STD))[:, :, None, None].expand(-1, -1, 32, 32)
    with torch.no_grad():
        expected = torch.cosine_similarity(clip_model.encode_image(images), clip_model.encode_text(tokens))
    torch.testing.assert_close(scores, expected)
    assert scores.unique().numel() == 4


def test_pictures_of_any_size_and_number(clip_folder, pictures, monkeypatch):
    score = ClipScores(clip_folder)
    large = [picture.resize((70, 70)) for picture in pictures]
    torch.testing.assert_close(score("blue", large), score("blue", pictures))
    monkeypatch.setattr("clip_scores.BATCH_SIZE", 3)
    torch.testing.assert_close(score("blue", pictures), torch.cat([score("blue", [each]) for each in pictures]))


def test_a_checkpoint_by_the_name_of_its_architecture(tmp_path, clip_folder, pictures):
    """As open_clip's own training writes them."""
    config = tmp_path / "tiny-test.json"
    config.write_text(json.dumps(SIZES))
    open_clip.add_model_config(config)
    weights = torch.load(clip_folder / WEIGHTS, weights_only=True)
    torch.save({"epoch": 1, "state_dict": weights}, tmp_path / "epoch_1.pt")
    found = ClipScores(tmp_path / "epoch_1.pt", "tiny-test")("a star", pictures)
    assert found.shape == (4,)
    with pytest.raises(ValueError, match=r"architecture is tiny-tset for the checkpoint .*epoch_1.pt, expected a name"):
        ClipScores(tmp_path / "epoch_1.pt", "tiny-tset")
    with pytest.raises(ValueError, match=r"no architecture is given for the checkpoint .*epoch_1.pt"):
        ClipScores(tmp_path / "epoch_1.pt")


def test_a_checkpoint_of_something_else(tmp_path, clip_folder):
    rubbish = tmp_path / "README.md"
    rubbish.write_text("# Not weights")
    with pytest.raises(
        ValueError, match=r"README.md cannot be read as a model of open_clip: its weights are no tensors$"
    ):
        ClipScores(rubbish, "ViT-S-32-alt")
    with pytest.raises(ValueError, match=f"{WEIGHTS} cannot be read as a model of open_clip: "):
        ClipScores(clip_folder / WEIGHTS, "ViT-S-32-alt")


def test_what_is_not_a_number_ranks_last(clip_folder, pictures):
    score = ClipScores(clip_folder)
    encode = score.model.encode_image
    broken = lambda images, **options: encode(images, **options) * torch.tensor([1, math.nan, 1, 1])[:, None]  # noqa: E731
    score.model.encode_image = broken
    assert int(score("blue", pictures).argmin()) == 1


def test_what_would_be_fetched_is_refused(tmp_path, clip_folder):
    checkpoint = clip_folder / WEIGHTS
    with pytest.raises(ValueError, match=r"the tokenizer of .* is timm/.* of Hugging Face, which would be fetched"):
        ClipScores(checkpoint, "ViT-B-16-SigLIP")
    with pytest.raises(ValueError, match=r"the text tower of .* is roberta-base of Hugging Face"):
        ClipScores(checkpoint, "roberta-ViT-B-32")
    folder = shutil.copytree(clip_folder, tmp_path / "model")
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "roberta-base"
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"the text tower of .*model is roberta-base"):
        ClipScores(folder)


def test_nothing_there(tmp_path, clip_folder):
    with pytest.raises(ValueError, match=r"no such file or folder: .*nowhere"):
        ClipScores(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"open_clip_config.json is missing"):
        ClipScores(tmp_path)
    with pytest.raises(ValueError, match="ViT-B-32, is given for the folder"):
        ClipScores(clip_folder, "ViT-B-32")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / WEIGHTS).unlink(),
        lambda folder: (folder / WEIGHTS).write_bytes(b"PK no weights"),
        lambda folder: torch.save({"something": torch.zeros(3)}, folder / WEIGHTS),
        lambda folder: torch.save(Path("other classes than tensors"), folder / WEIGHTS),
        lambda folder: (folder / CONFIG).write_text("{"),
        lambda folder: (folder / CONFIG).write_text(json.dumps({"model_cfg": {"embed_dim": 3}})),
    ],
)
def test_damaged_models_are_named(tmp_path, clip_folder, damage):
    folder = shutil.copytree(clip_folder, tmp_path / "model")
    damage(folder)
    with pytest.raises(ValueError, match="model cannot be read as a model of open_clip: "):
        ClipScores(folder)


def test_without_open_clip(clip_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"needs open_clip \(pip install -e '.\[clip\]'"):
        ClipScores(clip_folder)
