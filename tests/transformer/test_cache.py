import pytest
import torch

from kernels.patterns import Pattern
from transformer.cache import KVCache

ROW = Pattern("row", 3, 4, 2)  # text_len 3, a ring of 3
COLUMN = Pattern("column", 3, 4, 2)


def keys(*positions: int) -> torch.Tensor:
    """Each key's number is its position: (1, 1, N, 1)."""
    return torch.tensor(positions, dtype=torch.float32).view(1, 1, -1, 1)


def cache_of(pattern: Pattern) -> KVCache:
    cache = KVCache([pattern], torch.zeros(1, dtype=torch.int64), 1)
    cache.store_text(keys(-3, -2, -1), keys(-3, -2, -1))
    return cache


def test_a_texts_keys_are_kept_once_for_all_its_samples():
    """Two texts and a third that stands for two more; twelve samples, three a text."""
    cache = KVCache([COLUMN, ROW], torch.tensor([0, 1, 2, 2]), 12)
    k = torch.randn(3, 2, 3, 4)
    cache.store_text(k, 2 * k)
    cache.store_text(3 * k, 4 * k)
    assert torch.equal(cache.text[0].k, k[[0, 1, 2, 2]])
    assert torch.equal(cache.text[1].v, 4 * k[[0, 1, 2, 2]])
    assert [ring.k.shape for ring in cache.image] == [(12, 2, 8, 4), (12, 2, 3, 4)]
    assert not cache.image[0].k.any()


def test_the_first_update_returns_what_it_was_given_and_later_ones_the_buffers():
    cache = cache_of(ROW)
    k, v = cache.update(0, 0, keys(0, 1, 2, 3, 4), keys(10, 11, 12, 13, 14))
    assert (k.flatten().tolist(), v.flatten().tolist()) == ([0, 1, 2, 3, 4], [10, 11, 12, 13, 14])
    k, v = cache.update(0, 5, keys(5), keys(15))
    assert k is cache.image[0].k
    assert v is cache.image[0].v
    assert k.flatten().tolist() == [3, 4, 5]
    assert v.flatten().tolist() == [13, 14, 15]


@pytest.mark.parametrize("pattern", [ROW, COLUMN])
@pytest.mark.parametrize("start", [1, 2, 3, 4, 6, 8])
def test_a_long_beginning_leaves_what_one_by_one_leaves(pattern, start):
    at_once, one_by_one = cache_of(pattern), cache_of(pattern)
    at_once.update(0, 0, keys(*range(start)), keys(*range(start)))
    one_by_one.update(0, 0, keys(0), keys(0))
    for position in range(1, start):
        one_by_one.update(0, torch.tensor(position), keys(position), keys(position))
    for a, b in zip(at_once.image[0], one_by_one.image[0], strict=True):
        assert torch.equal(a, b)


def test_several_at_once_wrap_around_the_ring():
    cache = cache_of(ROW)
    cache.update(0, 0, keys(0, 1), keys(0, 1))
    assert cache.update(0, 2, keys(2, 3), keys(2, 3)).k.flatten().tolist() == [3, 1, 2]


def test_buffers_may_be_narrower_than_keys():
    cache = KVCache([ROW], torch.zeros(1, dtype=torch.int64), 1, torch.bfloat16)
    cache.store_text(keys(1, 2, 3), keys(1, 2, 3))
    k, v = cache.update(0, 0, keys(257), keys(1))
    assert k.dtype == v.dtype == cache.text[0].v.dtype == torch.bfloat16
    assert k.item() == cache.image[0].k[0, 0, 0, 0].item() == 256


def test_an_image_without_its_text_is_refused():
    cache = KVCache([ROW], torch.zeros(1, dtype=torch.int64), 1)
    with pytest.raises(AssertionError, match="image keys of layer 0 before its text"):
        cache.update(0, 4, keys(4), keys(4))


def test_bytes_at_32x32():
    """Of 16 samples of a text, 31 times less than dense caches in row layers, and 6.2 times less in conv layers."""
    patterns = [Pattern(kind, 256, 32, 32) for kind in ("row", "column", "conv")]
    cache = KVCache(patterns, torch.zeros(1, dtype=torch.int64), 16)
    for _ in patterns:
        cache.store_text(torch.zeros(1, 2, 256, 8), torch.zeros(1, 2, 256, 8))
    a_key = 2 * 8 * 4
    sizes = [
        text.k.untyped_storage().nbytes() + ring.k.untyped_storage().nbytes()
        for text, ring in zip(cache.text, cache.image, strict=True)
    ]
    assert sizes == [(256 + 16 * slots) * a_key for slots in (33, 1024, 166)]
