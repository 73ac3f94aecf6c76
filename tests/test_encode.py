"""encode.py as a command: its sources, its mistakes, and how it ends and goes on."""

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image

import cli
import encode
import encoding
from data.codes import CodesSource
from data.datamodule import PriorData
from data.folder import FolderSource
from data.settings import Loading, TextConfig
from data.shapes import ShapesConfig, ShapesSource
from data.shards.packing import pack
from locks import only_writer
from pipeline import fingerprint
from tests.data.shards.tars import write_tar
from tests.encoding_inputs import codes_in, expected_codes, files_of, folder_of, rows_of, tokenizer
from vqvae.config import DiscreteVAEConfig
from vqvae.model import DiscreteVAE

ROOT = Path(__file__).parent.parent


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


def test_shards_become_the_codes_of_their_folder(tmp_path, model, monkeypatch, capsys):
    """Of a shard in which one picture is broken behind its header: encoding has all of them decoded beforehand."""
    source = FolderSource(folder_of(tmp_path / "pictures"), need_captions=True)
    pack(source, tmp_path / "shards", size=4)
    noise = Image.effect_noise((64, 64), 90)
    noise.save(tmp_path / "whole.jpg")
    broken = (tmp_path / "whole.jpg").read_bytes()[:-500]
    write_tar(tmp_path / "shards" / "00002.tar", [("broken.jpg", broken), ("broken.txt", b"noise")])
    run_script(monkeypatch, "--tokenizer", model, "--shards", tmp_path / "shards", "--out", tmp_path / "codes",
               "--max_rejected", "0.2")  # fmt: skip
    codes = CodesSource(tmp_path / "codes")
    expected = {row[0]: (row, made) for row, made in zip(rows_of(source), expected_codes(source), strict=True)}
    assert len(codes) == 6
    for row, found in zip(rows_of(codes), codes_in(codes), strict=True):
        assert row == expected[row[0]][0] and torch.equal(found, expected[row[0]][1])
    assert json.loads((tmp_path / "codes-rejects.json").read_text())["counts"] == {"broken picture": 1}


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
    assert not (tmp_path / "codes").exists(), "unused, the lock takes it away"
    usual = tmp_path / "codes-rejects.json"
    assert "broken.png" in usual.read_text()
    usual.unlink()
    run_script(monkeypatch, *args, "--max_rejected", 0.5, "--report", tmp_path / "report.json")
    assert len(CodesSource(tmp_path / "codes")) == 6
    assert "broken.png" in (tmp_path / "report.json").read_text()
    assert not usual.exists()


def test_filters_leave_out_and_count(tmp_path, model, monkeypatch, capsys):
    pictures = folder_of(tmp_path / "pictures")  # 30x20, 30x21, 30x22 pixels and so on
    args = ["--tokenizer", model, "--folder", pictures, "--out", tmp_path / "codes", "--workers", 0]
    run_script(monkeypatch, *args, "--filters.max_aspect_ratio", 1.4, "--filters.max_caption_length", 9)
    codes = CodesSource(tmp_path / "codes")
    assert [(codes.key(i), codes.captions(i)) for i in range(len(codes))] == [
        (f"{i}.png", (f"picture {i}",)) for i in (2, 3, 4, 5)
    ]
    report = json.loads((tmp_path / "codes-rejects.json").read_text())
    assert report["filtered_counts"] == {"too long for its height": 2}
    with pytest.raises(SystemExit):
        run_script(monkeypatch, *args)
    assert "data was" in capsys.readouterr().err, "the same folder without filters is other data"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "{new}"], "required.* tokenizer"),
        (["--tokenizer", "{model}", "--folder", "x"], "required.* out"),
        (["--tokenizer", "{model}", "--out", "{new}"], "exactly one of folder, drawings, shards; got none"),
        (
            ["--tokenizer", "{model}", "--out", "{new}", "--folder", "x", "--drawings.count", "3"],
            "got folder and drawings",
        ),
        (["--tokenizer", "{model}", "--out", "{new}", "--folder", "nowhere"], "nowhere: no such folder"),
        (["--tokenizer", "nowhere", "--out", "{new}", "--folder", "x"], "no such folder: nowhere"),
        (["--tokenizer", "{model}", "--out", "{model}", "--drawings.count", "3"], "exists already and holds no codes"),
        (["--tokenizer", "{model}", "--out", "{new}", "--drawings.size", "700"], "size=700; expected 16 to 512"),
        (["--tokenizer", "{model}", "--out", "{new}", "--drawings.count", "many"], "many"),
        (["--tokenizer", "{model}", "--out", "{new}", "--folder", "x", "--batch_size", "0"], "batch_size=0"),
        (["--tokenizer", "{model}", "--out", "{new}", "--folder", "x", "--workers", "-1"], "workers=-1"),
        (["--tokenizer", "{model}", "--out", "{new}", "--folder", "x", "--crops", "0"], "crops=0"),
        (["--tokenizer", "{model}", "--out", "{new}", "--folder", "x", "--rows_per_shard", "0"], "rows_per_shard=0"),
        (["--tokenizer", "{model}", "--out", "{new}", "--folder", "x", "--device", "abacus"], "device abacus"),
        (["--tokenizer", "{model}", "--out", "{new}", "--folder", "x", "--devices", "0"], "devices is 0"),
        (["--verify", "{new}", "--out", "{new}"], "expected --verify and a folder of codes, and nothing else"),
        (["--verify", "{new}"], "new is no folder: expected one of codes"),
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


# ---- the script, ended on the way


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_the_command_to_go_on(tmp_path, model, monkeypatch, capsys, end):
    args = ["--tokenizer", model, "--drawings.count", 11, "--out", tmp_path / "my codes", "--workers", 0]
    args = [*map(str, args), "--rows_per_shard", "4", "--batch_size", "2"]
    calls, encode_batch = [], encoding._encode

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 4:
            os.kill(os.getpid(), end)
        return encode_batch(*given)

    ends = nullcontext() if end == signal.SIGTERM else pytest.raises(SystemExit, match="130")
    with monkeypatch.context() as patched, ends:
        patched.setattr(encoding, "_encode", interrupted)
        run_script(patched, *args)
    said = capsys.readouterr().out
    assert {path.name for path in (tmp_path / "my codes").iterdir()} == {"recipe.json", "000000.safetensors"}
    _, command = said.strip().split("to go on: ")
    assert shlex.split(command) == ["python", "encode.py", *args]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    run_script(monkeypatch, *args)
    assert "4 of 11 pictures are there already" in capsys.readouterr().out
    source = ShapesSource(ShapesConfig(count=11))
    assert torch.equal(codes_in(CodesSource(tmp_path / "my codes")), expected_codes(source))


def test_a_full_disk_ends_it_with_one_line_and_the_command_to_go_on(tmp_path, model, monkeypatch, capsys):
    """Files cannot grow beyond a limit here, as on a disk without space: the second shard is longer than the first."""
    pictures = folder_of(tmp_path / "pictures")
    table = pictures / "captions.csv"
    table.write_text(table.read_text().replace("picture 4", "4" * 20_000))
    args = ["--tokenizer", model, "--folder", pictures, "--out", tmp_path / "codes", "--workers", 0]
    args += ["--rows_per_shard", 3]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(SystemExit) as stop:
            run_script(monkeypatch, *args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert re.fullmatch(r"error: .*File too large.*000001\.safetensors.*\n", said.err)
    assert "to go on: python encode.py" in said.out
    assert {path.name for path in (tmp_path / "codes").iterdir()} == {"recipe.json", "000000.safetensors"}
    run_script(monkeypatch, *args)
    assert len(CodesSource(tmp_path / "codes")) == 6


def test_a_picture_that_has_gone_since_it_was_scanned_is_named(tmp_path, model, monkeypatch, capsys):
    pictures = folder_of(tmp_path / "pictures")
    args = ["--tokenizer", model, "--folder", pictures, "--out", tmp_path / "codes", "--rows_per_shard", 2]
    content = (pictures / "4.png").read_bytes()

    def opened(*given, **settings):
        source = open_pictures(*given, **settings)
        (pictures / "4.png").unlink()
        return source

    open_pictures = encode.open_pictures
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stop:
        patched.setattr(encode, "open_pictures", opened)
        run_script(patched, *args)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert re.search(r"4\.png: No such file", said.err)
    assert "put the picture back as it was; finished shards stay; to go on: python encode.py" in said.out
    assert {path.name for path in (tmp_path / "codes").iterdir()} == {
        "recipe.json", "000000.safetensors", "000001.safetensors",
    }  # fmt: skip
    (pictures / "4.png").write_bytes(content)
    run_script(monkeypatch, *args)
    assert len(CodesSource(tmp_path / "codes")) == 6


def test_two_devices_are_ended_and_gone_on_with(tmp_path, model, monkeypatch, capsys):
    """The second one by kill -9, then both as a machine that is taken away does it; one device makes the rest."""

    def args(out: str) -> list[str]:
        settings = ["--drawings.count", "400", "--rows_per_shard", "16", "--workers", "0", "--crops", "2"]
        return ["--tokenizer", str(model), *settings, "--out", str(tmp_path / out)]

    typed = [sys.executable, str(ROOT / "encode.py"), *args("two"), "--devices", "2"]

    def ended(end: Callable[[int], object], after: str) -> tuple[int, str, str]:
        """Exit code and what was said, until both processes had ended."""
        with subprocess.Popen(
            typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as process:
            while process.poll() is None and not (two / after).exists():
                time.sleep(0.01)
            end(process.pid)
            said, errors = process.communicate()
        return process.returncode, said, errors

    encode.encode(args("one"))
    two = tmp_path / "two"
    code, said, errors = ended(kill_started, "000001.safetensors")  # the second device's first
    assert (code, said) == (1, "") and errors.count("\n") == 1
    command = f"finished shards stay; to go on: {shlex.join(typed)}\n"
    assert re.match(r"error: the process of device 1 \(\d+\) was ended by SIGKILL, as where memory", errors)
    assert errors.endswith(command)
    made = {path.name: path.stat().st_mtime_ns for path in two.glob("*.safetensors")}
    assert 1 <= len(made) < 25
    missing = [f"{i:06d}.safetensors" for i in range(25) if f"{i:06d}.safetensors" not in made]
    code, said, errors = ended(lambda first: os.kill(first, signal.SIGTERM), missing[0])
    assert (code, errors) == (0, "") and said.endswith(command)
    assert len(list(two.glob("*.safetensors"))) > len(made)
    encode.encode(args("two"))
    assert files_of(two) == files_of(tmp_path / "one")
    assert {name: (two / name).stat().st_mtime_ns for name in made} == made


def kill_started(first: int) -> None:
    (started,) = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    os.kill(int(started), signal.SIGKILL)


def test_verifying(tmp_path, model, monkeypatch, capsys):
    run_script(monkeypatch, "--tokenizer", model, "--drawings.count", 5, "--out", tmp_path / "codes", "--workers", 0)
    capsys.readouterr()
    run_script(monkeypatch, "--verify", tmp_path / "codes")
    assert "5 pictures in 1 shards, all as they were written" in capsys.readouterr().out
    shard = tmp_path / "codes" / "000000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x07")
    with pytest.raises(SystemExit) as stop:
        run_script(monkeypatch, "--verify", tmp_path / "codes")
    assert stop.value.code == 2
    assert "000000.safetensors is damaged" in capsys.readouterr().err


def test_two_encodings_never_write_one_folder(tmp_path, model, monkeypatch, capsys):
    args = ["--tokenizer", model, "--drawings.count", 5, "--out", tmp_path / "codes", "--workers", 0]
    with only_writer(tmp_path / "codes"), pytest.raises(SystemExit):
        run_script(monkeypatch, *args)
    assert "codes is being written by process" in capsys.readouterr().err


def test_without_arguments_it_says_how(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_script(monkeypatch)
    assert stop.value.code == 2
    assert "python encode.py --tokenizer" in capsys.readouterr().out
