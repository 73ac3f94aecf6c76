import pytest
import torch

from kernels.attention import attention_step
from kernels.patterns import Pattern
from transformer.cache import KVCache

ROW = Pattern("row", 3, 4, 2)  # text_len 3, a ring of 3
COLUMN = Pattern("column", 3, 4, 2)


def keys(*positions: int) -> torch.Tensor:
    """Each key's number is its position: (1, 1, N, 1)."""
    return torch.tensor(positions, dtype=torch.float32).view(1, 1, -1, 1)


def test_the_first_update_returns_what_it_was_given_and_later_ones_the_buffers():
    cache = KVCache([COLUMN, ROW])
    k = torch.randn(2, 2, 8, 4)
    found_keys, found_values = cache.update(1, 0, k, 2 * k)
    assert found_keys is k
    assert torch.equal(found_values, 2 * k)
    more = torch.randn(2, 2, 1, 4)
    found_keys, found_values = cache.update(1, 8, more, 3 * more)
    assert found_keys is cache.keys[1]
    assert found_keys.shape == (2, 2, 6, 4)
    # Image positions 5, 6, 7 (raster 2, 3, 4) were kept in slots 3 + 2, 3 + 0 and 3 + 1; 8 came in the place of 5.
    assert torch.equal(found_keys, torch.cat([k[:, :, :3], k[:, :, 6:8], more], dim=2))
    assert torch.equal(found_values, torch.cat([2 * k[:, :, :3], 2 * k[:, :, 6:8], 3 * more], dim=2))
    assert cache.keys[0] is None


@pytest.mark.parametrize("pattern", [ROW, COLUMN])
@pytest.mark.parametrize("start", [2, 3, 4, 6, 8, 10])
def test_a_long_beginning_leaves_what_one_by_one_leaves(pattern, start):
    """Which slots hold which positions, but for those that were never filled."""
    at_once, one_by_one = KVCache([pattern]), KVCache([pattern])
    at_once.update(0, 0, keys(*range(start)), keys(*range(start)))
    one_by_one.update(0, 0, keys(0), keys(0))
    for position in range(1, start):
        one_by_one.update(0, torch.tensor(position), keys(position), keys(position))
    filled = min(start, pattern.cache_len)
    assert torch.equal(at_once.keys[0][:, :, :filled], one_by_one.keys[0][:, :, :filled])
    assert torch.equal(at_once.values[0][:, :, :filled], one_by_one.values[0][:, :, :filled])


def test_several_at_once_wrap_around_the_ring():
    cache = KVCache([ROW])
    cache.update(0, 0, keys(0, 1, 2, 3, 4), keys(0, 1, 2, 3, 4))
    found, _ = cache.update(0, 5, keys(5, 6), keys(5, 6))
    assert found.flatten().tolist() == [0, 1, 2, 6, 4, 5]


def test_more_at_once_than_the_ring_holds_are_refused():
    cache = KVCache([ROW])
    cache.update(0, 0, keys(*range(7)), keys(*range(7)))
    k, v = cache.update(0, 7, keys(7, 8), keys(7, 8))
    with pytest.raises(ValueError, match=r"positions 7\.\.8 against 6 cached keys: with 3 of the text they need 7"):
        attention_step(keys(7, 8), k, v, ROW, 7)


def test_a_cache_without_its_beginning_is_refused():
    with pytest.raises(AssertionError, match="position 4 of layer 0 before position 0"):
        KVCache([ROW]).update(0, 4, keys(4), keys(4))


def test_bytes_at_32x32():
    """Against caches as long as the sequence, 4.4 times less in row layers and 3 times less in conv layers."""
    patterns = [Pattern(kind, 256, 32, 32) for kind in ("row", "column", "conv")]
    cache = KVCache(patterns)
    k = torch.zeros(1, 2, 256, 8)
    for layer in range(3):
        cache.update(layer, 0, k, k)
    sizes = [x.untyped_storage().nbytes() for x in cache.keys]
    assert sizes == [x.untyped_storage().nbytes() for x in cache.values]
    assert sizes == [slots * 2 * 8 * 4 for slots in (256 + 33, 1280, 256 + 166)]
