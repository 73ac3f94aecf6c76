"""Pictures to a folder of codes: the codes of the pictures' evaluation crops, and nothing where it fails."""

import re
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

import cli
import encode
from data.codes import CodesSource
from data.datamodule import PriorData
from data.folder import FolderSource
from data.settings import Loading, TextConfig
from data.shapes import ShapesConfig, ShapesSource
from data.split import split_by_key
from data.transforms import evaluation_crop
from encoding import encode_source
from pipeline import fingerprint
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


# ---- the function


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 0), (11, 0), (64, 0), (4, 2)])
def test_codes_are_those_of_the_evaluation_crops(tmp_path, batch_size, workers):
    source = drawings()
    codes = encode_source(
        source, tokenizer(), tmp_path / "codes", image_size=SIZE, batch_size=batch_size, workers=workers
    )
    assert torch.equal(codes_in(codes), expected_codes(source))
    assert len(codes_in(codes).flatten(1).unique(dim=0)) == 11  # else a wrong order might pass
    assert (codes.fingerprint, codes.codebook_size, codes.grid_size) == (fingerprint(tokenizer()), 50, (4, 4))
    assert rows_of(codes) == rows_of(source)
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


def test_drawings_and_their_codes_are_split_alike(tmp_path):
    source = drawings(40)
    codes = encode_source(source, tokenizer(), tmp_path / "codes", image_size=SIZE)
    assert split_by_key(codes, 0.2) == split_by_key(source, 0.2)


def test_captions_keys_and_splits_of_a_folder_come_along(tmp_path):
    source = FolderSource(folder_of(tmp_path / "pictures"), need_captions=True)
    codes = encode_source(source, tokenizer(), tmp_path / "codes", image_size=SIZE, batch_size=4)
    assert torch.equal(codes_in(codes), expected_codes(source))
    assert rows_of(codes) == rows_of(source)
    assert rows_of(codes)[2] == ("2.png", ("picture 2", "Nummer 2, größer"), "val")


def test_progress_counts_pictures(tmp_path):
    seen = []
    encode_source(
        drawings(),
        tokenizer(),
        tmp_path / "codes",
        image_size=SIZE,
        batch_size=4,
        progress=lambda done, of_all: seen.append((done, of_all)),
    )
    assert seen == [(4, 11), (8, 11), (11, 11)]


@pytest.mark.parametrize("error", [ValueError("gone"), KeyboardInterrupt()])
def test_what_fails_on_the_way_leaves_nothing(tmp_path, error):
    class Failing(ShapesSource):
        def image(self, index: int, least: int | None = None) -> Image.Image:
            if index == 6:
                raise error
            return super().image(index)

    with pytest.raises(type(error)):
        encode_source(Failing(ShapesConfig(count=11)), tokenizer(), tmp_path / "codes", image_size=SIZE, batch_size=4)
    assert list(tmp_path.iterdir()) == []


def test_another_size_than_the_tokenizers_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got indices \(11, 6, 6\) .* expected indices \(11, 4, 4\)"):
        encode_source(drawings(), tokenizer(), tmp_path / "codes", image_size=24)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept(tmp_path):
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="codes exists already"):
        encode_source(drawings(), tokenizer(), tmp_path / "codes", image_size=SIZE)
    assert (tmp_path / "codes" / "mine.txt").read_text() == "mine"


# ---- the script


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A run that has exported its tokenizer."""
    run = tmp_path_factory.mktemp("run")
    tokenizer().save_pretrained(run / "model")
    return run


def run_script(monkeypatch, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", ["encode.py", *map(str, args)])
    cli.run(encode.main)


def test_a_folder_becomes_codes_that_the_prior_trains_from(tmp_path, model, monkeypatch, capsys):
    pictures = folder_of(tmp_path / "pictures")
    args = ["--folder", pictures, "--batch_size", 4, "--workers", 0]
    run_script(monkeypatch, "--tokenizer", model, "--out", tmp_path / "new" / "codes", *args)
    assert "6 pictures, 4x4 codes each" in capsys.readouterr().out
    data = PriorData(
        codes=str(tmp_path / "new" / "codes"),
        text=TextConfig(text_len=16, vocab_size=300),
        loading=Loading(batch_size=3, workers=0),
    )
    data.setup()
    (batch,) = data.train_dataloader()
    expected = dict(
        zip(["0.png", "1.png", "2.png", "3.png", "4.png", "5.png"], expected_codes_of(pictures), strict=True)
    )
    assert set(batch["keys"]) <= {"0.png", "1.png", "4.png", "5.png"}
    assert torch.equal(batch["image_tokens"], torch.stack([expected[key] for key in batch["keys"]]))
    assert data.source.fingerprint == fingerprint(tokenizer())


def expected_codes_of(pictures: Path) -> torch.Tensor:
    return expected_codes(FolderSource(pictures, need_captions=True))


def test_drawings_by_their_settings(tmp_path, model, monkeypatch):
    settings = ["--drawings.count", 5, "--drawings.size", 20, "--drawings.seed", 3, "--drawings.max_objects", 1]
    run_script(monkeypatch, "--tokenizer", model / "model", "--out", tmp_path / "codes", "--workers", 0, *settings)
    codes = CodesSource(tmp_path / "codes")
    source = ShapesSource(ShapesConfig(count=5, size=20, seed=3, max_objects=1))
    assert torch.equal(codes_in(codes), expected_codes(source))
    assert rows_of(codes) == rows_of(source)


def test_rejects_are_reported(tmp_path, model, monkeypatch):
    pictures = folder_of(tmp_path / "pictures")
    (pictures / "broken.png").write_bytes(b"no picture")
    args = ["--tokenizer", model, "--folder", pictures, "--out", tmp_path / "codes", "--workers", 0]
    with pytest.raises(SystemExit):
        run_script(monkeypatch, *args)
    assert not (tmp_path / "codes").exists()
    usual = tmp_path / "codes-rejects.json"
    assert "broken.png" in usual.read_text()
    usual.unlink()
    run_script(monkeypatch, *args, "--max_rejected", 0.5, "--report", tmp_path / "report.json")
    assert len(CodesSource(tmp_path / "codes")) == 6
    assert "broken.png" in (tmp_path / "report.json").read_text()
    assert not usual.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "{new}"], "required.* tokenizer"),
        (["--tokenizer", "{model}", "--folder", "x"], "required.* out"),
        (["--tokenizer", "{model}", "--out", "{new}"], "exactly one of folder, drawings; got none"),
        (
            ["--tokenizer", "{model}", "--out", "{new}", "--folder", "x", "--drawings.count", "3"],
            "got folder and drawings",
        ),
        (["--tokenizer", "{model}", "--out", "{new}", "--folder", "nowhere"], "nowhere: no such folder"),
        (["--tokenizer", "nowhere", "--out", "{new}", "--folder", "x"], "no such folder: nowhere"),
        (["--tokenizer", "{model}", "--out", "{model}", "--drawings.count", "3"], "exists already"),
        (["--tokenizer", "{model}", "--out", "{new}", "--drawings.size", "700"], "size=700; expected 16 to 512"),
        (["--tokenizer", "{model}", "--out", "{new}", "--drawings.count", "many"], "many"),
        (["--tokenizer", "{model}", "--out", "{new}", "--folder", "x", "--batch_size", "0"], "batch_size=0"),
        (["--tokenizer", "{model}", "--out", "{new}", "--folder", "x", "--workers", "-1"], "workers=-1"),
        (["--tokenizer", "{model}", "--out", "{new}", "--folder", "x", "--device", "abacus"], "device abacus"),
        (["--tokenizer", "{model}", "--out", "{new}", "--folder", "x", "--colour", "red"], "colour"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, model, monkeypatch, capsys, args, message):
    filled = [arg.format(model=model, new=tmp_path / "new") for arg in args]
    with pytest.raises(SystemExit) as stop:
        run_script(monkeypatch, *filled)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


def test_drawings_smaller_than_the_tokenizers_pictures_are_refused(tmp_path, monkeypatch, capsys):
    config = DiscreteVAEConfig(image_size=64, n_hid=8, n_init=8, n_groups=3, n_blk_per_group=1, codebook_size=50)
    DiscreteVAE(config).save_pretrained(tmp_path / "large")
    with pytest.raises(SystemExit):
        run_script(monkeypatch, "--tokenizer", tmp_path / "large", "--out", tmp_path / "codes", "--drawings.size", 32)
    assert "drawings.size=32, expected at least image_size=64" in capsys.readouterr().err


def test_without_arguments_it_says_how(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_script(monkeypatch)
    assert stop.value.code == 2
    assert "python encode.py --tokenizer" in capsys.readouterr().out
