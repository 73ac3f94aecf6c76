"""From the files of others to a model folder of ours: `python -m vqvae.pretrained`."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.vqvae.foreign.formats import TAMING, TINY, random_images, random_weights, vqgan_shapes
from vqvae import lpips_weights, pretrained
from vqvae.model import DiscreteVAE

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    torch.save({"state_dict": random_weights(vqgan_shapes(TAMING, TINY, gumbel=True))}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def convert(*arguments) -> int:
    return pretrained.main([str(argument) for argument in arguments])


def test_a_folder_that_loads(checkpoint, tmp_path, capsys):
    out = tmp_path / "new" / "tokenizer"
    assert convert(checkpoint, "--out", out, "--image-size", 64) == 0
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in out.parent.iterdir()] == ["tokenizer"]
    model, images = DiscreteVAE.from_pretrained(out), random_images(16)
    assert torch.equal(model.encode(images), pretrained.load([checkpoint]).model.encode(images))
    said = capsys.readouterr().out
    parameters = [f"{sum(p.numel() for p in part.parameters()):,}" for part in (model.encoder, model.decoder)]
    assert said.splitlines() == [
        "a VQGAN of taming-transformers, Gumbel: 64x64 pixels, 16x16 codes of 20 (f4); parameters: "
        f"encoder {parameters[0]}, decoder {parameters[1]}",
        f"model: {out}",
    ]


def test_an_empty_folder_is_filled_and_leftovers_are_not_kept(checkpoint, tmp_path):
    out, beside = tmp_path / "tokenizer", tmp_path / ".tokenizer.part"
    for folder in (out, beside):
        folder.mkdir()
    (beside / "old").touch()
    assert convert(checkpoint, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    assert not beside.exists()


@pytest.mark.parametrize("as_folder", [True, False])
def test_what_is_there_is_kept(checkpoint, tmp_path, capsys, as_folder):
    out = kept = tmp_path / "tokenizer"
    if as_folder:
        out.mkdir()
        kept = out / "notes.txt"
    kept.write_text("mine")
    assert convert(checkpoint, "--out", out) == 2
    assert capsys.readouterr().err == f"error: {out} is there already: name another folder, or empty it\n"
    assert kept.read_text() == "mine"


def test_a_save_that_is_cut_leaves_no_folder(checkpoint, tmp_path, monkeypatch):
    def cut(self, folder):
        Path(folder).mkdir()
        (Path(folder) / "model.safetensors").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(DiscreteVAE, "save_pretrained", cut)
    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, "--out", tmp_path / "tokenizer")
    assert not (tmp_path / "tokenizer").exists()


def test_other_weights_are_refused_with_what_is_expected(tmp_path, capsys):
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "linear.pt")
    assert convert(tmp_path / "linear.pt", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "linear.pt has 2 tensors (weight, bias), expected one of: OpenAI's encoder.pkl and decoder.pkl" in said
    assert "taming-transformers" in said
    assert "LlamaGen" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("thing", [{"state_dict": {}}, [torch.ones(2)], {"epoch": 3}, torch.ones(2), 7])
def test_no_weights_at_all(tmp_path, capsys, thing):
    torch.save(thing, tmp_path / "file.pt")
    assert convert(tmp_path / "file.pt", "--out", tmp_path / "out") == 2
    assert "file.pt holds no weights: neither a module nor a state dict" in capsys.readouterr().err


def test_a_module_in_itself(tmp_path, capsys):
    module = torch.nn.Module()
    module.part = module
    torch.save(module, tmp_path / "file.pt")
    assert convert(tmp_path / "file.pt", "--out", tmp_path / "out") == 2
    assert "file.pt holds no weights" in capsys.readouterr().err


class Malicious:
    def __reduce__(self):
        import os

        return os.system, ("touch MARKER",)


def test_a_malicious_file_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Malicious()))
    Path("MARKER").unlink()  # it does what it is there for
    torch.save({"state_dict": Malicious()}, tmp_path / "last.ckpt")
    assert convert(tmp_path / "last.ckpt", "--out", tmp_path / "out") == 2
    assert "last.ckpt: it names posix.system, which no weights need; nothing in it was run" in capsys.readouterr().err
    assert not Path("MARKER").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["nothing.ckpt"], "no file nothing.ckpt"),
        (["model.yaml"], "no weights among the files, expected one of: OpenAI's encoder.pkl"),
        (
            ["last.ckpt", "last.ckpt"],
            "a VQGAN of taming-transformers has its weights in 1 file(s), found 2: last.ckpt (",
        ),
        (
            ["last.ckpt", "encoder.pt"],
            "found 2: last.ckpt (a VQGAN of taming-transformers), encoder.pt (OpenAI's dVAE)",
        ),
        (["encoder.pt", "encoder.pt", "model.yaml"], "model.yaml is one yaml file too many for OpenAI's dVAE"),
        (["last.ckpt", "model.yaml", "model.yaml"], "model.yaml is one yaml file too many for a VQGAN"),
        (["odd.pt"], "odd.pt: "),
    ],
)
def test_files_that_do_not_belong_together(checkpoint, tmp_path, monkeypatch, capsys, files, message):
    monkeypatch.chdir(tmp_path)
    Path("model.yaml").write_text("model: {params: {ddconfig: {resolution: 64}}}")
    torch.save({"blocks.input.w": torch.ones(2, 2, 7, 7), "blocks.output.conv.w": torch.ones(2, 2, 1, 1)}, "encoder.pt")
    odd = {name: torch.ones(()) for name in torch.load(checkpoint, weights_only=True)["state_dict"]}
    torch.save(odd, "odd.pt")
    assert convert(*files, "--out", "out") == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_no_picture_has_no_pixels(checkpoint, tmp_path, capsys):
    assert convert(checkpoint, "--out", tmp_path / "out", "--image-size", 0) == 2
    assert "last.ckpt: image_size is 0, expected a whole number of at least 1" in capsys.readouterr().err


def test_lpips_goes_to_its_own_converter(tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(lpips_weights, "convert", lambda source, out: asked.append((source, out)) or [out / "a"])
    assert convert("lpips", tmp_path / "x.tar.gz", "--out", tmp_path / "out") == 0
    assert asked == [(tmp_path / "x.tar.gz", tmp_path / "out")]
    assert capsys.readouterr().out == f"weights: {tmp_path / 'out' / 'a'}\n"
    monkeypatch.undo()
    assert convert("lpips", tmp_path / "x.tar.gz", "--out", tmp_path / "out") == 2
    assert "x.tar.gz" in capsys.readouterr().err


def test_its_help_shows_the_commands(capsys):
    with pytest.raises(SystemExit):
        convert("--help")
    assert "python -m vqvae.pretrained encoder.pkl decoder.pkl --out FOLDER" in capsys.readouterr().out


def test_as_a_command(tmp_path):
    command = [sys.executable, "-m", "vqvae.pretrained", "nothing.pt", "--out", tmp_path / "x"]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (failed.returncode, failed.stderr) == (2, "error: no file nothing.pt\n")
