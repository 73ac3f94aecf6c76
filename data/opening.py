"""From what a user asks for, a folder, shards, drawings or codes, to a source of samples."""

from data.codes import CodesSource
from data.filters import FilteredSource, Filters
from data.folder import FolderSource
from data.settings import Loading
from data.shapes import ShapesConfig, ShapesSource
from data.shards.config import ShardsConfig, shards_config
from data.shards.source import ShardsSource
from data.shards.stream import StreamedShards
from data.source import Source
from data.split import Keyed


def open_pictures(
    folder: str | None,
    drawings: ShapesConfig | None,
    loading: Loading,
    *,
    need_captions: bool,
    shards: ShardsConfig | str | None = None,
    training: bool = False,
    filters: Filters = Filters(),  # noqa: B008 (frozen)
) -> Source:
    """The drawings or shards where they are given, else the folder; without what the filters leave out.

    Only training can use streamed shards, and what this gives of them is what is validated on; and it alone puts up
    with pictures of shards that turn out broken when they are read, so that else all of them are decoded first. Raises
    ValueError for a folder or shards that cannot be used, and for filters of drawings or of what only streams.
    """
    if drawings is not None:
        if filters.any:
            raise ValueError("filters are given for drawings, expected a folder or shards")
        return ShapesSource(drawings)
    settings = {"need_captions": need_captions, "max_rejected": loading.max_rejected, "report": loading.report}
    if shards is None:
        return _filtered(FolderSource(folder, **settings), filters, loading)
    config = shards_config(shards)
    if not config.streamed:
        return _filtered(ShardsSource(config, decode=not training, **settings), filters, loading)
    if filters.any:
        raise ValueError(f"filters are given for {config.all_sets[0].path}, which streams: expected shards on disk")
    if not training:
        raise ValueError(
            f"{config.all_sets[0].path} can only be streamed, which is for training: expected shards on disk"
        )
    return StreamedShards(config, **settings)


def _filtered(source: FolderSource | ShardsSource, filters: Filters, loading: Loading) -> Source:
    return (
        FilteredSource(source, filters, max_rejected=loading.max_rejected, report=loading.report)
        if filters.any
        else source
    )


def open_captioned(
    folder: str | None,
    drawings: ShapesConfig | None,
    codes: str | None,
    loading: Loading,
    *,
    shards: ShardsConfig | str | None = None,
    filters: Filters = Filters(),  # noqa: B008 (frozen)
) -> Keyed:
    """Captioned codes where they are given, else captioned pictures.

    Raises ValueError for a folder that cannot be used, for codes of which one has no caption, and for filters of codes.
    """
    if codes is None:
        return open_pictures(
            folder, drawings, loading, need_captions=True, shards=shards, training=True, filters=filters
        )
    if filters.any:
        raise ValueError(f"filters are given for the codes {codes}: pictures are filtered when they are encoded")
    source = CodesSource(codes)
    bare, first = source.manifest.bare
    if bare:
        raise ValueError(
            f"{codes}: {bare} of {len(source)} rows have no caption, or one of which nothing is seen; "
            f"the first is {first!r}"
        )
    return source


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
