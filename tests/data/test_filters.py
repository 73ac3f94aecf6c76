"""Filters against what they would leave by hand."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.datamodule import PriorData, TokenizerData
from data.filters import FilteredSource, Filters, imported
from data.folder import FolderSource
from data.rejects import Reason
from data.settings import Loading, TextConfig
from data.shapes import ShapesConfig
from data.shards import grouping, index
from data.shards.config import ShardsConfig, ShardSet
from data.shards.mixture import MixedOrder
from data.shards.source import ShardsSource
from data.split import _table, fingerprint, split_by_key
from tests.data.shards.tars import picture, sample, write_tar
from tests.data.test_reduced import jpeg, scene

ASKED = []


def is_english(caption: str) -> bool:
    ASKED.append(caption)
    return caption.isascii()


def fails(caption: str) -> bool:
    raise KeyError(caption)


def says_maybe(caption: str) -> str:
    return "maybe"


HERE = "tests.data.test_filters"


@pytest.fixture
def folder(tmp_path):
    """Five pictures that differ, of captions and shapes that do."""
    place = tmp_path / "pictures"
    place.mkdir()
    rows = [
        ("a.jpg", "a cat", (64, 64)),
        ("a.jpg", "x", (64, 64)),
        ("b.jpg", "y", (80, 60)),
        ("c.jpg", "a dog " * 40, (60, 80)),
    ]
    rows += [("d.jpg", "ein Käse", (200, 90)), ("e.jpg", "a wide picture", (180, 90))]
    for seed, (name, _, shape) in enumerate(rows):
        (place / name).write_bytes(jpeg(scene(*shape, seed=seed)))
    table = "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text, _ in rows)
    (place / "captions.jsonl").write_text(table)
    return place


def filtered(folder, report=None, **filters) -> FilteredSource:
    return FilteredSource(FolderSource(folder, need_captions=True), Filters(**filters), report=report)


def left(source) -> str:
    return "".join(source.key(i)[0] for i in range(len(source)))


@pytest.mark.parametrize(
    ("filters", "kept", "reasons"),
    [
        ({"min_caption_length": 2}, "acde", {"b": Reason.SHORT_CAPTION}),
        ({"max_caption_length": 20}, "abde", {"c": Reason.LONG_CAPTION}),
        ({"min_caption_length": 5, "max_caption_length": 14}, "ade",
         {"b": Reason.SHORT_CAPTION, "c": Reason.LONG_CAPTION}),
        ({"wanted_caption": f"{HERE}:is_english"}, "abce", {"d": Reason.UNWANTED_CAPTION}),
        ({"max_aspect_ratio": 2}, "abce", {"d": Reason.ASPECT_RATIO}),
        ({"max_aspect_ratio": 1}, "a", dict.fromkeys("bcde", Reason.ASPECT_RATIO)),
        ({"near_duplicates": 3}, "abcde", {}),
    ],
)  # fmt: skip
def test_what_is_left(folder, filters, kept, reasons):
    source = filtered(folder, **filters)
    assert left(source) == kept
    assert {reject.file[0]: reject.reason for reject in source.report.filtered} == reasons
    assert source.report.kept == len(kept)
    assert source.report.fraction == 0
    assert all(source.captions(i) for i in range(len(source)))
    assert source.image(len(source) - 1).tobytes() == source.source.image("abcde".index(kept[-1])).tobytes()


def test_captions_of_a_picture_that_stays(folder):
    source = filtered(folder, min_caption_length=2)
    assert source.captions(0) == ("a cat",)  # "x" is too short
    assert source.source.captions(0) == ("a cat", "x")
    assert source.captions(1) == source.source.captions(2)


def test_each_caption_is_asked_once(folder):
    ASKED.clear()
    filtered(folder, wanted_caption=f"{HERE}:is_english", max_caption_length=20)
    assert ASKED == ["a cat", "x", "y", "ein Käse", "a wide picture"]


def test_the_report_counts_each_reason(folder, tmp_path):
    (folder / "broken.jpg").write_bytes(b"no picture")
    with (folder / "captions.jsonl").open("a") as table:
        table.write('{"file_name": "broken.jpg", "text": "broken"}\n')
    source = FilteredSource(
        FolderSource(folder, need_captions=True, max_rejected=0.5),
        Filters(min_caption_length=2, max_aspect_ratio=2),
        max_rejected=0.5,
        report=tmp_path / "report.json",
    )
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["counts"] == {"broken picture": 1}
    assert record["filtered"] == 2
    assert record["filtered_counts"] == {"caption too short": 1, "too long for its height": 1}
    assert [entry["file"] for entry in record["filtered_files"]] == ["b.jpg", "d.jpg"]
    assert record["filtered_files"][1]["detail"] == "200x90 pixels"
    assert record["kept"] == len(source) == 3


@pytest.mark.parametrize("filters", [{"min_caption_length": 5}, {"min_caption_length": 5, "max_aspect_ratio": 2}])
def test_what_is_left_out_makes_no_more_of_the_rejects(tmp_path, filters):
    """One broken picture in twenty stays one in twenty, though the filters leave one sound one."""
    with (tmp_path / "captions.jsonl").open("w") as table:
        for number in range(20):
            text = "a long caption" if number < 2 else "x"
            table.write(json.dumps({"file_name": f"{number:02}.png", "text": text}) + "\n")
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "00.png").write_bytes(b"no picture")
    source = filtered(tmp_path, **filters)
    assert len(source) == 1 and len(source.report.filtered) == 18
    assert source.report.fraction == 0.05
    with pytest.raises(ValueError, match=r"1 of 20 files rejected \(5.0%; .* set max_rejected=0.06"):
        source.report.enforce(0.04)


def test_other_filters_are_other_data(folder):
    prints = {
        fingerprint(FolderSource(folder, need_captions=True)),
        fingerprint(filtered(folder, min_caption_length=2)),
        fingerprint(filtered(folder, max_aspect_ratio=2)),
        fingerprint(filtered(folder, max_caption_length=4)),
    }
    assert len(prints) == 4
    assert fingerprint(filtered(folder, max_aspect_ratio=2)) == fingerprint(filtered(folder, max_aspect_ratio=2.1))


def test_near_duplicates_of_a_folder(folder, tmp_path):
    """Scaled, recompressed, brightened; the mirrored one is another."""
    original = FolderSource(folder, need_captions=True).image(1)
    copies = {
        "b-again.jpg": original.resize((57, 43)),
        "b-bright.png": original.point(lambda value: min(255, value + 6)),
        "b-mirrored.png": original.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    }
    with (folder / "captions.jsonl").open("a") as table:
        for name, image in copies.items():
            image.save(folder / name)
            table.write(json.dumps({"file_name": name, "text": "a copy"}) + "\n")
    source = filtered(folder, near_duplicates=6)
    assert [reject.file for reject in source.report.filtered] == ["b-bright.png", "b.jpg"]  # the first in order stays
    assert all("bits from b-again.jpg" in reject.detail for reject in source.report.filtered)


def scenes(path: Path) -> ShardsSource:
    """A shard of four that differ, and of one that looks like the first; the third is broken behind its header."""
    seeds = (0, 1, 2, 3, 0)
    contents = [jpeg(scene(*((200, 90) if n == 3 else (64, 48)), seed=seed)) for n, seed in enumerate(seeds)]
    contents[2] = contents[2][:-300]
    contents[4] = jpeg(scene(64, 48, seed=0), quality=80)
    members = [
        member for n, content in enumerate(contents) for member in ((f"{n}.jpg", content), (f"{n}.txt", b"a scene"))
    ]
    return ShardsSource(str(write_tar(path / "a.tar", members)), need_captions=True)


def test_shards_and_what_is_broken_in_them(tmp_path):
    shards, different = scenes(tmp_path), Filters(near_duplicates=3)
    with pytest.raises(ValueError, match=r"1 of 5 files rejected \(20.0%"):
        FilteredSource(shards, different)
    source = FilteredSource(shards, different, max_rejected=0.25)
    assert left(source) == "013"
    assert [(reject.file, reject.reason) for reject in source.report.rejects] == [("a.tar: 2", Reason.BROKEN)]
    assert [(reject.file, reject.detail[-8:]) for reject in source.report.filtered] == [("4", "s from 0")]
    sets = source.by_set(torch.tensor([2, 0]))
    assert [each.tolist() for each in sets] == [[2, 0]]


def test_of_shards_a_picture_is_decoded_at_most_once(tmp_path, monkeypatch):
    """For the shapes of pictures never; for what they look like at the first start, and then for no settings."""
    decoded = []
    decode = index.decode_picture
    for module in (index, grouping):
        monkeypatch.setattr(module, "decode_picture", lambda *args: decoded.append(1) or decode(*args))
    assert left(FilteredSource(scenes(tmp_path), Filters(max_aspect_ratio=2))) == "0124"  # the broken one stays
    assert not decoded
    assert left(FilteredSource(scenes(tmp_path), Filters(near_duplicates=3), max_rejected=1)) == "013"
    assert len(decoded) == 5
    again = ShardsSource(str(tmp_path / "a.tar"), need_captions=True)
    for filters, expected in [
        (Filters(near_duplicates=3), "013"),
        (Filters(near_duplicates=0, max_aspect_ratio=2), "014"),
        (Filters(max_aspect_ratio=2), "0124"),  # what is known to be broken changes nothing
    ]:
        assert left(FilteredSource(again, filters, max_rejected=1)) == expected
    assert len(decoded) == 5
    encoded = ShardsSource(str(tmp_path / "a.tar"), need_captions=True, decode=True, max_rejected=1)
    assert left(encoded) == "0134"
    assert left(FilteredSource(encoded, Filters(near_duplicates=3), max_rejected=1)) == "013"
    assert len(decoded) == 5


def test_a_shard_that_changes_before_its_pictures_are_looked_at(tmp_path):
    shards = scenes(tmp_path)
    write_tar(tmp_path / "a.tar", sample(1))
    with pytest.raises(ValueError, match=r"a\.tar has changed since this run began"):
        FilteredSource(shards, Filters(near_duplicates=3))


@pytest.mark.parametrize("sharded", [True, False])
def test_the_split_table_of_what_is_left(tmp_path, monkeypatch, sharded):
    """As the keys give it, of folders and of shards; of shards, without a look at them."""
    splits = ["train", None, "val", None, "test", "train"]
    pictures = [picture(n, size=(20, 4) if n < 2 else (4, 4)) for n in range(6)]
    if sharded:
        samples = [sample(n, split=split) for n, split in enumerate(splits)]
        members = [
            each
            for (png, *texts), content in zip(samples, pictures, strict=True)
            for each in ((png[0], content), *texts)
        ]
        unfiltered = ShardsSource(str(write_tar(tmp_path / "a.tar", members)), need_captions=True)
        monkeypatch.setattr(ShardsSource, "split", None)
    else:
        rows = [{"file_name": f"{n}.png", "text": "a cat", "split": split} for n, split in enumerate(splits)]
        (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for n, content in enumerate(pictures):
            (tmp_path / f"{n}.png").write_bytes(content)
        unfiltered = FolderSource(tmp_path, need_captions=True)
    source = FilteredSource(unfiltered, Filters(max_aspect_ratio=2))
    train, val = split_by_key(source, 0.0)
    monkeypatch.undo()
    assert (train.tolist(), val.tolist()) == ([1, 3], [0])
    table, expected = source.split_table(), _table(source)
    assert table.hashes.tolist() == expected.hashes.tolist() and table.splits.tolist() == expected.splits.tolist()
    assert source.report.splits == {"train": 1, "val": 1, "test": 1}


@pytest.mark.parametrize("captioned", [True, False])
def test_training_sees_what_is_left(folder, tmp_path, captioned):
    loading = Loading(batch_size=1, workers=0, val_fraction=0.5, report=str(tmp_path / "report.json"))
    settings = {"folder": str(folder), "image_size": 32, "loading": loading, "filters": Filters(max_aspect_ratio=2)}
    data = PriorData(text=TextConfig(vocab_size=300), **settings) if captioned else TokenizerData(**settings)
    data.setup()
    assert left(data.source) == "abce"
    assert sorted([*data.train_indices.tolist(), *data.val_indices.tolist()]) == [0, 1, 2, 3]
    assert json.loads((tmp_path / "report.json").read_text())["filtered"] == 1


def test_weights_of_sets_hold_for_what_is_left(tmp_path):
    wide = ("000000001.png", picture(1, size=(20, 4)))
    first = write_tar(tmp_path / "a.tar", [*sample(0), wide, *sample(2), *sample(3, split="val")])
    second = write_tar(tmp_path / "b.tar", [*sample(4), *sample(5)])
    data = TokenizerData(
        shards=ShardsConfig(sets=[ShardSet(path=str(first), weight=1), ShardSet(path=str(second), weight=3)]),
        image_size=4,
        filters=Filters(max_aspect_ratio=2),
        loading=Loading(batch_size=1, workers=0, val_fraction=0.2),
    )
    data.setup()
    order = data.train_dataloader().order
    assert isinstance(order, MixedOrder)
    sets = [{int(data.source.key(i)) for i in each.tolist()} for each in order.sets]
    assert sets[0] <= {0, 2, 3} and sets[1] <= {4, 5} and len(sets[0] | sets[1]) == len(data.train_indices)


@pytest.mark.parametrize(
    "source",
    [{"drawings": ShapesConfig(size=32)}, {"shards": "pipe:cat x.tar"}, {"codes": "codes"}],
    ids=lambda s: next(iter(s)),
)
def test_what_is_not_filtered(source):
    data = PriorData(**source, image_size=32, filters=Filters(max_aspect_ratio=2))
    with pytest.raises(ValueError, match="filters are given for"):
        data.setup()


def test_nothing_left_is_said(folder):
    with pytest.raises(ValueError, match=r"the filters leave nothing; .* 5 caption too short"):
        filtered(folder, min_caption_length=1000)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"min_caption_length": 0}, "caption lengths from 0"),
        ({"min_caption_length": 5, "max_caption_length": 4}, "caption lengths from 5 to 4"),
        ({"max_aspect_ratio": 0.5}, "max_aspect_ratio=0.5"),
        ({"max_aspect_ratio": float("nan")}, "max_aspect_ratio=nan"),
        ({"near_duplicates": 8}, "near_duplicates=8, expected 0 to 7"),
        ({"wanted_caption": "os.system"}, "expected MODULE:FUNCTION"),
        ({"wanted_caption": "no.such.module:f"}, "cannot be imported: No module"),
        ({"wanted_caption": f"{HERE}:nobody"}, "cannot be imported"),
        ({"wanted_caption": f"{HERE}:HERE"}, "is a str, expected a function"),
    ],
)
def test_wrong_settings(filters, message):
    with pytest.raises(ValueError, match=message):
        Filters(**filters)


@pytest.mark.parametrize(
    ("name", "message"), [("fails", "failed on the caption 'a cat'"), ("says_maybe", "says 'maybe'")]
)
def test_functions_that_do_not_answer(folder, name, message):
    assert callable(imported(f"{HERE}:{name}"))
    with pytest.raises(ValueError, match=message):
        filtered(folder, wanted_caption=f"{HERE}:{name}")
