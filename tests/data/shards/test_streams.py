"""Streamed shards: the same samples as on disk, each once an epoch, exact resume, and streams that fail."""

import http.server
import io
import json
import os
import shutil
import threading
from collections import Counter
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from data.datamodule import PriorData, TokenizerData
from data.opening import open_pictures
from data.rejects import Reason
from data.settings import Loading, TextConfig
from data.shards.config import ShardsConfig, ShardSet
from data.shards.source import ShardsSource
from data.shards.stream import StreamedShards, fetch
from data.text import TextTokenizer
from tests.data.shards.tars import number_of, picture, sample, shards_of, write_tar
from tests.data.shards.test_reading import keys_of, loader_of, rank_of
from tests.data.test_resume import Watch, trainer_of


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    monkeypatch.setattr("data.shards.stream.WAITS", (0.0, 0.0))


def streamed(folder: Path, samples: int = 80, **settings) -> ShardsConfig:
    """The shards of a folder through a pipe, and another one to validate on."""
    paths = sorted(path.stem for path in folder.glob("*.tar"))
    pattern = f"pipe:cat {folder}/{{{','.join(paths)}}}.tar" if len(paths) > 1 else f"pipe:cat {folder}/{paths[0]}.tar"
    return ShardsConfig(sets=pattern, samples=samples, val=held_out(folder), **settings)


def held_out(folder: Path) -> str:
    """Ten samples beside a folder."""
    members = [member for number in range(60000, 60010) for member in sample(number)]
    return str(write_tar(folder.with_name("held-out.tar"), members))


def data_of(config: ShardsConfig, **loading) -> TokenizerData:
    settings = {"batch_size": 5, "workers": 0, "max_rejected": 1.0} | loading
    data = TokenizerData(shards=config, image_size=4, loading=Loading(**settings))
    data.setup()
    return data


@pytest.fixture
def eight(tmp_path) -> Path:
    """80 samples in 8 shards."""
    return shards_of(tmp_path / "eight", range(80), size=10)


def test_a_stream_holds_what_the_shard_holds(tmp_path):
    members = [m for n in range(12) for m in sample(n)] + [("x.txt", b"alone"), *sample(50, split="val")]
    path = write_tar(tmp_path / "a.tar", [*members, ("bare.png", picture(3))])
    local = ShardsSource(str(path), need_captions=True, max_rejected=1)
    shard = fetch(f"pipe:cat {path}", need_captions=True)
    assert [shard.key(row) for row in shard.rows] == [local.key(i) for i in range(12)]
    assert [number_of(shard.image(row)) for row in shard.rows] == list(range(12))
    assert [shard.captions(row) for row in shard.rows] == [local.captions(i) for i in range(12)]
    assert len(fetch(f"pipe:cat {path}", need_captions=False).rows) == 13
    assert [reject._replace(file=reject.file.removeprefix("pipe:cat ")) for reject in shard.rejects] == [
        reject._replace(file=f"{tmp_path}/{reject.file}") for reject in local.report.rejects
    ]
    assert [reject.reason for reject in shard.rejects] == [Reason.NO_PICTURE, Reason.NO_CAPTION]


@pytest.mark.skipif(shutil.which("curl") is None, reason="the library reads http by curl")
def test_shards_behind_http(eight):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=eight)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        config = ShardsConfig(sets=f"{url}/{{00000..00007}}.tar", samples=80, val=held_out(eight))
        keys = [key for batch in keys_of(data_of(config).train_dataloader()) for key in batch]
        assert sorted(keys) == [f"{n:09d}" for n in range(80)]
        with pytest.raises(
            ValueError, match=r"/nowhere\.tar: cannot be read \(the command 'curl .* ended with exit code"
        ):
            fetch(f"{url}/nowhere.tar", need_captions=False)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 2)])
def test_each_sample_comes_once_an_epoch(eight, world_size, workers):
    epochs = [[], []]
    for rank in range(world_size):
        loader = loader_of(rank_of(data_of(streamed(eight), workers=workers), rank, world_size))
        assert len(loader) == 16 // world_size
        for epoch in epochs:
            batches = keys_of(loader)
            assert [len(batch) for batch in batches] == [5] * len(loader)
            epoch.append([key for batch in batches for key in batch])
    for epoch in epochs:
        assert Counter(key for share in epoch for key in share) == {f"{n:09d}": 1 for n in range(80)}
    assert epochs[0] != epochs[1]


def test_samples_of_several_shards_are_mixed(eight):
    keys = [int(key) // 10 for batch in keys_of(data_of(streamed(eight)).train_dataloader()) for key in batch]
    assert len(set(keys[:10])) == 2 and keys != sorted(keys)


@pytest.mark.parametrize("workers", [0, 3])
def test_going_on_in_the_middle_of_an_epoch(eight, workers):
    """80 samples in batches of 5: 16 an epoch, which three workers do not share out evenly."""

    def stream(data):
        loader = data.train_dataloader()
        while True:
            yield from loader

    config = streamed(eight)
    expected = list(islice(stream(data_of(config, workers=workers)), 34))
    for done in (5, 16, 21):
        first = data_of(config, workers=workers)
        iterator = stream(first)
        for _ in range(done):
            next(iterator)
        second = data_of(config, workers=workers)
        second.load_state_dict(first.state_dict())
        for batch, found in zip(expected[done:], stream(second), strict=False):  # the stream has no end
            assert found["keys"] == batch["keys"] and torch.equal(found["images"], batch["images"])


@pytest.mark.filterwarnings("ignore:.*(many workers|Checkpoint|logging|IterableDataset|fit_loop|LeafSpec).*")
def test_going_on_under_the_trainer(eight, tmp_path):
    config = streamed(eight)
    whole, resumed = Watch(), Watch()
    saving = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=21, save_top_k=-1)
    trainer_of(tmp_path, [saving]).fit(whole, data_of(config, workers=2))
    trainer = trainer_of(tmp_path, enable_checkpointing=False)
    trainer.fit(resumed, data_of(config, workers=2), ckpt_path=tmp_path / "step=21.ckpt")
    assert len(whole.trained) == 48 and resumed.trained == whole.trained[21:]


def test_another_number_of_workers_is_refused_in_the_middle_of_an_epoch(eight):
    data = data_of(streamed(eight), workers=2)
    next(iter(data.train_dataloader()))
    other = data_of(streamed(eight), workers=3)
    other.load_state_dict(data.state_dict())
    with pytest.raises(ValueError, match="workers was 2 and is 3"):
        other.train_dataloader()
    other = data_of(streamed(eight, samples=75), workers=2)
    other.load_state_dict(data.state_dict())
    with pytest.raises(ValueError, match=r"data was \w{16} and is \w{16}"):
        other.train_dataloader()


def test_an_epoch_may_be_longer_or_shorter_than_the_streams(eight):
    for samples in (20, 200):
        loader = data_of(streamed(eight, samples)).train_dataloader()
        keys = Counter(key for batch in keys_of(loader) for key in batch)
        assert sum(keys.values()) == samples and max(keys.values()) - min([0, *keys.values()]) <= -(-samples // 80)


def test_weights_are_shares(tmp_path):
    sets = []
    for name, weight in (("a", 3.0), ("b", 1.0)):
        shards_of(tmp_path / name, range(100 * len(sets), 100 * len(sets) + 40))
        sets.append(ShardSet(path=f"pipe:cat {tmp_path}/{name}/0000{{0..3}}.tar", weight=weight))
    config = ShardsConfig(sets=sets, samples=2000, val=held_out(tmp_path / "a"))
    rows = StreamedShards(config, need_captions=False, max_rejected=0, report=None).draws(0, 0, 0, 1)
    drawn = [int(shard.key(row)) for shard, row in islice(rows, 2000)]
    first = sum(number < 100 for number in drawn)
    assert abs(first - 1500) < 5 * (2000 * 3 / 16) ** 0.5
    assert Counter(number for number in drawn if number < 100).most_common()[-1][1] >= first // 40


def test_validation_is_on_the_local_shards(eight):
    data = data_of(streamed(eight))
    assert [key for batch in keys_of(data.val_dataloader()) for key in batch] == [
        f"{n:09d}" for n in range(60000, 60010)
    ]


def test_what_is_validated_on_is_not_trained_on(eight):
    """By its picture, under whatever key; another picture of an equal key is trained on, for keys number samples."""
    theirs = [("000000007.png", picture(600)), ("000000007.txt", b"t")]
    members = [*sample(3), ("other.png", picture(14)), ("other.txt", b"t"), *sample(500), *theirs]
    val = write_tar(eight.with_name("val.tar"), members)
    config = ShardsConfig(sets=f"pipe:cat {eight}/0000{{0..7}}.tar", samples=78, val=str(val))
    report = eight.with_name("rejects.json")
    data = data_of(config, batch_size=1, report=str(report), max_rejected=0)
    keys = [key for batch in keys_of(data.train_dataloader()) for key in batch]
    assert sorted(map(int, keys)) == [n for n in range(80) if n not in (3, 14)]
    found = [json.loads(line) for line in report.with_name("rejects-found.jsonl").read_text().splitlines()]
    assert sorted((each["file"][-9:], each["reason"]) for each in found) == [
        ("000000003", "also validated on"),
        ("000000014", "also validated on"),
    ]


def test_the_prior_needs_a_text_tokenizer(eight, tmp_path):
    def prior(**text) -> PriorData:
        config = TextConfig(text_len=16, vocab_size=300, bpe_dropout=0, **text)
        return PriorData(shards=streamed(eight), image_size=4, text=config, loading=Loading(batch_size=5, workers=0))

    with pytest.raises(ValueError, match=r"name a tokenizer\.json as text\.tokenizer"):
        prior().setup()
    TextTokenizer.train(["thing"], 300).save(tmp_path / "tokenizer.json")
    data = prior(tokenizer=str(tmp_path / "tokenizer.json"))
    data.setup()
    for batch in data.train_dataloader():
        assert batch["captions"] == [f"thing {int(key)}" for key in batch["keys"]]


# ---- what goes wrong


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("false", r"cannot be read \(the command 'false' ended with exit code 1\)$"),
        ("cat {shard}; exit 3", r"cannot be read \(the command 'cat .*; exit 3' ended with exit code 3\)$"),
        ("kill -9 $$", r"cannot be read \(the command .* was ended by signal 9\)$"),
        ("head -c 3000 {shard}", "cut off: "),
        ("head -c 20480 {shard} | gzip", "not an uncompressed tar archive"),
        ("true", "an empty file"),
        ("no_such_command_anywhere 2>&-", "cannot be read"),
    ],
)
def test_a_stream_that_fails_is_named(eight, command, said):
    url = f"pipe:{command.format(shard=eight / '00000.tar')}"
    with pytest.raises(ValueError, match=f"^pipe:.*{said}"):
        fetch(url, need_captions=False)


def test_a_stream_that_failed_is_read_again(eight, tmp_path, caplog):
    shard, flag = eight / "00000.tar", tmp_path / "failed"
    url = f"pipe:test -e {flag} && cat {shard} || {{ touch {flag}; head -c 3000 {shard}; }}"
    assert len(fetch(url, need_captions=True).rows) == 10
    assert caplog.text.count("once more in 0 s") == 1 and "cut off" in caplog.text
    with pytest.raises(ValueError, match="cannot be read"):
        fetch("pipe:false", need_captions=True)
    assert caplog.text.count("pipe:false: cannot be read") == 2


def test_what_is_not_the_streams_fault_is_not_tried_again(tmp_path, monkeypatch, caplog):
    path = write_tar(tmp_path / "a.tar", sample(1))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: Path("/dev/full").open("r+b", buffering=0))  # noqa: SIM115
    with pytest.raises(ValueError, match=r"no temporary file for pipe:cat .*a\.tar \(No space left on device\)"):
        fetch(f"pipe:cat {path}", need_captions=False)
    assert "once more" not in caplog.text


def test_a_stream_is_closed_whatever_fails(monkeypatch):
    class Failing(io.BytesIO):
        def read(self, size: int = -1) -> bytes:
            raise OSError("reset by peer")

    streams = [Failing() for _ in range(3)]
    rest = iter(streams)
    monkeypatch.setattr(import_module("webdataset.gopen"), "gopen", lambda url: next(rest))
    with pytest.raises(ValueError, match=r"^pipe:x: cannot be read \(reset by peer\)"):
        fetch("pipe:x", need_captions=False)
    assert all(stream.closed for stream in streams)


def test_a_stream_that_falls_silent_has_failed(eight, monkeypatch, caplog):
    """The first attempt stops in the middle; its command is ended, and the second one is through."""
    monkeypatch.setattr("data.shards.stream.STALLED", 0.2)
    shard, flag = eight / "00000.tar", eight / "silent"
    url = f"pipe:test -e {flag} && cat {shard} || {{ echo $$ > {flag}; head -c 3000 {shard}; exec sleep 60; }}"
    assert len(fetch(url, need_captions=True).rows) == 10
    assert "not a byte in 0.2 s" in caplog.text
    with pytest.raises(ProcessLookupError):
        os.kill(int(flag.read_text()), 0)
    flag.unlink()
    monkeypatch.setattr("data.shards.stream.WAITS", ())
    with pytest.raises(ValueError, match=r"^pipe:.*: cannot be read \(not a byte in 0\.2 s\)"):
        fetch(url, need_captions=True)


def test_a_failing_stream_stops_the_run_by_name(eight):
    config = streamed(eight)
    (eight / "00004.tar").unlink()
    with pytest.raises(ValueError, match=r"00004\.tar: cannot be read"):
        list(data_of(config).train_dataloader())


def test_fewer_shards_than_readers_are_refused(eight):
    data = rank_of(data_of(streamed(eight)), 0, 9)
    with pytest.raises(ValueError, match=r"8 streamed shards from .* for 9 readers"):
        list(data.train_dataloader())


def test_streams_without_samples_do_not_go_on_for_ever(tmp_path):
    write_tar(tmp_path / "good.tar", sample(1))
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", [("x.txt", b"alone")])
    config = ShardsConfig(sets=f"pipe:cat {tmp_path}/{{0..2}}.tar", samples=10, val=str(tmp_path / "good.tar"))
    with pytest.raises(ValueError, match="no usable samples in 3 streamed shards"):
        list(data_of(config).train_dataloader())


def test_rejects_of_streams_are_listed_and_their_places_filled(tmp_path):
    folder, report = tmp_path / "shards", tmp_path / "run" / "rejects.json"
    for number in range(4):
        pictures = [picture(10 * number + n, "JPEG", (64, 64)) for n in range(10)]
        members = [(f"{number}-{n}.jpg", each[:-20] if n == 3 else each) for n, each in enumerate(pictures)]
        write_tar(folder / f"{number}.tar", [*members, (f"{number}-none.txt", b"alone")])

    def batches(workers: int) -> list[list[str]]:
        config = ShardsConfig(sets=f"pipe:cat {folder}/{{0..3}}.tar", samples=40, val=held_out(folder))
        return keys_of(data_of(config, workers=workers, report=str(report)).train_dataloader())

    for workers in (0, 2):
        first = batches(workers)
        keys = Counter(key for batch in first for key in batch)
        assert sum(keys.values()) == 40 and not any(key.endswith("-3") for key in keys)
        assert set(keys) == {f"{n}-{m}" for n in range(4) for m in range(10) if m != 3}
        assert batches(workers) == first
    lines = report.with_name("rejects-found.jsonl").read_text().splitlines()
    reasons = Counter(json.loads(line)["reason"] for line in lines)
    assert reasons == {"broken picture": 4, "caption without a picture": 4}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: ShardsConfig(sets="pipe:cat a.tar", samples=0), r"shards\.samples=0"),
        (
            lambda folder: ShardsConfig(sets=[ShardSet(path="pipe:cat a.tar", name="a")]),
            "name='a' of pipe:cat a.tar: only keys of shards on disk",
        ),
        (lambda folder: ShardsConfig(sets=str(folder), samples=10), "are for streamed shards"),
        (
            lambda folder: ShardsConfig(sets=[ShardSet(path="http://a.tar"), ShardSet(path=str(folder))]),
            "either all streamed or none: .* is on disk",
        ),
        (lambda folder: data_of(ShardsConfig(sets="pipe:cat a.tar", samples=10)), r"need shards\.samples.*shards\.val"),
        (
            lambda folder: data_of(streamed(folder, samples=4)).train_dataloader(),
            "4 training samples do not fill one batch",
        ),
        (
            lambda folder: open_pictures(None, None, Loading(), need_captions=False, shards=streamed(folder)),
            "can only be streamed, which is for training",
        ),
    ],
)
def test_settings_that_do_not_fit(eight, make, said):
    with pytest.raises(ValueError, match=said):
        make(eight)
