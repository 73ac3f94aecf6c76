"""What is set about shards; checked when it is made."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """Shards that belong together.

    Attributes:
        path: a tar, a folder of tars or a brace pattern (paths.py).
        weight: its share of the training samples, relative to the other sets' weights; 1 where only others have one.
            Where no set has a weight, each sample comes once an epoch.
        name: goes before its keys, with a slash, where two sets have keys in common.
    """

    path: str
    weight: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path is empty, expected a tar, a folder of tars or a pattern such as a/{000..099}.tar")
        if self.weight is not None and not (self.weight > 0 and math.isfinite(self.weight)):
            raise ValueError(f"weight={self.weight} of {self.path}, expected a number above 0")


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """Which shards are read.

    Attributes:
        sets: one path, or several sets, perhaps with weights.
        index: folder for the shards' indexes; without it they are kept beside the shards.
    """

    sets: list[ShardSet] | str
    index: str | None = None

    def __post_init__(self) -> None:
        if not self.sets:
            raise ValueError("shards.sets is empty, expected at least one set of shards")

    @property
    def all_sets(self) -> tuple[ShardSet, ...]:
        return (ShardSet(path=self.sets),) if isinstance(self.sets, str) else tuple(self.sets)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """One for each set, or None where each sample comes once."""
        given = [each.weight for each in self.all_sets]
        return None if all(weight is None for weight in given) else tuple(1.0 if w is None else w for w in given)


def shards_config(shards: "ShardsConfig | str") -> ShardsConfig:
    """A path alone is one set."""
    return ShardsConfig(sets=shards) if isinstance(shards, str) else shards
