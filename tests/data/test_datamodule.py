"""The datamodules on a small fake source, drawings, a folder and codes."""

import json
import logging

import pytest
import torch
from PIL import Image

from data import datamodule, transforms
from data.datamodule import PriorData, TokenizerData
from data.order import generator_of
from data.settings import Loading, TextConfig
from data.shapes import ShapesConfig, ShapesSource
from data.split import fingerprint
from data.text import PAD, TextTokenizer
from tests import made_codes
from tests.data.fakes import Fake, epochs_of, prior_data, same, tokenizer_data


def test_tokenizer_batches():
    source = Fake()
    data = tokenizer_data(seed=3)
    data.setup("fit")  # epochs_of sets it up once more, which changes nothing
    batches = epochs_of(data, 2)
    assert len(batches) == 18
    for number, batch in enumerate(batches):
        assert batch.keys() == {"images", "keys"}
        assert batch["images"].shape == (4, 3, 8, 8) and batch["images"].dtype == torch.float32
        for row, (picture, key) in enumerate(zip(batch["images"], batch["keys"], strict=True)):
            index = int(key.removesuffix(".png"))
            generator = generator_of(3, number // 9, number % 9 * 4 + row)  # seed, epoch, position
            assert torch.equal(picture, transforms.tokenizer_augmentation(source.image(index), 8, generator))
    for epoch in (batches[:9], batches[9:]):
        assert sorted(int(key[:-4]) for batch in epoch for key in batch["keys"]) == list(range(4, 40))


@pytest.mark.parametrize("make", [tokenizer_data, prior_data])
def test_the_number_of_workers_changes_nothing(make):
    def run(workers: int) -> list[dict]:
        data = make(Fake(24), workers=workers)
        return epochs_of(data) + list(data.val_dataloader())

    expected = run(0)
    for workers in (1, 3):
        found = run(workers)
        assert len(found) == len(expected) == 2 * 5 + 1
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_seeds_differ():
    data = [tokenizer_data(seed=seed) for seed in (0, 0, 1)]
    first, again, other = (epochs_of(each, 1)[0]["keys"] for each in data)
    assert first == again != other


def test_without_augmentation_training_sees_the_evaluation_crop():
    source = Fake()
    data = TokenizerData(folder="fake", image_size=8, augment=False, loading=Loading(batch_size=4, workers=0))
    data.open_source = lambda: source
    for batch in epochs_of(data, 1):
        for picture, key in zip(batch["images"], batch["keys"], strict=True):
            assert torch.equal(picture, transforms.evaluation_crop(source.image(int(key[:-4])), 8))


def test_validation_is_fixed():
    source = Fake(val=6)
    data = tokenizer_data(source)
    data.setup()
    first, second = list(data.val_dataloader()), list(data.val_dataloader())
    assert [batch["keys"] for batch in first] == [[f"{i}.png" for i in range(4)], ["4.png", "5.png"]]
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(first[1]["images"][0], transforms.evaluation_crop(source.image(4), 8))


def test_validation_is_capped_evenly():
    data = tokenizer_data(Fake(val=8), val_count=4)
    data.setup()
    assert [batch["keys"] for batch in data.val_dataloader()] == [["0.png", "2.png", "4.png", "6.png"]]


def test_prior_batches():
    source = Fake()
    data = prior_data(text={"bpe_dropout": 0.3}, seed=2)
    data.encode_images = lambda images: images[:, 0, ::4, ::4].mul(255).long()
    used = set()
    for number, batch in enumerate(epochs_of(data, 3)):
        assert batch.keys() == {"images", "keys", "captions", "text_tokens"}
        assert batch["text_tokens"].shape == (4, 15) and batch["text_tokens"].dtype == torch.int64
        for row, (key, caption) in enumerate(zip(batch["keys"], batch["captions"], strict=True)):
            index = int(key[:-4])
            assert caption in source.captions(index)
            used.add(source.captions(index).index(caption))
            ids = [i for i in batch["text_tokens"][row].tolist() if i != PAD]
            assert caption.startswith(data.text_tokenizer.decode(ids))
            generator = generator_of(2, number // 9, number % 9 * 4 + row)
            which = int(torch.randint(2, (), generator=generator))
            assert caption == source.captions(index)[which]
            expected = data.text_tokenizer.encode(caption, dropout=0.3, generator=generator)
            assert ids == expected[:15]
        after = data.on_after_batch_transfer(batch, 0)
        assert after.keys() == {"text_tokens", "image_tokens", "captions", "keys"}
        assert after["image_tokens"].shape == (4, 2, 2)
        assert after["image_tokens"][:, 0, 0].tolist() == [int(key[:-4]) for key in batch["keys"]]
    assert used == {0, 1}


def test_prior_validation_takes_the_first_caption_without_dropout():
    source = Fake()
    data = prior_data(text={"bpe_dropout": 1.0})
    data.setup()
    (batch,) = data.val_dataloader()
    assert batch["captions"] == [source.captions(i)[0] for i in range(4)]
    assert torch.equal(batch["text_tokens"], data.text_tokenizer.encode_batch(batch["captions"], 16).text_tokens)


def test_the_first_caption_can_be_asked_for():
    source = Fake()
    data = prior_data(text={"captions": "first", "bpe_dropout": 0.0})
    for batch in epochs_of(data, 1):
        assert batch["captions"] == [source.captions(int(key[:-4]))[0] for key in batch["keys"]]


def test_encode_images_runs_without_gradients_and_must_be_set():
    data = prior_data()
    batch = epochs_of(data, 1)[0]
    with pytest.raises(RuntimeError, match="encode_images is not set"):
        data.on_after_batch_transfer(batch, 0)
    weight = torch.ones((), requires_grad=True)
    data.encode_images = lambda images: images[:, 0] * weight
    assert not data.on_after_batch_transfer(batch, 0)["image_tokens"].requires_grad


def prepared(**settings) -> PriorData:
    data = prior_data(**settings)
    data.setup()
    return data


def test_the_text_tokenizer_is_trained_on_training_captions_only():
    source = Fake()
    captions = [caption for index in range(4, 40) for caption in source.captions(index)]
    assert prepared().text_tokenizer.to_json() == TextTokenizer.train(captions, 300).to_json()


def test_a_large_set_is_sampled_for_the_text_tokenizer(monkeypatch):
    source = Fake()
    monkeypatch.setattr(datamodule, "PICTURES_READ_FOR_TEXT", 12)
    captions = [caption for index in range(4, 40, 3) for caption in source.captions(index)]
    assert prepared().text_tokenizer.to_json() == TextTokenizer.train(captions, 300).to_json()


def test_a_failed_setup_can_be_tried_again(tmp_path):
    data = prior_data(text={"tokenizer": str(tmp_path)})
    with pytest.raises(ValueError, match="not found"):
        data.setup()
    TextTokenizer.train(["late"], 256).save(tmp_path / "tokenizer.json")
    data.setup()
    assert data.text_tokenizer.vocab_size == 256


def test_a_given_text_tokenizer_is_used(tmp_path):
    given = TextTokenizer.train(["something else entirely"] * 3, 270)
    given.save(tmp_path / "tokenizer.json")
    assert prepared(text={"tokenizer": str(tmp_path)}).text_tokenizer.to_json() == given.to_json()
    with pytest.raises(ValueError, match=r"nowhere\.json not found"):
        prepared(text={"tokenizer": "nowhere.json"})


def test_truncation_is_reported_once(caplog):
    source = Fake()
    with caplog.at_level(logging.WARNING, logger="data.datamodule"):
        data = prior_data(text={"text_len": 5})
        epochs_of(data, 2)
    lengths = [len(data.text_tokenizer.encode(c)) for i in range(4, 40) for c in source.captions(i)]
    cut = sum(length > 4 for length in lengths)
    assert 0 < cut < 72
    assert [record.getMessage() for record in caplog.records] == [
        f"{cut} of 72 captions are longer than text_len=5 allows (4 tokens and BOS): their ends are cut off"
    ]
    caplog.clear()
    prepared(text={"text_len": 64})
    assert not caplog.records


def test_a_large_set_is_looked_at_in_part_for_long_captions(monkeypatch, caplog):
    monkeypatch.setattr(datamodule, "PICTURES_COUNTED", 5)
    monkeypatch.setattr(datamodule, "PLACES_COUNTED", 5)
    with caplog.at_level(logging.WARNING, logger="data.datamodule"):
        prepared(text={"text_len": 3})
    assert [record.getMessage().partition(" captions")[0] for record in caplog.records] == ["10 of 10"]


def test_drawings():
    config = ShapesConfig(size=32, count=60)
    data = TokenizerData(drawings=config, image_size=32, loading=Loading(batch_size=8, workers=0, val_fraction=0.2))
    data.setup()
    train = {key for batch in epochs_of(data, 1) for key in batch["keys"]}
    (val, *_) = data.val_dataloader()
    assert not train & set(val["keys"])
    assert data.fingerprint == fingerprint(ShapesSource(config))
    index = int(val["keys"][0].removeprefix("shapes-"))
    assert torch.equal(val["images"][0], transforms.evaluation_crop(ShapesSource(config).image(index), 32))


def test_a_real_folder(tmp_path):
    rows = []
    for index in range(12):
        Image.new("RGB", (9 + index, 9), (20 * index, 9, 9)).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,red number {index},{'val' if index % 4 == 0 else 'train'}\n")
    (tmp_path / "captions.csv").write_text("file_name,text,split\n" + "".join(rows))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    report = tmp_path / "report.json"
    loading = Loading(batch_size=3, workers=0, max_rejected=0.2, report=str(report))
    data = PriorData(folder=str(tmp_path), image_size=8, loading=loading)
    data.setup()
    assert sorted(key for batch in data.val_dataloader() for key in batch["keys"]) == ["0.png", "4.png", "8.png"]
    (caption,) = {
        c for b in data.val_dataloader() for c, key in zip(b["captions"], b["keys"], strict=True) if key == "4.png"
    }
    assert caption == "red number 4"
    assert json.loads(report.read_text())["rejected"] == 1
    strict = PriorData(folder=str(tmp_path), image_size=8, loading=Loading(workers=0, max_rejected=0.0))
    with pytest.raises(ValueError, match="rejected"):
        strict.setup()


def write_codes(folder, captions=("a red thing", "red")) -> torch.Tensor:
    indices = torch.arange(20 * 6).reshape(20, 2, 3)
    splits = ["val"] * 4 + [None] * 12 + ["test"] * 4
    keys = [f"k{i}" for i in range(20)]
    made_codes.write(folder, indices, [captions] * 20, keys, splits, codebook_size=200, rows_per_shard=8)
    return indices


def test_codes(tmp_path):
    indices = write_codes(tmp_path / "codes")
    data = PriorData(codes=str(tmp_path / "codes"), loading=Loading(batch_size=4, workers=0, val_fraction=0.0))
    data.setup()
    seen = []
    for batch in epochs_of(data, 1):
        assert batch.keys() == {"text_tokens", "image_tokens", "captions", "keys"}
        batch = data.on_after_batch_transfer(batch, 0)  # has nothing to do
        assert batch["text_tokens"].shape == (4, 255)
        assert torch.equal(batch["image_tokens"], torch.stack([indices[int(key[1:])] for key in batch["keys"]]))
        seen += batch["keys"]
    assert sorted(seen) == sorted(f"k{i}" for i in range(4, 16))
    assert [batch["keys"] for batch in data.val_dataloader()] == [["k0", "k1", "k2", "k3"]]
    assert (data.source.fingerprint, data.source.codebook_size, data.source.grid_size) == ("abc", 200, (2, 3))


def test_codes_without_captions_are_refused(tmp_path):
    write_codes(tmp_path / "codes", captions=())
    with pytest.raises(ValueError, match=r"20 of 20 rows have no caption, or .* the first is 'k0'"):
        PriorData(codes=str(tmp_path / "codes")).setup()
    write_codes(tmp_path / "unseen", captions=("a red thing", "\u200d"))
    with pytest.raises(ValueError, match="20 of 20 rows have no caption, or one of which nothing is seen"):
        PriorData(codes=str(tmp_path / "unseen")).setup()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenizerData(), "exactly one of folder, drawings, shards; got none"),
        (lambda: TokenizerData("x", ShapesConfig()), "got folder and drawings"),
        (lambda: PriorData(), "exactly one of folder, drawings, codes, shards; got none"),
        (lambda: PriorData("x", codes="y"), "got folder and codes"),
        (lambda: TokenizerData(drawings=ShapesConfig(size=64)), r"drawings\.size=64, expected at least image_size=256"),
        (lambda: PriorData(drawings=ShapesConfig(size=64), image_size=65), r"drawings\.size=64"),
        (lambda: Loading(batch_size=0), "batch_size=0"),
        (lambda: Loading(val_count=0), "val_count=0"),
        (lambda: Loading(workers=-1), "workers=-1"),
        (lambda: Loading(val_fraction=1.0), r"val_fraction=1\.0"),
        (lambda: Loading(max_rejected=7), "max_rejected=7, expected a fraction from 0 to 1"),
        (lambda: Loading(seed=2**63), "seed=9223372036854775808, expected"),
        (lambda: Loading(seed=-(2**63) - 1), "seed=-9223372036854775809, expected"),
        (lambda: TextConfig(text_len=1), "text_len=1"),
        (lambda: TextConfig(vocab_size=3), "vocab_size=3, expected at least 256"),
        (lambda: TextConfig(bpe_dropout=-0.1), r"bpe_dropout=-0\.1"),
        (lambda: TextConfig(captions="all"), "captions='all'"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_too_few_samples():
    data = tokenizer_data(Fake(7, val=4))
    data.setup()
    with pytest.raises(ValueError, match="3 training samples do not fill one batch of 4"):
        data.train_dataloader()
    with pytest.raises(
        ValueError, match=r"no validation samples among 7 \(val_fraction=0\.02\): raise data\.loading\.val_fraction"
    ):
        tokenizer_data(Fake(7, val=0)).setup()
    data = tokenizer_data(Fake(7, val=7))
    data.setup()
    with pytest.raises(ValueError, match="no training samples among 7: all are of the split 'val' or 'test'"):
        data.train_dataloader()


def test_exactly_one_batch_is_enough():
    data = tokenizer_data(Fake(8, val=4))
    assert [len(batch["keys"]) for batch in epochs_of(data, 2)] == [4, 4]
