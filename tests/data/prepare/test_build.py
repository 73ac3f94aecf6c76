import csv
import json
import operator
import zlib

import pytest

from data.folder import FolderSource
from data.prepare.build import BuildSettings, Collection, Piece, Rejects, build
from data.prepare.packages import PrepareError
from data.prepare.render import render_frame
from data.prepare.splits import Pair


def piece(fakes, name, **changes):
    colour = f"#{zlib.crc32(name.encode()) & 0x7F7F7F:06x}"
    fields = {
        "file_name": f"flat/{name}.png",
        "content": fakes.svg(colour),
        "make": render_frame,
        "captions": (f"{name}, flat style", f"a {name}"),
        "split": "train",
        "style": "flat style",
        "concept": name,
        "licence": "MIT",
        "source": f"npm thing 1.0.0: {name}",
    }
    return Piece(**{**fields, **changes})


def collection(pieces, packages=(), held_out=frozenset(), renderer="resvg-py 0"):
    return Collection(pieces=pieces, packages=packages, rejects=Rejects(), held_out=held_out, renderer=renderer)


@pytest.fixture
def settings(tmp_path):
    return BuildSettings(out=tmp_path / "out", size=32, workers=1)


def table(settings, name="captions.csv"):
    with (settings.out / name).open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def test_table_has_a_row_for_each_caption(fakes, settings):
    build(collection([piece(fakes, "apple"), piece(fakes, "pear", split="val", captions=())]), settings)
    rows = table(settings)
    assert list(rows[0]) == ["file_name", "text", "split", "style", "concept", "licence", "source"]
    assert [(row["file_name"], row["text"], row["split"]) for row in rows] == [
        ("flat/apple.png", "apple, flat style", "train"),
        ("flat/apple.png", "a apple", "train"),
        ("flat/pear.png", "", "val"),
    ]
    assert rows[0]["source"] == "npm thing 1.0.0: apple"


def test_folder_source_reads_what_was_built(fakes, settings):
    pieces = [piece(fakes, "apple"), piece(fakes, "pear, ripe", split="val"), piece(fakes, "Äpfel", split="test")]
    build(collection(pieces), settings)
    source = FolderSource(settings.out, need_captions=True)
    found = {source.key(index): (source.captions(index), source.split(index)) for index in range(len(source))}
    assert found == {made.file_name: (made.captions, made.split) for made in pieces}
    assert source.image(0).size == (32, 32)


def test_held_out_pairs_go_to_the_test_split_and_are_listed(fakes, settings):
    pieces = [
        piece(fakes, "apple"),
        piece(fakes, "apple-3d", concept="apple", style="3D render"),
        piece(fakes, "pear"),
    ]
    held_out = frozenset({Pair("apple", "3D render"), Pair("pear", "never drawn")})
    report = build(collection(pieces, held_out=held_out), settings)
    assert {row["file_name"]: row["split"] for row in table(settings)} == {
        "flat/apple.png": "train",
        "flat/apple-3d.png": "test",
        "flat/pear.png": "train",
    }
    assert table(settings, "held_out_pairs.csv") == [
        {"concept": "apple", "style": "3D render", "caption": "apple-3d, flat style"}
    ]
    assert report["held_out_pairs"] == 1


def test_report_counts_what_is_there_and_what_is_not(fakes, settings):
    package = fakes.npm("thing", {"a": b"a"})
    pieces = [
        piece(fakes, "apple"),
        piece(fakes, "pear", split="val"),
        piece(fakes, "blank", content='<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"/>'),
        piece(fakes, "broken", content="<svg"),
    ]
    made = collection(pieces, [package])
    made.rejects.add("skin tone", "hand")
    report = build(made, settings)
    assert report == json.loads((settings.out / "report.json").read_text())
    assert (report["pictures"], report["captions"], report["concepts"]) == (2, 4, 2)
    assert report["styles_by_split"] == {"flat style": {"train": 1, "val": 1}}
    assert report["rejects"] == {
        "skin tone": {"count": 1, "examples": ["hand"]},
        "blank or almost": {"count": 1, "examples": ["flat/blank.png"]},
        "svg does not render": {"count": 1, "examples": ["flat/broken.png"]},
    }
    assert report["packages"][0]["sha256"] == package.sha256
    assert report["renderer"] == "resvg-py 0"
    assert {row["concept"] for row in table(settings)} == {"apple", "pear"}
    assert not (settings.out / "flat/blank.png").exists()


def test_interrupted_build_goes_on_and_ends_the_same(fakes, settings):
    names = ["one", "two", "three", "four"]
    pieces = [piece(fakes, name, make=operator.getitem, content={32: name.encode()}) for name in names]
    broken = piece(fakes, "three", make=operator.getitem, content={})  # a KeyError in the middle
    with pytest.raises(KeyError):
        build(collection([*pieces[:2], broken, pieces[3]]), settings)
    assert not (settings.out / "captions.csv").exists()
    before = {name: (settings.out / f"flat/{name}.png").stat().st_mtime_ns for name in names[:2]}

    build(collection(pieces), settings)
    assert {row["concept"] for row in table(settings)} == set(names)
    assert before == {name: (settings.out / f"flat/{name}.png").stat().st_mtime_ns for name in names[:2]}
    assert not list(settings.out.rglob("*.part"))


def test_same_pictures_are_kept_once(fakes, settings):
    pieces = [piece(fakes, name, content=fakes.svg("red")) for name in ("pilot", "man pilot")]
    pieces = [*pieces, piece(fakes, "pear")]
    report = build(collection(pieces), settings)
    assert [row["concept"] for row in table(settings)] == ["pilot", "pilot", "pear", "pear"]
    assert report["rejects"] == {"same picture as another": {"count": 1, "examples": ["flat/man pilot.png"]}}
    assert sorted(path.name for path in settings.out.glob("flat/*")) == ["pear.png", "pilot.png"]
    assert {**build(collection(pieces), settings), "seconds": 0} == {**report, "seconds": 0}


def test_half_written_picture_is_made_anew(fakes, settings):
    settings.out.joinpath("flat").mkdir(parents=True)
    (settings.out / "flat/apple.png.part").write_bytes(b"half")
    (settings.out / "flat/apple.png").touch()  # as a power cut leaves it
    build(collection([piece(fakes, "apple", content=fakes.svg("red"))]), settings)
    assert (settings.out / "flat/apple.png").read_bytes() == render_frame(fakes.svg("red"), 32)


def test_processes_make_the_same_as_one(fakes, tmp_path):
    pieces = [piece(fakes, f"thing{number}", content=fakes.svg(f"#0000{number:02x}")) for number in range(20)]
    pieces[7] = piece(fakes, "thing7", content="<svg")
    reports = [
        build(collection(pieces), BuildSettings(out=tmp_path / str(workers), size=32, workers=workers))
        for workers in (1, 2)
    ]
    assert {**reports[0], "seconds": 0} == {**reports[1], "seconds": 0}
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.*") if p.name != "report.json"} for n in "12")
    assert one == two


def test_folder_begun_with_another_size_is_refused(fakes, settings):
    build(collection([piece(fakes, "apple")]), settings)
    with pytest.raises(PrepareError, match=r"begun with.*'size': 32.*'size': 64.*another folder"):
        build(collection([piece(fakes, "apple")]), BuildSettings(out=settings.out, size=64, workers=1))


def test_folder_begun_with_another_renderer_is_refused(fakes, settings):
    build(collection([piece(fakes, "apple")]), settings)
    with pytest.raises(PrepareError, match=r"begun with.*'resvg-py 0'.*'resvg-py 1'.*another folder"):
        build(collection([piece(fakes, "apple")], renderer="resvg-py 1"), settings)
    recipe = settings.out / "recipe.json"
    first = json.loads(recipe.read_text())
    del first["renderer"]
    recipe.write_text(json.dumps(first))
    build(collection([piece(fakes, "apple")]), settings)  # a folder of the days when it was not noted
    assert json.loads(recipe.read_text())["renderer"] == "resvg-py 0"


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"size": 32}', b'{"size": 32, "packages": []}'])
def test_a_damaged_recipe_is_named(fakes, settings, content):
    settings.out.mkdir()
    (settings.out / "recipe.json").write_bytes(content)
    with pytest.raises(PrepareError, match=r"recipe\.json: damaged"):
        build(collection([piece(fakes, "apple")]), settings)


def test_packages_may_join_but_not_change(fakes, settings):
    first, second = fakes.npm("first", {"a": b"a"}), fakes.npm("second", {"b": b"b"})
    build(collection([piece(fakes, "apple")], [first]), settings)
    build(collection([piece(fakes, "apple"), piece(fakes, "pear")], [first, second]), settings)
    changed = fakes.npm("first", {"a": b"changed"})
    with pytest.raises(PrepareError, match=r"begun with.*first-1\.0\.0\.tgz"):
        build(collection([piece(fakes, "apple")], [changed, second]), settings)
    with pytest.raises(PrepareError, match="begun with"):
        build(collection([piece(fakes, "apple")], [first]), settings)


def test_two_pictures_of_one_name_are_a_mistake(fakes, settings):
    with pytest.raises(ValueError, match=r"2 pictures would be written to flat/apple\.png"):
        build(collection([piece(fakes, "apple"), piece(fakes, "apple")]), settings)
    assert not settings.out.exists()


@pytest.mark.parametrize(("changes", "message"), [({"size": 7}, "at least 8.*7"), ({"workers": 0}, "at least 1.*0")])
def test_settings_are_checked(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        BuildSettings(**{"out": tmp_path, "size": 32, "workers": 1, **changes})
