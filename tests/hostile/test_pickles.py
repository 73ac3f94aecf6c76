"""Files of weights that would run code run none, wherever weights of others are read; each is refused by name."""

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from checkpoint_files import load_checkpoint
from clip_scores import ClipScores
from tests.hostile.pickles import MARKER, PICKLES, running
from vqvae.lpips_weights import convert
from vqvae.pretrained import load


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """The only thing there, before and after, is the folder of the file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given").mkdir()
    yield tmp_path / "given"
    assert [path.name for path in tmp_path.iterdir()] == ["given"]
    assert len(list((tmp_path / "given").iterdir())) == 1


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES.keys())
def test_refused_without_running(content: bytes, place: Path):
    path = place / "vgg16.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"vgg16\.ckpt"):
        load([path])
    with pytest.raises(ValueError, match=r"vgg16\.ckpt"):
        convert(path, place.parent / "out")
    with pytest.raises(ValueError, match=r"vgg16\.ckpt"):
        load_checkpoint(path, torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    "name",
    [
        "os.system, zipped",
        "builtins.eval, zipped",
        "torch.hub.load, zipped",
        "a state that becomes a method, zipped",
        "os.system, bare",
        "posix.system, as before torch 1.6",
        "a tensor of 2^40 numbers, zipped",
        "the end alone, zipped",
    ],
)
def test_models_of_clip(name: str, clip_folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clip_folder, tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_pytorch_model.bin").write_bytes(PICKLES[name])
    with pytest.raises(ValueError, match="clip cannot be read as a model of open_clip"):
        ClipScores(tmp_path / "clip")
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "builtins.exec", "a state that becomes a method"])
def test_they_would_run(name: str, tmp_path: Path, monkeypatch):
    """Python's own reader is the proof that the payloads are none of paper."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(dict(running())[name])
    assert Path(MARKER).exists()
