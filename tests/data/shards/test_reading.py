"""Training from shards: each sample once an epoch whatever reads, exact resume, pictures that turn out broken."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from data.datamodule import PriorData, TokenizerData
from data.order import Item, generator_of
from data.rejects import FetchedRejects, LateRejects, Reason, Reject, Rejected
from data.samples import MOST_REJECTED, Samples
from data.settings import Loading, TextConfig
from data.shards.config import ShardsConfig, ShardSet
from tests.data.shards.tars import picture, sample, shards_of, write_tar


def rank_of(data, rank: int, world_size: int):
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        overfit_batches=0,
        current_epoch=0,
        num_training_batches=10**6,
        fit_loop=SimpleNamespace(
            epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=0)))
        ),
    )
    return data


def loader_of(data):
    """The training loader, without the progress of a loop: that holds the data, which holds the loader, and the workers
    of such a cycle end late."""
    loader = data.train_dataloader()
    loader.progress = None
    return loader


def tokenizer_data(shards, **loading) -> TokenizerData:
    settings = {"batch_size": 4, "workers": 0, "val_fraction": 0.02, "max_rejected": 1.0} | loading
    shards = str(shards) if isinstance(shards, Path) else shards
    return TokenizerData(shards=shards, image_size=4, loading=Loading(**settings))


def keys_of(loader) -> list[list[str]]:
    return [batch["keys"] for batch in loader]


@pytest.fixture(scope="module")
def thousands(tmp_path_factory) -> Path:
    """2,400 samples in 24 shards."""
    return shards_of(tmp_path_factory.mktemp("thousands"), range(2400), size=100)


def test_two_ranks_with_two_workers_see_each_sample_once_an_epoch(thousands):
    seen = []
    for rank in range(2):
        data = rank_of(tokenizer_data(thousands, workers=2, batch_size=8), rank, 2)
        data.setup()
        loader = loader_of(data)
        seen.append([keys_of(loader) for _ in range(2)])
    train = {data.source.key(int(index)) for index in data.train_indices}
    assert len(train) + len(data.val_indices) == 2400 and len(data.val_indices) > 20
    left_out = len(train) % 16
    for epoch in range(2):
        counts = Counter(key for rank in seen for batch in rank[epoch] for key in batch)
        assert set(counts.values()) == {1} and set(counts) <= train
        assert len(counts) == len(train) - left_out
    assert seen[0][0] != seen[0][1]


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_in_the_middle_of_an_epoch(tmp_path, workers):
    """Batches with their pixels, of the second epoch too."""

    def stream(data):
        loader = data.train_dataloader()
        while True:
            yield from loader

    def opened():
        data = tokenizer_data(tmp_path, workers=workers, batch_size=10)
        data.setup()
        return data

    shards_of(tmp_path, range(200), size=20)
    whole = stream(opened())
    expected = [next(whole) for _ in range(30)]
    for done in (7, 27):
        first = opened()
        iterator = stream(first)
        for _ in range(done):
            next(iterator)
        second = opened()
        second.load_state_dict(first.state_dict())
        again = stream(second)
        for batch in expected[done:]:
            found = next(again)
            assert found["keys"] == batch["keys"] and torch.equal(found["images"], batch["images"])


def test_other_shards_are_refused_in_the_middle_of_an_epoch(tmp_path):
    data = tokenizer_data(shards_of(tmp_path / "a", range(40)), val_fraction=0.2)
    data.setup()
    next(iter(data.train_dataloader()))
    state = data.state_dict()
    shards_of(tmp_path / "b", range(40))
    write_tar(tmp_path / "b" / "00002.tar", [m for n in range(20, 30) for m in sample(n, captions=["other"])])
    other = tokenizer_data(tmp_path / "b", val_fraction=0.2)
    other.setup()
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"middle of an epoch: data was \w{16} and is \w{16}"):
        other.train_dataloader()


def test_captions_come_from_the_shards(tmp_path):
    shards_of(tmp_path, range(60))
    data = PriorData(
        shards=str(tmp_path),
        image_size=4,
        text=TextConfig(text_len=16, vocab_size=300, bpe_dropout=0),
        loading=Loading(batch_size=4, workers=0, val_fraction=0.2),
    )
    data.setup()
    for batch in data.train_dataloader():
        assert batch.keys() == {"keys", "captions", "text_tokens", "images"}
        assert batch["captions"] == [f"thing {int(key)}" for key in batch["keys"]]


# ---- pictures that turn out broken

BROKEN = {3, 17, 18, 39}


@pytest.fixture
def with_broken(tmp_path) -> Path:
    members = []
    for number in range(40):
        content = picture(number, "JPEG", (64, 64))
        members += [(f"{number:09d}.jpg", content[:-20] if number in BROKEN else content)]
        members += [(f"{number:09d}.json", json.dumps({"split": "val" if number % 10 == 9 else "train"}).encode())]
    write_tar(tmp_path / "shards" / "0.tar", members)
    return tmp_path / "shards"


def test_another_sample_comes_in_the_place_of_a_broken_one(with_broken, tmp_path, caplog):
    report = str(tmp_path / "run" / "rejects.json")

    def batches(workers: int):
        data = tokenizer_data(with_broken, workers=workers, report=report)
        data.setup()
        loader = data.train_dataloader()
        return [batch for _ in range(2) for batch in loader] + list(data.val_dataloader())

    first = batches(0)
    names = {f"{number:09d}" for number in BROKEN}
    assert all(len(batch["keys"]) == 4 and batch.keys() == {"keys", "images"} for batch in first)
    assert not {key for batch in first for key in batch["keys"]} & names
    listed = [json.loads(line) for line in (tmp_path / "run" / "rejects-found.jsonl").read_text().splitlines()]
    assert sorted(each["file"] for each in listed) == sorted(f"0.tar: {name}" for name in names)
    assert {each["reason"] for each in listed} == {"broken picture"}
    assert caplog.text.count("unusable, and another sample in its place: 0.tar: 0000000") == 4

    again = batches(2)
    for a, b in zip(first, again, strict=True):
        assert a["keys"] == b["keys"] and torch.equal(a["images"], b["images"])
    assert len((tmp_path / "run" / "rejects-found.jsonl").read_text().splitlines()) == 4, "each is listed once"


def sound_members() -> list[tuple[str, bytes]]:
    """Of the samples in `with_broken`, were they all whole."""
    return [
        member
        for number in range(40)
        for member in (
            (f"{number:09d}.jpg", picture(number, "JPEG", (64, 64))),
            (f"{number:09d}.json", json.dumps({"split": "val" if number % 10 == 9 else "train"}).encode()),
        )
    ]


def test_all_others_stay_where_they_are(with_broken, tmp_path):
    """Only the places of the broken ones differ from an epoch in which they are whole."""
    whole = tmp_path / "whole"
    write_tar(whole / "0.tar", sound_members())
    keys = []
    for folder in (with_broken, whole):
        data = tokenizer_data(folder)
        data.setup()
        keys.append([key for batch in data.train_dataloader() for key in batch["keys"]])
    differing = {b for a, b in zip(*keys, strict=True) if a != b}
    assert differing == {f"{number:09d}" for number in BROKEN if number % 10 != 9} & set(keys[1])


def test_too_many_broken_ones_stop_the_run(with_broken):
    data = tokenizer_data(with_broken, max_rejected=0.05)
    data.setup()
    with pytest.raises(ValueError, match=r"3 samples .* --data\.loading\.max_rejected allows 2 of 40; the last is"):
        list(data.train_dataloader())


class Ruined:
    """A source of which nothing can be read any more."""

    def __len__(self) -> int:
        return 8

    def key(self, index: int) -> str:
        return str(index)

    def image(self, index: int, least: int | None = None) -> Image.Image:
        raise Rejected(Reject(str(index), Reason.BROKEN, "gone"))


def test_where_nothing_can_be_read_the_run_stops():
    source = Ruined()
    samples = Samples(source, torch.arange(8), 0, [lambda index, generator: {"images": source.image(index)}])
    with pytest.raises(ValueError, match=f"{MOST_REJECTED} samples in a row are unusable"):
        samples[Item(0, 0, 3)]


def test_what_fills_a_place_is_drawn_anew_for_each():
    class Half(Ruined):
        def image(self, index: int, least: int | None = None) -> int:
            return index if index >= 4 else super().image(index)

    source = Half()
    samples = Samples(source, torch.arange(8), 5, [lambda index, generator: {"images": source.image(index)}])
    rows = [samples[Item(0, position, 0)] for position in range(200)]
    assert set(Counter(row["images"] for row in rows)) == {4, 5, 6, 7}
    for position, row in enumerate(rows):
        drawn = (int(torch.randint(8, (), generator=generator_of(5, 0, position, n))) for n in range(20))
        assert row["images"] == next(index for index in drawn if index >= 4)


def test_late_rejects_are_kept_over_an_interruption(tmp_path, caplog):
    path = tmp_path / "found.jsonl"
    rejects = [Reject(f"{n}\udcff", Reason.BROKEN, "cut") for n in range(40)]
    LateRejects(path, 0.1, 400).add(rejects[:20])
    with path.open("ab") as file:
        file.write(b'{"file": "half a li')
    LateRejects(path, 0.1, 400).add(rejects)
    files = [json.loads(line)["file"] for line in path.read_bytes().splitlines() if b"half" not in line]
    assert files == [f"{n}\udcff" for n in range(40)]
    assert r"0\udcff" in caplog.text and caplog.text.encode(), "what every log takes"
    with pytest.raises(ValueError, match=r"42 samples .* --data\.loading\.max_rejected allows 40 of 400; all are in"):
        LateRejects(path, 0.1, 400).add([Reject("x", Reason.BROKEN), Reject("y", Reason.BROKEN)])


def test_late_rejects_are_counted_over_devices(tmp_path):
    """Each of four finds others, and one that the first has found, too: none may wait until it has found 41 alone."""
    devices = [LateRejects(tmp_path / "found.jsonl", 0.1, 400) for _ in range(4)]
    for n in range(10):
        for rank, device in enumerate(devices):
            device.add([Reject(f"{rank}-{n}", Reason.BROKEN), Reject("0-0", Reason.BROKEN)])
    for device in devices:
        with pytest.raises(ValueError, match=r"41 samples .* allows 40 of 400"):
            device.add([Reject("last", Reason.BROKEN)])


def fetched(shard: str, samples: int, reason: Reason, *numbers: int) -> FetchedRejects:
    return FetchedRejects(shard, samples, tuple(Reject(f"{shard}: {n}", reason) for n in numbers))


def test_rejects_of_streams_are_a_share_of_what_was_fetched(tmp_path, caplog):
    path = tmp_path / "found.jsonl"
    late = LateRejects(path, 0.1, 30)
    for _ in range(3):  # epochs
        for shard in range(20):
            late.add([fetched(f"{shard}.tar", 20, Reason.NO_PICTURE, 0), Reject(f"{shard}.tar: 1", Reason.BROKEN)])
    LateRejects(path, 0.1, 30).add([fetched("0.tar", 20, Reason.NO_PICTURE, 0)])  # goes on: what it has fetched counts
    assert len(path.read_bytes().splitlines()) == 40
    assert "unusable, and left out of its shard: 0.tar: 0 (caption without a picture); 1 so far" in caplog.text
    assert "unusable, and another sample in its place: 0.tar: 1 (broken picture); 1 so far" in caplog.text
    with pytest.raises(ValueError, match=r"43 samples turned out unusable, .* allows 42 of 420"):
        late.add([fetched("x.tar", 20, Reason.BROKEN, 0, 1, 2)])


def test_samples_that_are_validated_on_are_not_unusable(tmp_path, caplog):
    late = LateRejects(tmp_path / "found.jsonl", 0, 30)
    late.add([fetched("0.tar", 20, Reason.HELD_BACK, *range(20))])
    assert "not trained on: 0.tar: 0 (also validated on); 1 so far" in caplog.text and "unusable" not in caplog.text
    assert LateRejects(tmp_path / "found.jsonl", 0, 30).add([]) is None
    with pytest.raises(ValueError, match="1 samples turned out unusable"):
        late.add([Reject("0.tar: 20", Reason.BROKEN)])


def test_late_rejects_of_other_data_do_not_count(with_broken, tmp_path):
    """The same run goes on once the pictures are mended, which makes it other data."""
    settings = {"max_rejected": 0.05, "report": str(tmp_path / "run" / "rejects.json")}
    for _ in range(2):
        data = tokenizer_data(with_broken, **settings)
        data.setup()
        with pytest.raises(ValueError, match=r"3 samples turned out .* all are in .*rejects-found\.jsonl: mend them"):
            list(data.train_dataloader())
    write_tar(with_broken / "0.tar", sound_members())
    data = tokenizer_data(with_broken, **settings)
    data.setup()
    assert list(data.train_dataloader())
    data._late_rejects.add([Reject("another", Reason.BROKEN)])


# ---- mixtures


def mixture(tmp_path: Path, *weights: float | None, sizes=(600, 100)) -> ShardsConfig:
    sets = []
    for number, (weight, size) in enumerate(zip(weights, sizes, strict=True)):
        folder = tmp_path / str(number)
        if not folder.exists():
            shards_of(folder, range(1000 * number, 1000 * number + size), size=50)
        sets.append(ShardSet(path=str(folder), weight=weight, name="ab"[number]))
    return ShardsConfig(sets=sets)


def test_weights_are_shares_of_an_epoch(tmp_path):
    data = tokenizer_data(mixture(tmp_path, 1.0, 3.0), batch_size=1)
    data.setup()
    n = len(data.train_indices)
    sizes = Counter(data.source.key(int(i))[0] for i in data.train_indices)
    loader = data.train_dataloader()
    epochs = [[key for batch in keys_of(loader) for key in batch] for _ in range(4)]
    small: Counter[str] = Counter()
    for keys in epochs:
        assert len(keys) == n and abs(Counter(key[0] for key in keys)["a"] - n / 4) < 1
        small.update(key for key in keys if key[0] == "b")
        assert len(small) == sizes["b"] and max(small.values()) - min(small.values()) <= 1
    large = Counter(key for keys in epochs[:3] for key in keys if key[0] == "a")
    assert set(large.values()) == {1}, "nothing of a large set comes again before all of it has come"
    large = Counter(key for keys in epochs for key in keys if key[0] == "a")
    assert len(large) == sizes["a"]
    half = Counter(key[0] for key in epochs[0][: n // 2])
    assert abs(half["a"] - n / 8) < 5 * (n / 2 * 3 / 16) ** 0.5, "sets are mixed within an epoch"


def test_without_weights_each_sample_comes_once(tmp_path):
    data = tokenizer_data(mixture(tmp_path, None, None), batch_size=1)
    data.setup()
    keys = Counter(key for batch in keys_of(data.train_dataloader()) for key in batch)
    assert set(keys.values()) == {1} and len(keys) == len(data.train_indices)


def test_a_mixture_goes_on_exactly_and_is_shared_out(tmp_path):
    config = mixture(tmp_path, 1.0, 2.0)

    def opened(rank: int = 0, world_size: int = 1, batch_size: int = 8):
        data = rank_of(tokenizer_data(config, batch_size=batch_size, workers=2), rank, world_size)
        data.setup()
        return data

    data = opened()
    data.trainer = None
    loader = loader_of(data)
    whole = [keys_of(loader) for _ in range(2)]
    again = opened()
    again.load_state_dict({"epoch": 1, "position": 40, "data": again.fingerprint} | loader.order.arithmetic())
    assert keys_of(loader_of(again)) == whole[1][5:]
    shares = [[key for batch in keys_of(loader_of(opened(rank, 2, 4))) for key in batch] for rank in (0, 1)]
    assert [key for pair in zip(*shares, strict=True) for key in pair] == [key for batch in whole[0] for key in batch]


def test_other_weights_are_other_data(tmp_path):
    digests = set()
    for weights in ((None, None), (1.0, 1.0), (1.0, 2.0)):
        data = tokenizer_data(mixture(tmp_path, *weights))
        data.setup()
        digests.add(data.fingerprint)
    assert len(digests) == 3


def test_a_set_that_only_validates_has_no_weight(tmp_path):
    shards_of(tmp_path / "0", range(30))
    write_tar(tmp_path / "1" / "0.tar", [member for n in range(30, 60) for member in sample(n, split="val")])
    sets = [ShardSet(path=str(tmp_path / "0"), weight=1.0), ShardSet(path=str(tmp_path / "1"), weight=1.0)]
    data = tokenizer_data(ShardsConfig(sets=sets))
    data.setup()
    with pytest.raises(ValueError, match=r"set 2 of the shards has a weight of 1\.0, but no training samples"):
        data.train_dataloader()
    assert {data.source.key(int(i)) for i in data.val_indices} >= {f"{n:09d}" for n in range(30, 60)}
