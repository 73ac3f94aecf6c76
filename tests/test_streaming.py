import pytest
from PIL import Image

import grids
from streaming import ProgressFiles


def solid(colour: str) -> Image.Image:
    return Image.new("RGB", (8, 8), colour)


def colour(path) -> tuple[int, ...]:
    with Image.open(path) as picture:
        return picture.convert("RGB").getpixel((0, 0))


def test_a_progress_file_is_replaced_and_becomes_a_gif(tmp_path):
    paths = [tmp_path / "out" / f"{name}.png" for name in "abc"]
    files = ProgressFiles(paths)
    for first, second in (("red", "green"), ("blue", "yellow")):
        files.show(slice(1, 3), [solid(first), solid(second)])
        assert colour(tmp_path / "out" / "b-progress.png") == solid(first).getpixel((0, 0))
        assert colour(tmp_path / "out" / "c-progress.png") == solid(second).getpixel((0, 0))
    files.finish(paths[2], {"caption": "größer", "seed": "3"})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"b-progress.png", "c.gif"}
    with Image.open(tmp_path / "out" / "c.gif") as gif:
        assert gif.n_frames == 2
        assert gif.info["loop"] == 0
        assert gif.info["comment"] == b'{"caption": "gr\\u00f6\\u00dfer", "seed": "3"}'
        assert gif.info["duration"] == grids.STAGE_MS
        assert gif.convert("RGB").getpixel((0, 0)) == solid("green").getpixel((0, 0))
        gif.seek(1)
        assert gif.info["duration"] == grids.LAST_STAGE_MS
        assert gif.convert("RGB").getpixel((0, 0)) == solid("yellow").getpixel((0, 0))


def test_a_progress_file_that_somebody_removed_is_not_missed(tmp_path):
    files = ProgressFiles([tmp_path / "a.png"])
    files.show(slice(0, 1), [solid("red")])
    (tmp_path / "a-progress.png").unlink()
    files.finish(tmp_path / "a.png", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_a_file_is_never_half_written(tmp_path, monkeypatch):
    files = ProgressFiles([tmp_path / "a.png"])
    files.show(slice(0, 1), [solid("red")])
    monkeypatch.setattr(Image.Image, "save", torn)
    with pytest.raises(OSError, match="disk full"):
        files.show(slice(0, 1), [solid("blue")])
    assert colour(tmp_path / "a-progress.png") == solid("red").getpixel((0, 0))
    with pytest.raises(OSError, match="disk full"):
        files.finish(tmp_path / "a.png", {})
    assert not (tmp_path / "a.gif").exists()


def torn(self, path, **_) -> None:
    path.write_bytes(b"half")
    raise OSError("disk full")
