"""The ring: who lies where, who is overwritten, and how long it has to be, by playing it through."""

import pytest
import torch

from kernels.attention import attention_step
from kernels.cache_layout import cached_positions, cached_slots, check_cached
from kernels.patterns import CONV_WRAPS, KINDS, Pattern, dense_mask
from kernels.reference import attention_reference

ALL_RULES = [(kind, "linear") for kind in KINDS if kind != "conv"] + [("conv", wrap) for wrap in CONV_WRAPS]
every_rule = pytest.mark.parametrize(("kind", "wrap"), ALL_RULES)
every_grid = pytest.mark.parametrize("grid", [(7, 5), (1, 6), (6, 1), (9, 3)])


def played(pattern: Pattern, slots: int, last: int) -> list[int]:
    """What each slot holds after positions 0 .. last were stored one by one."""
    held = [*range(pattern.text_len), *[pattern.seq_len] * (slots - pattern.text_len)]
    for position in range(last + 1):
        held[int(cached_slots(pattern, slots, torch.tensor(position)))] = position
    return held


@pytest.mark.parametrize("slots", [4, 5, 7, 11, 16])
def test_slots_and_positions_by_playing_it_through(slots):
    pattern = Pattern("row", 4, 3, 4)
    for last in range(slots if slots == 4 else pattern.seq_len):
        held = cached_positions(pattern, slots, last)
        assert held.tolist() == played(pattern, slots, last), last
        assert torch.equal(cached_positions(pattern, slots, torch.tensor(last)), held)


def test_a_cache_as_long_as_the_sequence_is_plain():
    pattern = Pattern("conv", 4, 3, 4)
    positions = torch.arange(16)
    assert torch.equal(cached_slots(pattern, 16, positions), positions)
    assert torch.equal(cached_positions(pattern, 16, 15), positions)


def test_lengths_at_32x32():
    lengths = {(kind, wrap): Pattern(kind, 256, 32, 32, 11, wrap).cache_len for kind, wrap in ALL_RULES}
    assert lengths == {
        ("causal", "linear"): 1280,
        ("row", "linear"): 256 + 33,
        ("column", "linear"): 1280,
        ("conv", "linear"): 256 + 5 * 32 + 5 + 1,
        ("conv", "clamped"): 256 + 5 * 32 + 5 + 1,
        ("conv", "modulo"): 256 + 5 * 32 + 31 + 1,
    }
    assert Pattern("row", 6, 1, 7).cache_len == 6 + 7


def stored(pattern: Pattern, slots: int, last: int, x: torch.Tensor) -> torch.Tensor:
    """The cache (B, H, S, D) of x (B, H, T, D) after `last`; what was never filled is 100."""
    held = cached_positions(pattern, slots, last)
    never = held > last
    return x[:, :, held.clamp(max=last)].masked_fill(never[:, None], 100.0)


@every_rule
@every_grid
@pytest.mark.parametrize("new", [1, 3])
def test_a_step_against_the_shortest_ring_equals_the_full_attention(kind, wrap, grid, new):
    """At every position, text included."""
    pattern = Pattern(kind, 4, *grid, 3, wrap)
    q, k, v = torch.randn(3, 2, 2, pattern.seq_len, 4, dtype=torch.float64).unbind(0)
    prefix_lengths = torch.tensor([0, 3])
    expected = attention_reference(q, k, v, pattern, prefix_lengths=prefix_lengths)
    for position in range(pattern.seq_len - new + 1):
        last = position + new - 1
        slots = min(pattern.seq_len, pattern.cache_len + new - 1)
        keys, values = (stored(pattern, slots, last, x) for x in (k, v))
        rows = q[:, :, position : last + 1]
        for start in (position, torch.tensor(position)):
            o = attention_step(rows, keys, values, pattern, start, prefix_lengths=prefix_lengths)
            torch.testing.assert_close(o, expected[:, :, position : last + 1])


@every_rule
@pytest.mark.parametrize("new", [1, 2, 5])
def test_the_check_refuses_exactly_the_rings_that_lose_a_key_in_reach(kind, wrap, new):
    pattern = Pattern(kind, 3, 5, 4, 3, wrap)
    text_len, seq_len = pattern.text_len, pattern.seq_len
    reach = seq_len if pattern.reach is None else pattern.reach
    for position in range(seq_len - new + 1):
        last = position + new - 1
        first = text_len + max(0, position - text_len - reach)
        for slots in range(text_len, seq_len + 1):
            kept = set(cached_positions(pattern, slots, last).tolist())
            if set(range(first, last + 1)) <= kept:
                check_cached(pattern, slots, position, new)
            else:
                with pytest.raises(ValueError, match=f"{position}..{last} against {slots} cached keys"):
                    check_cached(pattern, slots, position, new)


@pytest.mark.parametrize(("kind", "wrap"), [rule for rule in ALL_RULES if rule[0] != "column"])
def test_a_ring_one_slot_shorter_loses_a_key_that_is_seen(kind, wrap):
    """So `cache_len` is the least. (A column's last queries could do without the picture's first token.)"""
    pattern = Pattern(kind, 3, 6, 5, 3, wrap)
    mask, lost = dense_mask(pattern), 0
    for last in range(pattern.text_len, pattern.seq_len):
        held = cached_positions(pattern, pattern.cache_len - 1, last)
        seen = set(mask[last].nonzero().flatten().tolist())
        lost += bool(seen - set(held.tolist()))
    assert lost > 0


def test_a_ring_that_is_too_short_says_how_long_it_has_to_be():
    k = torch.zeros(1, 1, 10, 4)
    message = r"positions 15..16 against 10 cached keys: with 6 of the text they need 12"
    with pytest.raises(ValueError, match=message):
        attention_step(torch.zeros(1, 1, 2, 4), k, k, Pattern("row", 6, 4, 4), 15)


@pytest.mark.parametrize(
    ("position", "said"),
    [
        (torch.tensor([3]), r"shape \(1,\), torch.int64, on cpu"),
        (torch.tensor(3.0), r"shape \(\), torch.float32"),
        (
            torch.tensor(3, device="meta"),
            r"shape \(\), torch.int64, on meta, expected a 0-d int32 or int64 tensor on cpu",
        ),
    ],
)
def test_a_position_that_is_no_single_integer_is_refused(position, said):
    k = torch.zeros(1, 1, 10, 4)
    with pytest.raises(ValueError, match=f"position is a tensor of {said}"):
        attention_step(k[:, :, :1], k, k, Pattern("row", 6, 4, 4), position)
