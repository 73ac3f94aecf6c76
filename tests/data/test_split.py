"""Splits: the source's word first, then the key's hash."""

import hashlib

import numpy as np
import torch

from data.split import SPLITS, UNSAID, SplitTable, in_places, key_hash, split_by_key, spread


class Rows:
    def __init__(self, rows: list[tuple[str, str | None]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        return self.rows[index][0]

    def captions(self, index: int) -> tuple[str, ...]:
        return ()

    def split(self, index: int) -> str | None:
        return self.rows[index][1]


class Table:
    """A source that is asked for nothing but its table."""

    def __init__(self, hashes: np.ndarray, splits: np.ndarray) -> None:
        self.table = SplitTable(hashes, splits)

    def split_table(self) -> SplitTable:
        return self.table


def lists(split: tuple[torch.Tensor, torch.Tensor]) -> tuple[list[int], list[int]]:
    assert all(indices.dtype == torch.int64 for indices in split)
    return tuple(indices.tolist() for indices in split)


def held_back(keys: list[str], fraction: float) -> list[int]:
    """Positions of the keys that validate; checked against the rule in words."""
    found = lists(split_by_key(Rows([(key, None) for key in keys]), fraction))[1]
    digests = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys]
    assert found == [i for i, of in enumerate(digests) if int.from_bytes(of, "little") < fraction * 2**64]
    return found


def test_the_sources_own_split_wins():
    source = Rows([("a", "val"), ("b", "train"), ("c", "test"), ("d", "train"), ("e", "val")])
    assert lists(split_by_key(source, 0.999)) == ([1, 3], [0, 4])
    assert lists(split_by_key(source, 0.0)) == ([1, 3], [0, 4])


def test_the_hash_decides_for_the_others():
    source = Rows([(f"{i}.png", None) for i in range(2000)] + [("z", "val")])
    train, val = lists(split_by_key(source, 0.1))
    assert sorted(train + val) == list(range(2001))
    assert 160 < len(val) < 240 and val[-1] == 2000
    assert lists(split_by_key(source, 0.0))[1] == [2000]


def test_a_key_stays_on_its_side_when_the_set_or_the_fraction_grows():
    keys = [f"{i}.png" for i in range(500)]
    small, large = set(held_back(keys, 0.05)), set(held_back(keys, 0.2))
    assert small < large < set(range(500))
    assert small & set(range(100)) == set(held_back(keys[:100], 0.05))
    assert held_back(keys, 1.0) == list(range(500)) and held_back(keys, 0.0) == []


def test_which_keys_validate_is_pinned():
    """A change of these would train on what older runs held back."""
    assert held_back([f"{i}.png" for i in range(60)], 0.1) == [0, 3, 18, 29, 31, 32, 39, 51, 57]
    assert held_back([f"shapes-{i:06}" for i in range(100)], 0.02) == [28, 94]
    assert held_back(["café/1.jpg"], 0.4117) == [0] and held_back(["café/1.jpg"], 0.4116) == []


def test_the_boundary_is_exact():
    """A hash is no float: near 2**64, those lie 2,048 apart."""
    hashes = [0, 2**62 - 1, 2**62, 2**64 - 1]
    table = Table(np.array(hashes, np.uint64), np.full(4, UNSAID, np.uint8))
    for fraction, expected in ((0.0, []), (2.0**-64, [0]), (0.25, [0, 1]), (1.0, [0, 1, 2, 3])):
        assert lists(split_by_key(table, fraction))[1] == expected


def test_a_table_stands_for_the_keys():
    rows = [(f"{i}.png", [None, *SPLITS][i % 4]) for i in range(200)]
    places = [UNSAID if split is None else SPLITS.index(split) for _, split in rows]
    table = Table(np.array([key_hash(key) for key, _ in rows], np.uint64), np.array(places, np.uint8))
    assert lists(split_by_key(table, 0.3)) == lists(split_by_key(Rows(rows), 0.3))


def test_spread_is_even_and_in_order():
    assert spread([3, 5, 9], 3).tolist() == [3, 5, 9] == spread([3, 5, 9], 10).tolist()
    assert spread(range(10), 5).tolist() == [0, 2, 4, 6, 8]
    assert spread(torch.arange(7), 3).tolist() == [0, 2, 4]
    assert spread([], 3).tolist() == []
    assert spread([1], 3).dtype == torch.int64


def test_samples_in_rows_at_spaced_places():
    assert in_places(torch.arange(100, 200), 6, 3).tolist() == [100, 101, 133, 134, 166, 167]
    assert in_places(torch.arange(5), 6, 3).tolist() == [0, 1, 2, 3, 4]
    assert in_places(torch.arange(7), 6, 3).tolist() == [0, 1, 2, 3, 4, 5]
