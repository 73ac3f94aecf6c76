"""Pictures to a folder of codes: the codes of the pictures' crops, the same bytes however often it is interrupted."""

import hashlib
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import encoding
import whole_files
from data.code_manifest import Recipe
from data.codes import CodesSource
from data.datamodule import PriorData
from data.folder import FolderSource
from data.order import generator_of
from data.settings import Loading, TextConfig
from data.shapes import ShapesConfig, ShapesSource
from data.split import split_by_key
from data.transforms import evaluation_crop, prior_augmentation
from encoding import EncodeConfig, encode_source
from pipeline import fingerprint
from tests.encoding_inputs import SIZE, codes_in, drawings, expected_codes, files_of, folder_of, rows_of, tokenizer
from vqvae.model import DiscreteVAE


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
    monkeypatch.setattr(whole_files.os, "fsync", None)
    assert len(encode_source(drawings(), tokenizer(), tmp_path / "codes")) == 11


def test_other_pictures_or_another_tokenizer_are_refused_by_name(tmp_path):
    encode_source(drawings(), tokenizer(), tmp_path / "codes")
    with pytest.raises(ValueError, match=r"begun with others: data was \w{16} and is \w{16}, count was 11 and is 12"):
        encode_source(drawings(12), tokenizer(), tmp_path / "codes")
    other = DiscreteVAE(tokenizer().config).eval()
    with pytest.raises(ValueError, match=f"fingerprint was {fingerprint(tokenizer())} and is {fingerprint(other)}"):
        encode_source(drawings(), other, tmp_path / "codes")
    with pytest.raises(ValueError, match="begun with others: batch_size was 32 and is 5"):
        encode_source(drawings(), tokenizer(), tmp_path / "codes", EncodeConfig(batch_size=5))


@pytest.mark.parametrize("lacks", ["manifest.json", "000001.safetensors"])
def test_codes_of_former_versions_are_gone_on_with(tmp_path, monkeypatch, lacks):
    """Which did not say the batch size and the device they were encoded by."""
    config = EncodeConfig(rows_per_shard=4)
    with monkeypatch.context() as former:
        former.setattr(encoding, "Recipe", lambda *, batch_size, device, **said: Recipe(**said))
        encode_source(drawings(), tokenizer(), tmp_path / "codes", config)
        if lacks == "manifest.json":
            recipe = json.loads((tmp_path / "codes" / "manifest.json").read_text())
            (tmp_path / "codes" / "recipe.json").write_text(json.dumps(recipe))
            (tmp_path / "codes" / "000002.safetensors").unlink()
    (tmp_path / "codes" / lacks).unlink()
    codes = encode_source(drawings(), tokenizer(), tmp_path / "codes", config)
    assert rows_of(codes) == rows_of(drawings())
    assert "batch_size" not in json.loads((tmp_path / "codes" / "manifest.json").read_text())


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
        whole_files.os.fsync = watched(os.fsync)
        for name in ("open", "replace", "unlink", "mkdir"):
            setattr(Path, name, watched(getattr(Path, name)))
        encode_source(drawings(7), tokenizer(), folder, config)
        os.write(writer, str(passed).encode())
        os._exit(0)
    finally:
        os._exit(1)


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
