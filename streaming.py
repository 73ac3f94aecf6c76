"""Files that show pictures while they are drawn: NAME-progress.png, then NAME.gif beside the finished NAME.png."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from grids import save_gif, save_png


class ProgressFiles:
    """For each picture its file NAME.png to be, in the order in which they are drawn.

    NAME-progress.png is replaced at each stage, never half-written, and goes when `finish` is called; one that is left
    is of a drawing that was cut short.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.stages: dict[Path, list[Image.Image]] = {}

    def show(self, drawn: slice, pictures: Sequence[Image.Image]) -> None:
        """What previews.Previews calls: pictures number `drawn`, so far."""
        for path, picture in zip(self.paths[drawn], pictures, strict=True):
            self.stages.setdefault(path, []).append(picture)
            save_png(picture, _progress(path))

    def finish(self, path: Path, text: Mapping[str, str]) -> None:
        """The picture of that file is finished, and has been shown so: its GIF, with `text` in it."""
        save_gif(self.stages.pop(path), path.with_suffix(".gif"), text)
        _progress(path).unlink(missing_ok=True)  # somebody who has seen enough may have removed it


def _progress(path: Path) -> Path:
    return path.with_name(f"{path.stem}-progress.png")
