"""The ring: who lies where, who is overwritten, and how long it has to be, by playing it through."""

import pytest
import torch

from kernels.cache_layout import check_ring, ring_positions
from kernels.patterns import Pattern, attends_image
from tests.kernels.oracle import ALL_RULES, every_rule


def played(slots: int, last: int) -> list[int]:
    """What each slot holds after positions 0 .. last were stored one by one; negative: nothing."""
    held = [-1] * slots
    for position in range(last + 1):
        held[position % slots] = position
    return held


@pytest.mark.parametrize("slots", [1, 3, 7, 12])
def test_positions_by_playing_it_through(slots):
    for last in range(12):
        held = ring_positions(slots, last)
        assert held.clamp(min=-1).tolist() == played(slots, last), last
        assert held.dtype == torch.int64
        for dtype in (torch.int32, torch.int64):
            assert torch.equal(ring_positions(slots, torch.tensor(last, dtype=dtype)), held)


def test_a_ring_as_long_as_the_image_is_plain():
    assert torch.equal(ring_positions(12, 11), torch.arange(12))


def test_lengths_at_32x32():
    lengths = {(kind, wrap): Pattern(kind, 256, 32, 32, 11, wrap).ring_len for kind, wrap in ALL_RULES}
    assert lengths == {
        ("causal", "linear"): 1024,
        ("row", "linear"): 33,
        ("column", "linear"): 1024,
        ("conv", "linear"): 5 * 32 + 5 + 1,
        ("conv", "clamped"): 5 * 32 + 5 + 1,
        ("conv", "modulo"): 5 * 32 + 31 + 1,
    }
    assert Pattern("row", 6, 1, 7).ring_len == 7


@every_rule
@pytest.mark.parametrize("new", [1, 2, 5])
def test_the_check_refuses_exactly_the_rings_that_lose_a_key_in_reach(kind, wrap, new):
    pattern = Pattern(kind, 3, 5, 4, 3, wrap)
    reach = pattern.image_len if pattern.reach is None else pattern.reach
    for index in range(pattern.image_len - new + 1):
        last = index + new - 1
        needed = set(range(max(0, index - reach), last + 1))
        for slots in range(1, pattern.image_len + 1):
            if needed <= set(ring_positions(slots, last).tolist()):
                check_ring(pattern, slots, index, new)
            else:
                message = f"{index}..{last} against {slots} image keys, expected at least {len(needed)}"
                with pytest.raises(ValueError, match=message):
                    check_ring(pattern, slots, index, new)


@pytest.mark.parametrize(("kind", "wrap"), [rule for rule in ALL_RULES if rule[0] != "column"])
def test_a_ring_one_slot_shorter_loses_a_key_that_is_seen(kind, wrap):
    """So `ring_len` is the least. (A column's last queries could do without the picture's first token.)"""
    pattern = Pattern(kind, 3, 6, 5, 3, wrap)
    positions = torch.arange(pattern.image_len)
    mask, lost = attends_image(pattern, positions[:, None], positions), 0
    for last in range(pattern.image_len):
        held = ring_positions(pattern.ring_len - 1, last)
        seen = set(mask[last].nonzero().flatten().tolist())
        lost += bool(seen - set(held.tolist()))
    assert lost > 0


@pytest.mark.parametrize(
    ("index", "new", "slots", "message"),
    [
        (16, 1, 16, r"positions 16..16 against 16 image keys, expected positions 0..15"),
        (14, 3, 16, r"positions 14..16 against 16 image keys, expected positions 0..15"),
        (-1, 1, 5, r"positions -1..-1 against 5 image keys, expected positions 0..15"),
        (3, 1, 17, r"positions 3..3 against 17 image keys.* image keys <= 16"),
        (9, 2, 5, r"positions 9..10 against 5 image keys, expected at least 6"),
    ],
)
def test_what_is_outside_the_image_or_the_ring_is_named(index, new, slots, message):
    with pytest.raises(ValueError, match=message):
        check_ring(Pattern("row", 6, 4, 4), slots, index, new)
