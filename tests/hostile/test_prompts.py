"""Captions that are out to hurt, wherever one goes: the text tokenizer, the names of files, metadata, the grid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.text import TextTokenizer, is_visible, normalise, pad
from grids import captioned_grid
from sample_files import Sample
from tests.hostile.prompts import PROMPTS
from transformer.sampling import SamplingConfig


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(["a red circle", "ein blauer Kreis"] * 4, 300)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_everywhere(prompt: str, tokenizer: TextTokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = tokenizer.encode(prompt)
    dropped = tokenizer.encode(prompt, dropout=0.1, generator=torch.Generator().manual_seed(0))
    for each in (ids, dropped):
        assert tokenizer.decode(each) == normalise(prompt)
        assert pad([each], 16).text_tokens.shape == (1, 15)
    (tmp_path / "out").mkdir()
    said = "".join(prompt.split("\ud83d"))  # sample.py replaces halves of pairs, which no file can hold
    sample = Sample(said, 0, SamplingConfig(), "0123456789abcdef")
    picture = Image.new("RGB", (128, 128))
    sample.save(picture, tmp_path / "out")
    assert sample.is_in(tmp_path / "out")
    captioned_grid([(said, [picture])])
    (made,) = (tmp_path / "out").iterdir()
    assert len(made.name.encode()) < 256 and not made.name.startswith((".", "-"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80))
def test_any_text(tokenizer: TextTokenizer, text: str):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == normalise(text)
    assert bool(ids) or not is_visible(text)
