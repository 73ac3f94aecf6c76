"""A text tokenizer of a folder of codes is trained once; a damaged one is not taken for it."""

import pytest
import torch

from data import datamodule
from data.datamodule import PriorData
from data.settings import Loading, TextConfig
from data.text import TextTokenizer
from data.text_cache import TOKENIZERS, trained_once
from tests import made_codes


@pytest.fixture
def codes(tmp_path):
    folder = tmp_path / "codes"
    captions = [(f"a red thing number {i}", "red") for i in range(20)]
    made_codes.write(folder, made_codes.codes_of(20, (2, 3)), captions, splits=["val"] * 4 + [None] * 16)
    return folder


def opened(codes, vocab_size: int = 300, val_fraction: float = 0.0, **text) -> PriorData:
    loading = Loading(batch_size=4, workers=0, val_fraction=val_fraction)
    data = PriorData(codes=str(codes), text=TextConfig(vocab_size=vocab_size, **text), loading=loading)
    data.setup()
    return data


def never(captions, vocab_size):
    raise AssertionError("trained again")


def test_it_is_trained_once(codes, monkeypatch):
    first = opened(codes)
    captions = [caption for i in first.train_indices.tolist() for caption in first.source.captions(i)]
    assert first.text_tokenizer.to_json() == TextTokenizer.train(captions, 300).to_json()
    with monkeypatch.context() as patched:
        patched.setattr(TextTokenizer, "train", never)
        again = opened(codes)
    assert again.text_tokenizer.to_json() == first.text_tokenizer.to_json()
    assert torch.equal(
        next(iter(again.train_dataloader()))["text_tokens"], next(iter(first.train_dataloader()))["text_tokens"]
    )


def test_other_settings_or_data_have_one_of_their_own(codes, tmp_path, monkeypatch):
    opened(codes)
    monkeypatch.setattr(TextTokenizer, "train", never)
    for other in ({"vocab_size": 270}, {"val_fraction": 0.5}):
        with pytest.raises(AssertionError, match="trained again"):
            opened(codes, **other)
    monkeypatch.setattr(datamodule, "PICTURES_READ_FOR_TEXT", 7)
    with pytest.raises(AssertionError, match="trained again"):
        opened(codes)
    other = tmp_path / "other"
    made_codes.write(other, made_codes.codes_of(20, (2, 3)), [("c",)] * 20, splits=["val"] * 4 + [None] * 16)
    (codes / TOKENIZERS).rename(other / TOKENIZERS)
    with pytest.raises(AssertionError, match="trained again"):
        opened(other)


def test_a_given_one_is_used_and_none_is_kept(codes, tmp_path):
    TextTokenizer.train(["something else entirely"] * 3, 270).save(tmp_path / "tokenizer.json")
    assert opened(codes, tokenizer=str(tmp_path)).text_tokenizer.vocab_size == 270
    assert not (codes / TOKENIZERS).exists()


def test_a_damaged_one_is_named(codes):
    opened(codes)
    (path,) = (codes / TOKENIZERS).iterdir()
    whole = path.read_text()
    fewer = TextTokenizer.train(["red thing"] * 3, 260).to_json()
    for content, said in ((fewer, "is damaged, its entries are"), (whole[:-30], "cannot be read")):
        path.write_text(content)
        with pytest.raises(ValueError, match=said) as error:
            opened(codes)
        assert str(path) in str(error.value)


def test_a_folder_that_cannot_be_written_is_no_hindrance(tmp_path):
    (tmp_path / TOKENIZERS).write_text("in the way")
    tokenizer = TextTokenizer.train(["red"], 256)
    assert trained_once(tmp_path, ("a",), lambda: tokenizer) is tokenizer
    assert (tmp_path / TOKENIZERS).read_text() == "in the way"
