"""Pictures to a folder of codes: the codes of the pictures' crops, the same bytes however often it is interrupted."""

import hashlib
import json
import os
import random
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

import cli
import encode
import encoding
from data import code_manifest
from data.codes import CodesSource
from data.datamodule import PriorData
from data.folder import FolderSource
from data.order import generator_of
from data.settings import Loading, TextConfig
from data.shapes import ShapesConfig, ShapesSource
from data.shards.packing import pack
from data.split import split_by_key
from data.transforms import evaluation_crop, prior_augmentation
from encoding import EncodeConfig, encode_source
from locks import only_writer
from pipeline import fingerprint
from tests.data.shards.tars import write_tar
from vqvae.config import DiscreteVAEConfig
from vqvae.model import DiscreteVAE

ROOT = Path(__file__).parent.parent
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


@pytest.mark.parametrize(
    "config",
    [
        EncodeConfig(batch_size=1),
        EncodeConfig(batch_size=4),
        EncodeConfig(batch_size=64),
        EncodeConfig(batch_size=4, workers=2),
        EncodeConfig(batch_size=4, rows_per_shard=3),
        EncodeConfig(batch_size=3, rows_per_shard=5, workers=2),
    ],
)
def test_codes_are_those_of_the_evaluation_crops(tmp_path, config):
    source = drawings()
    codes = encode_source(source, tokenizer(), tmp_path / "codes", config)
    assert torch.equal(codes_in(codes), expected_codes(source))
    assert len(codes_in(codes).flatten(1).unique(dim=0)) == 11  # else a wrong order might pass
    assert (codes.fingerprint, codes.codebook_size, codes.grid_size) == (fingerprint(tokenizer()), 50, (4, 4))
    assert rows_of(codes) == rows_of(source)
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


def test_crops_are_a_function_of_seed_key_and_number(tmp_path):
    source = ShapesSource(ShapesConfig(size=48, count=6))
    codes = encode_source(source, tokenizer(), tmp_path / "codes", EncodeConfig(crops=4, seed=3, batch_size=4))
    for index in range(6):
        key = int.from_bytes(hashlib.blake2b(source.key(index).encode(), digest_size=8).digest(), "little") - 2**63
        image = source.image(index)
        crops = [prior_augmentation(image, SIZE, generator_of(3, key, crop)) for crop in range(1, 4)]
        expected = tokenizer().encode(torch.stack([evaluation_crop(image, SIZE), *crops]))
        assert torch.equal(torch.stack([codes.codes(index, crop) for crop in range(4)]), expected)
    different = [codes.codes(i, 1).ne(codes.codes(i, 2)).any().item() for i in range(6)]
    assert sum(different) > 3, "or the test shows nothing"


def test_training_draws_a_crop_by_seed_epoch_and_position_and_validation_sees_the_first(tmp_path):
    source = ShapesSource(ShapesConfig(size=48, count=40))
    codes = encode_source(source, tokenizer(), tmp_path / "codes", EncodeConfig(crops=3, batch_size=40))

    def data(augment: bool = True) -> PriorData:
        text = TextConfig(text_len=16, vocab_size=300, captions="first", bpe_dropout=0.0)
        loading = Loading(batch_size=4, workers=0, seed=5, val_fraction=0.2)
        made = PriorData(codes=str(tmp_path / "codes"), augment=augment, text=text, loading=loading)
        made.setup()
        return made

    numbers = {source.key(i): i for i in range(40)}
    seen, loader, position = set(), data().train_dataloader(), 0
    for epoch in range(2):
        for at, batch in enumerate(loader):
            for row, (key, tokens) in enumerate(zip(batch["keys"], batch["image_tokens"], strict=True)):
                position = 4 * at + row
                crop = int(torch.randint(3, (), generator=generator_of(5, epoch, position)))
                assert torch.equal(tokens, codes.codes(numbers[key], crop))
                seen.add(crop)
    assert seen == {0, 1, 2} and position > 20
    for batch in [*data().val_dataloader(), *data(augment=False).train_dataloader()]:
        assert torch.equal(batch["image_tokens"], torch.stack([codes.codes(numbers[key]) for key in batch["keys"]]))


def test_drawings_and_their_codes_are_split_alike(tmp_path):
    source = drawings(40)
    codes = encode_source(source, tokenizer(), tmp_path / "codes")
    for ours, theirs in zip(split_by_key(codes, 0.2), split_by_key(source, 0.2), strict=True):
        assert torch.equal(ours, theirs) and len(ours)


def test_captions_keys_and_splits_of_a_folder_come_along(tmp_path):
    source = FolderSource(folder_of(tmp_path / "pictures"), need_captions=True)
    codes = encode_source(source, tokenizer(), tmp_path / "codes", EncodeConfig(batch_size=4))
    assert torch.equal(codes_in(codes), expected_codes(source))
    assert rows_of(codes) == rows_of(source)
    assert rows_of(codes)[2] == ("2.png", ("picture 2", "Nummer 2, größer"), "val")


def test_progress_counts_pictures_those_that_are_there_too(tmp_path):
    seen = []
    config = EncodeConfig(batch_size=4, rows_per_shard=6)
    encode_source(drawings(), tokenizer(), tmp_path / "codes", config, progress=seen.append)
    assert seen == [0, 4, 2, 4, 1]
    (tmp_path / "codes" / "000001.safetensors").unlink()
    seen.clear()
    encode_source(drawings(), tokenizer(), tmp_path / "codes", config, progress=seen.append)
    assert seen == [6, 4, 1]


@pytest.mark.parametrize("error", [ValueError("gone"), KeyboardInterrupt()])
def test_what_fails_on_the_way_leaves_finished_shards_and_is_gone_on_with(tmp_path, error):
    class Failing(ShapesSource):
        def image(self, index: int, least: int | None = None) -> Image.Image:
            if index == 6:
                raise error
            return super().image(index, least)

    config = EncodeConfig(batch_size=4, rows_per_shard=5)
    with pytest.raises(type(error)):
        encode_source(Failing(drawings().config), tokenizer(), tmp_path / "codes", config)
    first = tmp_path / "codes" / "000000.safetensors"
    written = first.stat().st_mtime_ns
    with pytest.raises(ValueError, match="codes is half-made"):
        CodesSource(tmp_path / "codes")
    codes = encode_source(drawings(), tokenizer(), tmp_path / "codes", config)
    assert torch.equal(codes_in(codes), expected_codes(drawings()))
    assert first.stat().st_mtime_ns == written


def test_a_finished_folder_is_left_as_it_is(tmp_path, monkeypatch):
    encode_source(drawings(), tokenizer(), tmp_path / "codes")
    monkeypatch.setattr(encoding, "_encode", None)
    monkeypatch.setattr(code_manifest.os, "fsync", None)
    assert len(encode_source(drawings(), tokenizer(), tmp_path / "codes")) == 11


def test_other_pictures_or_another_tokenizer_are_refused_by_name(tmp_path):
    encode_source(drawings(), tokenizer(), tmp_path / "codes")
    with pytest.raises(ValueError, match=r"begun with others: data was \w{16} and is \w{16}, count was 11 and is 12"):
        encode_source(drawings(12), tokenizer(), tmp_path / "codes")
    other = DiscreteVAE(tokenizer().config).eval()
    with pytest.raises(ValueError, match=f"fingerprint was {fingerprint(tokenizer())} and is {fingerprint(other)}"):
        encode_source(drawings(), other, tmp_path / "codes")


def test_a_folder_with_something_else_is_kept(tmp_path):
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="codes exists already and holds no codes"):
        encode_source(drawings(), tokenizer(), tmp_path / "codes")
    assert (tmp_path / "codes" / "mine.txt").read_text() == "mine"


def test_no_pictures(tmp_path):
    class Empty(ShapesSource):
        def __len__(self) -> int:
            return 0

    with pytest.raises(ValueError, match=r"no pictures to encode for .*codes"):
        encode_source(Empty(ShapesConfig()), tokenizer(), tmp_path / "codes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", ["crops=0", "rows_per_shard=0", "batch_size=0", "workers=-1", f"seed={2**63}"])
def test_settings(setting):
    name, _, value = setting.partition("=")
    with pytest.raises(ValueError, match=f"{setting}, expected"):
        EncodeConfig(**{name: int(value)})


# ---- kill -9


def in_a_process(folder: Path, moment: int | None, config: EncodeConfig) -> tuple[int, int]:
    """Encodes in a process of its own, which a SIGKILL ends when it passes the moment of that number: before and after
    each batch, and around each call that makes a file, syncs or renames it.

    Returns its wait status and how many moments it passed, where it came to its end.
    """
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reader) as passed:
            return status, int(passed.read() or -1)
    passed = 0

    def pass_moment() -> None:
        nonlocal passed
        if passed == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        passed += 1

    def watched(function: Callable) -> Callable:
        def call(*args, **settings):
            pass_moment()
            result = function(*args, **settings)
            pass_moment()
            return result

        return call

    try:
        encoding._encode = watched(encoding._encode)
        code_manifest.os.fsync = watched(os.fsync)
        for name in ("open", "replace", "unlink", "mkdir"):
            setattr(Path, name, watched(getattr(Path, name)))
        encode_source(drawings(7), tokenizer(), folder, config)
        os.write(writer, str(passed).encode())
        os._exit(0)
    finally:
        os._exit(1)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_kills_at_any_moment_lose_and_double_nothing(tmp_path):
    """Every moment once, and then several in one encoding, drawn at random."""
    config = EncodeConfig(batch_size=2, rows_per_shard=3)
    status, moments = in_a_process(tmp_path / "whole", None, config)
    assert status == 0 and moments > 40
    expected = files_of(tmp_path / "whole")
    assert len(expected) == 4
    draws = random.Random(0)
    plans = [[moment] for moment in range(moments)]
    plans += [[draws.randrange(moments // 3) for _ in range(5)] for _ in range(3)]
    kills = 0
    for number, plan in enumerate(plans):
        folder = tmp_path / f"killed-{number}"
        for moment in plan:
            status, _ = in_a_process(folder, moment, config)
            assert status in (0, signal.SIGKILL)
            kills += status == signal.SIGKILL
        assert in_a_process(folder, None, config)[0] == 0
        assert files_of(folder) == expected, f"killed at {plan}"
    assert kills >= moments
    source = CodesSource(tmp_path / "killed-0")
    assert [source.key(i) for i in range(len(source))] == [drawings().key(i) for i in range(7)]


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
    args = ["--tokenizer", model, "--folder", pictures, "--out", tmp_path / "codes"]

    def opened(*given, **settings):
        source = open_pictures(*given, **settings)
        (pictures / "4.png").unlink()
        return source

    open_pictures = encode.open_pictures
    monkeypatch.setattr(encode, "open_pictures", opened)
    with pytest.raises(SystemExit) as stop:
        run_script(monkeypatch, *args)
    assert stop.value.code == 2
    assert re.search(r"4\.png: No such file", capsys.readouterr().err)
    assert not (tmp_path / "codes" / "manifest.json").exists()


def test_two_devices_are_ended_and_gone_on_with_by_one(tmp_path, model, monkeypatch, capsys):
    def args(out: str) -> list[str]:
        settings = ["--drawings.count", "400", "--rows_per_shard", "16", "--workers", "0", "--crops", "2"]
        return ["--tokenizer", str(model), *settings, "--out", str(tmp_path / out)]

    encode.encode(args("one"))
    two = tmp_path / "two"
    with subprocess.Popen(
        [sys.executable, ROOT / "encode.py", *args("two"), "--devices", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        while process.poll() is None and not (two / "000001.safetensors").exists():  # the second device's first
            time.sleep(0.01)
        process.terminate()
        said, errors = process.communicate()  # until the other process has ended, too
    assert (process.returncode, errors) == (0, "")
    assert f"--out {two} --devices 2\n" in said
    made = {path.name: path.stat().st_mtime_ns for path in two.glob("*.safetensors")}
    assert 1 <= len(made) < 25
    encode.encode(args("two"))
    assert files_of(two) == files_of(tmp_path / "one")
    assert {name: (two / name).stat().st_mtime_ns for name in made} == made


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
