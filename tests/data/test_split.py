"""Splits: the source's word first, then the key's hash."""

import torch

from data.split import is_validation, split_by_key, spread


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


def test_the_sources_own_split_wins():
    source = Rows([("a", "val"), ("b", "train"), ("c", "test"), ("d", "train"), ("e", "val")])
    assert split_by_key(source, 0.999) == ([1, 3], [0, 4])
    assert split_by_key(source, 0.0) == ([1, 3], [0, 4])


def test_the_hash_decides_for_the_others():
    source = Rows([(f"{i}.png", None) for i in range(2000)] + [("z", "val")])
    train, val = split_by_key(source, 0.1)
    assert sorted(train + val) == list(range(2001))
    assert 160 < len(val) < 240 and val[-1] == 2000
    assert split_by_key(source, 0.0)[1] == [2000]


def test_a_key_stays_on_its_side_when_the_set_or_the_fraction_grows():
    keys = [f"{i}.png" for i in range(500)]
    small = {key for key in keys if is_validation(key, 0.05)}
    large = {key for key in keys if is_validation(key, 0.2)}
    assert small < large < set(keys)
    assert all(is_validation(key, 1.0) for key in keys) and not any(is_validation(key, 0.0) for key in keys)


def test_which_keys_validate_is_pinned():
    """A change of these would train on what older runs held back."""
    assert [i for i in range(60) if is_validation(f"{i}.png", 0.1)] == [0, 3, 18, 29, 31, 32, 39, 51, 57]
    assert [i for i in range(100) if is_validation(f"shapes-{i:06}", 0.02)] == [28, 94]
    assert is_validation("café/1.jpg", 0.4117) and not is_validation("café/1.jpg", 0.4116)


def test_spread_is_even_and_in_order():
    assert spread([3, 5, 9], 3).tolist() == [3, 5, 9] == spread([3, 5, 9], 10).tolist()
    assert spread(range(10), 5).tolist() == [0, 2, 4, 6, 8]
    assert spread(torch.arange(7), 3).tolist() == [0, 2, 4]
    assert spread([], 3).tolist() == []
    assert spread([1], 3).dtype == torch.int64
