"""Decoding by Triton kernels against the oracle's rows: here in Triton's interpreter, with `-m gpu` at full sizes.

Wherever a step may not look, keys and values are NaN: slots that were never filled, that another pattern would see, or
text beyond the prefixes of all its samples.
"""

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

pytest.importorskip("triton", reason="Triton is for Linux")

from kernels import decode_launch, jit, patterns
from kernels import step as step_module
from kernels.cache_layout import KeysValues
from kernels.launch import Launch
from kernels.limits import MAX_NEW
from kernels.patterns import Pattern, attention_mask
from kernels.reference import attention_reference
from kernels.step import attention_step
from tests.kernels.oracle import DEVICE, every_rule, on_a_gpu, pattern_strategy, unpack
from tests.kernels.step_cases import inputs, rows_of, shortest, step_of

USERS_PARAMETERS, USERS_SLICE_KEYS = decode_launch.launch_parameters, decode_launch.SLICE_KEYS


@pytest.fixture(autouse=True)
def small_blocks(poisoned_memory) -> Iterator[None]:
    """Blocks and slices so short that a list takes several."""
    with (
        mock.patch.object(
            decode_launch, "launch_parameters", lambda q, _: Launch(1 if q.shape[2] == 1 else 16, 16, 4, 1)
        ),
        mock.patch.object(decode_launch, "SLICE_KEYS", 10),
    ):
        yield


@pytest.fixture
def users_blocks(small_blocks, monkeypatch) -> None:
    """The launch parameters and slices that a user gets."""
    monkeypatch.setattr(decode_launch, "launch_parameters", USERS_PARAMETERS)
    monkeypatch.setattr(decode_launch, "SLICE_KEYS", USERS_SLICE_KEYS)


def step(*args, prefix_lengths=None, samples=1, **options) -> Tensor:
    """`attention_step` by Triton against a cache that holds NaN wherever none of the queries sees a key."""
    step = step_of(*args, prefix_lengths, samples)
    return attention_step(*step, prefix_lengths=prefix_lengths, impl="triton", **options)


def assert_rows(
    qkv: Tensor, pattern: Pattern, steps: list[tuple[int, int]], slots=shortest, prefix_lengths=None, samples=1
) -> None:
    """The steps (index, N) against the rows of the oracle, and in short types, of what plain torch is off by."""
    exact = attention_reference(*unpack(qkv.double()), pattern, prefix_lengths=prefix_lengths)
    positions = torch.arange(pattern.seq_len, device=qkv.device)
    plain = scaled_dot_product_attention(*unpack(qkv), attention_mask(pattern, positions, positions, prefix_lengths))
    for index, new in steps:
        expected = rows_of(exact, pattern, index, new)
        o = step(qkv, pattern, index, new, slots(pattern, new), prefix_lengths=prefix_lengths, samples=samples)
        assert (o.dtype, o.shape) == (qkv.dtype, expected.shape)
        if qkv.dtype == torch.float32:
            torch.testing.assert_close(o.double(), expected, atol=1e-5, rtol=1e-5)
            continue
        spacing = torch.finfo(qkv.dtype).eps * exact.abs().max()
        error = (o.double() - expected).abs().max()
        assert error <= 2 * (plain.double() - exact).abs().max() + spacing, (index, new)


def some_steps(pattern: Pattern) -> list[tuple[int, int]]:
    """Single queries and a few: at the first, a middle and the last position."""
    last = pattern.image_len - 1
    return [(0, 1), (last // 2, 1), (last, 1), (0, 3), (last - 2, 3)]


def test_unwritten_memory_is_poisoned():
    assert torch.empty(3, device=DEVICE).isnan().all()


@every_rule
def test_every_position_of_one_query(kind, wrap, monkeypatch):
    """Against rings that are as short as the mask allows and are overwritten again and again."""
    monkeypatch.setattr(decode_launch, "split_count", lambda *_: 1)
    pattern = Pattern(kind, 4, 5, 3, 3, wrap)
    prefix_lengths = torch.tensor([0, 3], device=DEVICE)
    steps = [(index, 1) for index in range(pattern.image_len)]
    assert_rows(inputs(pattern), pattern, steps, prefix_lengths=prefix_lengths)


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(kind, wrap, dtype):
    pattern = Pattern(kind, 9, 7, 5, 3, wrap)
    assert_rows(inputs(pattern, 1, 2, dtype=dtype), pattern, some_steps(pattern))


@every_rule
@pytest.mark.parametrize("grid", [(1, 19), (19, 1)])
def test_single_rows_and_columns(kind, wrap, grid):
    pattern = Pattern(kind, 5, *grid, 5, wrap)
    assert_rows(inputs(pattern, 1), pattern, [(10, 1), (15, 3)])


@every_rule
def test_33x31(users_blocks, kind, wrap):
    pattern = Pattern(kind, 70, 33, 31, 11, wrap)
    assert_rows(inputs(pattern, 1), pattern, [(430, 1), (1022, 1), (730, 5)])


@every_rule
def test_rings_of_any_length(kind, wrap):
    """As long as the image, somewhere between that and the shortest, and no more than the keys so far."""
    pattern = Pattern(kind, 5, 7, 5, 3, wrap)
    qkv = inputs(pattern, 1)
    for slots in (lambda pattern, _: pattern.image_len, lambda pattern, new: (shortest(pattern, new) + 36) // 2):
        assert_rows(qkv, pattern, [(25, 1), (24, 4)], slots)
    assert_rows(qkv, pattern, [(16, 1), (13, 4)], lambda *_: 17)


@pytest.mark.parametrize("kind", ["row", "column"])
@pytest.mark.parametrize("lengths", [(0, 0), (9, 9), (1, 8)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_prefixes(kind, lengths, dtype):
    pattern = Pattern(kind, 9, 4, 4)
    prefix_lengths = torch.tensor([lengths, lengths], dtype=dtype, device=DEVICE)[:, 0]  # not contiguous, equal
    assert_rows(inputs(pattern), pattern, [(0, 1), (11, 1), (7, 4)], prefix_lengths=prefix_lengths)
    prefix_lengths = torch.tensor([lengths, lengths], dtype=dtype, device=DEVICE).T.contiguous()[:, 0]
    assert_rows(inputs(pattern), pattern, [(11, 1), (7, 4)], prefix_lengths=prefix_lengths)


@pytest.mark.parametrize(("kind", "new"), [("row", 1), ("column", 1), ("conv", 3)])
@pytest.mark.parametrize("lengths", [None, [0, 9, 2, 7, 7, 0]])
def test_samples_of_one_text(kind, new, lengths):
    """Three of each of two texts, and all six of one, with prefixes of their own."""
    pattern = Pattern(kind, 9, 4, 4, 3)
    prefix_lengths = None if lengths is None else torch.tensor(lengths, device=DEVICE)
    for samples in (3, 6):
        qkv = inputs(pattern, 6, 2, samples=samples)
        assert_rows(qkv, pattern, [(11, new)], prefix_lengths=prefix_lengths, samples=samples)


def test_another_sample_s_text_is_caught():
    pattern = Pattern("row", 5, 4, 4)
    qkv = inputs(pattern, 4, samples=2)
    q, text, *rest = step_of(qkv, pattern, 7, 1, 5, samples=2)
    expected = rows_of(attention_reference(*unpack(qkv), pattern), pattern, 7, 1)
    torch.testing.assert_close(attention_step(q, text, *rest, impl="triton"), expected, atol=1e-5, rtol=1e-5)
    swapped = attention_step(q, KeysValues(*(x.flip(0) for x in text)), *rest, impl="triton")
    assert ((swapped - expected).abs().amax(dim=(1, 2, 3)) > 0.01).all()


@pytest.mark.parametrize("head_dim", [1, 8, 33, 80, 256])
def test_head_dims(head_dim):
    pattern = Pattern("conv", 5, 4, 4, 3)
    assert_rows(inputs(pattern, 1, head_dim=head_dim), pattern, [(10, 1), (8, 2)])


@pytest.mark.parametrize("new", [1, 3])
def test_strides(new):
    """Every other slot, value and head of larger tensors, batch innermost."""
    pattern = Pattern("row", 5, 4, 4)
    qkv = inputs(pattern, 2, 2)
    expected = rows_of(attention_reference(*unpack(qkv), pattern), pattern, 10, new)

    def strided(x: Tensor) -> Tensor:
        batch, heads, rows, head_dim = x.shape
        large = torch.full((2 * head_dim, 2 * rows, 2 * heads, batch), torch.nan, device=x.device)
        view = large.permute(3, 2, 1, 0)[:, ::2, ::2, ::2]
        view.copy_(x)
        return view

    q, text, image, *rest = step_of(qkv, pattern, 10, new, shortest(pattern, new))
    text = KeysValues(text.k.contiguous(), strided(text.v))
    image = KeysValues(strided(image.k), image.v.contiguous())
    assert text.k.stride(3) == 1 != image.k.stride(3)
    found = attention_step(strided(q), text, image, *rest, impl="triton")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.is_contiguous()


def test_the_scale():
    pattern = Pattern("row", 5, 4, 4)
    qkv = inputs(pattern)
    expected = rows_of(attention_reference(*unpack(qkv), pattern, scale=2.0), pattern, 7, 1)
    torch.testing.assert_close(step(qkv, pattern, 7, 1, 5, scale=2.0), expected, atol=1e-5, rtol=1e-5)


def test_large_scores_do_not_overflow():
    pattern = Pattern("causal", 5, 4, 4)
    assert_rows(200 * inputs(pattern), pattern, [(15, 1), (12, 4)])


@pytest.mark.parametrize("splits", [1, 3, 9])
@pytest.mark.parametrize("new", [1, 3])
def test_any_number_of_slices(splits, new, monkeypatch):
    """More slices than blocks of keys leave some of them empty; a sample without text leaves more."""
    monkeypatch.setattr(decode_launch, "split_count", lambda *_: splits)
    pattern = Pattern("causal", 40, 5, 5)
    prefix_lengths = torch.tensor([0, 33], device=DEVICE)
    assert_rows(inputs(pattern), pattern, [(0, new), (21, new)], prefix_lengths=prefix_lengths)


def test_slices_depend_on_shapes_alone(users_blocks):
    row, column, causal = (Pattern(kind, 256, 32, 32) for kind in ("row", "column", "causal"))
    assert decode_launch.split_count(row, 1, row.ring_len) == 1  # 289 keys
    assert decode_launch.split_count(column, 1, 1024) == 1  # 288 keys
    assert decode_launch.split_count(column, 4, 1024) == 5
    assert decode_launch.split_count(causal, 1, 1024) == 5
    assert decode_launch.split_count(Pattern("causal", 256, 256, 256), 1, 256 * 256) == decode_launch.MAX_SPLITS


@settings(max_examples=25, deadline=None, derandomize=True)
@given(pattern=pattern_strategy, data=st.data())
def test_random_shapes_and_positions(pattern, data):
    new = data.draw(st.sampled_from([1, 1, 2, 5, MAX_NEW]))
    new = min(new, pattern.image_len)
    index = data.draw(st.integers(0, pattern.image_len - new))
    slots = data.draw(st.integers(shortest(pattern, new), pattern.image_len))
    samples = data.draw(st.sampled_from([1, 2]))
    lengths = torch.tensor([data.draw(st.integers(0, pattern.text_len)) for _ in range(samples)], device=DEVICE)
    qkv = inputs(pattern, samples, head_dim=data.draw(st.sampled_from([16, 20])), samples=samples)
    prefix_lengths = data.draw(st.sampled_from([None, lengths]))
    assert_rows(qkv, pattern, [(index, new)], lambda *_: slots, prefix_lengths, samples)


def wrong_row_rule(q, k, width, half):
    return (k <= q) & (q - k < width)


def test_a_wrong_rule_is_caught(monkeypatch):
    monkeypatch.setattr(decode_launch, "device_function", lambda _: jit.device_function(wrong_row_rule))
    pattern = Pattern("row", 5, 4, 4)
    assert_rows(inputs(pattern), pattern, [(3, 1)])  # nothing lies that far back yet
    with pytest.raises(AssertionError):
        assert_rows(inputs(pattern), pattern, [(10, 1)])


def test_a_ring_one_slot_too_short_is_caught(monkeypatch):
    pattern = Pattern("row", 5, 4, 4)
    qkv = inputs(pattern)
    with pytest.raises(ValueError, match="against 4 image keys, expected at least 5"):
        assert_rows(qkv, pattern, [(10, 1)], lambda *_: 4)
    monkeypatch.setattr(step_module, "check_ring", lambda *_: None)
    with pytest.raises(AssertionError):
        assert_rows(qkv, pattern, [(10, 1)], lambda *_: 4)


def test_a_kernel_that_reads_too_much_is_caught(monkeypatch):
    """Here one that takes the rule for granted: its output is NaN, as the reading test's poison is."""
    monkeypatch.setattr(decode_launch, "device_function", lambda _: jit.device_function(patterns.causal_rule))
    pattern = Pattern("conv", 5, 4, 8, 3)
    assert step(inputs(pattern), pattern, 25, 1, shortest(pattern)).isnan().any()


def test_a_kernel_that_reads_text_beyond_the_prefix_is_caught():
    pattern = Pattern("row", 5, 4, 4)
    lengths = torch.tensor([2, 3], device=DEVICE)
    *cache, _ = step_of(inputs(pattern), pattern, 9, 1, 5, lengths)
    assert attention_step(*cache, 9, prefix_lengths=lengths, impl="triton").isfinite().all()
    assert attention_step(*cache, 9, prefix_lengths=lengths + 1, impl="triton").isnan().any()


# --- full sizes ------------------------------------------------------------------------------------------------------


@on_a_gpu
@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 128, 256])
def test_at_32x32_on_a_gpu(users_blocks, kind, wrap, dtype, head_dim):
    pattern = Pattern(kind, 256, 32, 32, 11, wrap)
    lengths = torch.tensor([0, 77], device=DEVICE)
    qkv = inputs(pattern, 2, 4, head_dim, dtype)
    assert_rows(qkv, pattern, [*some_steps(pattern), (444, 1), (544, MAX_NEW)], prefix_lengths=lengths)
    assert_rows(inputs(pattern, 2, 4, head_dim, dtype, samples=2), pattern, [(744, 1), (0, 1)], samples=2)


@on_a_gpu
@pytest.mark.parametrize("large", ["text", "image"])
def test_offsets_beyond_32_bits_on_a_gpu(users_blocks, large):
    pattern = Pattern("row", 264, 32, 32)
    texts, slots = (2048, pattern.ring_len) if large == "text" else (1, 264)
    q = torch.randn(2048, 64, 1, 64, device=DEVICE, dtype=torch.bfloat16)
    text = torch.randn(texts, 64, 264, 64, device=DEVICE, dtype=torch.bfloat16)
    image = torch.randn(2048, 64, slots, 64, device=DEVICE, dtype=torch.bfloat16)
    assert max(text.numel(), image.numel()) > 2**31
    found = attention_step(q, KeysValues(text, text), KeysValues(image, image), pattern, 1000, impl="triton")
    text, image = (KeysValues(x[-1:], x[-1:]) for x in (text, image))
    expected = attention_step(q[-1:], text, image, pattern, 1000, impl="structured")
    torch.testing.assert_close(found[-1:], expected, atol=2e-2, rtol=2e-2)
