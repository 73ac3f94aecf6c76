"""What is set about shards; checked when it is made."""

from dataclasses import dataclass

from data.shards.paths import is_stream

MAX_WEIGHT = 1e15  # of a set, so that sums of them stay numbers


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """Shards that belong together.

    Attributes:
        path: a tar, a folder of tars or a brace pattern (paths.py).
        weight: its share of the training samples, relative to the other sets' weights; 1 where only others have one.
            Where no set has a weight, each sample comes once an epoch.
        name: goes before its keys, with a slash, where two sets on disk have keys in common.
    """

    path: str
    weight: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path is empty, expected a tar, a folder of tars or a pattern such as a/{000..099}.tar")
        if self.weight is not None and not 0 < self.weight <= MAX_WEIGHT:
            raise ValueError(f"weight={self.weight} of {self.path}, expected a number above 0, at most {MAX_WEIGHT:g}")


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """Which shards are read.

    Attributes:
        sets: one path, or several sets, perhaps with weights.
        index: folder for the shards' indexes; without it they are kept beside the shards.
        samples: of an epoch, where the sets are streamed (stream.py).
        val: local shards to validate on, all of them, where the sets are streamed.
    """

    sets: list[ShardSet] | str
    index: str | None = None
    samples: int | None = None
    val: str | None = None

    def __post_init__(self) -> None:
        if not self.sets:
            raise ValueError("shards.sets is empty, expected at least one set of shards")
        streamed = [is_stream(each.path) for each in self.all_sets]
        if any(streamed) != all(streamed):
            first = self.all_sets[streamed.index(False)].path
            raise ValueError(f"shards are either all streamed or none: {first} is on disk (pipe:cat would stream it)")
        named = next((each for each in self.all_sets if self.streamed and each.name), None)
        if named is not None:
            raise ValueError(
                f"name={named.name!r} of {named.path}: only keys of shards on disk are told apart by names"
            )
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"shards.samples={self.samples}, expected at least 1")
        if not self.streamed and (self.samples, self.val) != (None, None):
            raise ValueError("shards.samples and shards.val are for streamed shards; of shards on disk they are known")

    @property
    def streamed(self) -> bool:
        """Whether the sets are URLs or commands instead of files."""
        return is_stream(self.all_sets[0].path)

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
