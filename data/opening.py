"""From what a user asks for, a folder or drawings, to a source of pictures."""

from data.folder import FolderSource
from data.settings import Loading
from data.shapes import ShapesConfig, ShapesSource
from data.source import Source


def open_pictures(
    folder: str | None, drawings: ShapesConfig | None, loading: Loading, *, need_captions: bool
) -> Source:
    """The drawings where they are given, else the folder. Raises ValueError for a folder that cannot be used."""
    if drawings is not None:
        return ShapesSource(drawings)
    return FolderSource(folder, need_captions=need_captions, max_rejected=loading.max_rejected, report=loading.report)


def check_one_given(**sources: object) -> None:
    """ValueError unless exactly one of the named sources is not None."""
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"expected exactly one of {', '.join(sources)}; got {' and '.join(given) or 'none'}")


def check_drawn_large_enough(drawings: ShapesConfig | None, image_size: int) -> None:
    """ValueError where drawings would have to be enlarged to `image_size` pixels."""
    if drawings is not None and drawings.size < image_size:
        raise ValueError(
            f"drawings.size={drawings.size}, expected at least image_size={image_size}: they can be any size"
        )
