"""What every set of captioned pictures looks like from outside."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from PIL import Image


@runtime_checkable
class Source(Protocol):
    """Captioned pictures by position. Implemented by `ShapesSource`, `FolderSource` and `ShardsSource`."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Stable, unique name of a sample: names it in reports and decides its split."""
        ...

    def image(self, index: int, least: int | None = None) -> Image.Image:
        """The picture, mode RGB, any size.

        Where no more than `least` pixels a side are needed, it may come reduced to no less (pictures.decode_picture).
        Raises `data.rejects.Rejected` where only now it turns out to be broken, as in shards that were not decoded.
        """
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """Every caption of the picture; empty where it has none. Raises `Rejected` as `image` does."""
        ...

    def split(self, index: int) -> str | None:
        """ "train", "val" or "test" where the source says so, else None: the datamodule then splits by the key."""
        ...

    def identity(self) -> Iterable[str]:
        """Lines that are the same for the same samples in the same order, and for no others."""
        ...
