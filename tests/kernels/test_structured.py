"""The sparse path against the oracle: outputs, gradients, odd grids, dtypes, strides, prefixes, causality, memory."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import patterns, structured
from kernels.patterns import Pattern, dense_mask
from kernels.reference import attention_reference
from kernels.structured import Windows, attention_structured
from tests.kernels import oracle
from tests.kernels.oracle import (
    assert_as_exact_as_masked_sdpa,
    every_rule,
    output_and_gradient,
    packed,
    pattern_strategy,
    unpack,
)


@pytest.fixture(autouse=True, scope="module")
def always_tiled():
    """Small sequences too go through the tiles; the tests of the short cuts restore them."""
    with mock.patch.multiple(structured, MAX_SINGLE_TILE=0, MAX_WRITTEN_OUT=0):
        yield


def assert_matches_reference(qkv: Tensor, pattern: Pattern, **options) -> None:
    oracle.assert_matches_reference(attention_structured, qkv, pattern, **options)


@given(pattern_strategy, st.integers(1, 2), st.integers(1, 3), st.sampled_from([1, 3, 8]), st.integers(0, 99))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_random_shapes(pattern, batch, heads, head_dim, seed):
    assert_matches_reference(packed(pattern, batch, heads, head_dim, seed), pattern)


@given(pattern_strategy, st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_random_prefix_lengths(pattern, data):
    lengths = data.draw(st.lists(st.integers(0, pattern.text_len), min_size=3, max_size=3))
    assert_matches_reference(packed(pattern, 3, 2, 4), pattern, prefix_lengths=torch.tensor(lengths, dtype=torch.int32))


@every_rule
@pytest.mark.parametrize(("height", "width"), [(6, 11), (4, 33), (3, 1), (64, 1), (1, 40), (32, 2)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_grids_that_bands_fill_exactly_or_not_at_all(kind, wrap, height, width, kernel):
    pattern = Pattern(kind, 3, height, width, kernel, wrap)
    assert_matches_reference(packed(pattern, 1, 2, 3), pattern)


@every_rule
@pytest.mark.parametrize("lengths", [[0, 0], [0, 5], [5, 5]])
def test_empty_and_full_prefixes(kind, wrap, lengths):
    pattern = Pattern(kind, 5, 9, 7, 3, wrap)
    qkv = packed(pattern, 2, 2, 4)
    assert_matches_reference(qkv, pattern, prefix_lengths=torch.tensor(lengths))
    if lengths == [5, 5]:
        options = {"prefix_lengths": torch.tensor(lengths)}
        with_prefix = output_and_gradient(attention_structured, qkv, pattern, **options)
        without = output_and_gradient(attention_structured, qkv, pattern)
        torch.testing.assert_close(with_prefix, without)


@every_rule
def test_float32_parity_at_the_papers_size(kind, wrap):
    pattern = Pattern(kind, 256, 32, 32, 11, wrap)
    qkv = packed(pattern, 1, 1, 16, dtype=torch.float32)
    q, k, v = unpack(qkv)
    found, expected = attention_structured(q, k, v, pattern), attention_reference(q, k, v, pattern)
    assert (found - expected).abs().max() < 1e-5


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_at_most_twice_that_of_masked_sdpa_in_the_same_dtype(kind, wrap, dtype):
    pattern = Pattern(kind, 20, 9, 12, 5, wrap)
    assert_as_exact_as_masked_sdpa(attention_structured, packed(pattern, 2, 2, 16, dtype=dtype), pattern)


@every_rule
@pytest.mark.parametrize("lengths", [None, [0, 0], [0, 7]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_sequences_in_half_precision(kind, wrap, dtype, lengths):
    """Where gradients are wanted, plain matrix products take the place of the fused kernel."""
    pattern = Pattern(kind, 20, 9, 12, 5, wrap)
    prefix_lengths = None if lengths is None else torch.tensor(lengths)
    with (
        mock.patch.object(structured, "MAX_WRITTEN_OUT", pattern.seq_len),
        mock.patch.object(structured, "_written_out", wraps=structured._written_out) as written_out,
    ):
        assert_as_exact_as_masked_sdpa(
            attention_structured, packed(pattern, 2, 2, 16, dtype=dtype), pattern, prefix_lengths
        )
    assert written_out.called


def test_short_sequences_in_half_precision_without_gradients_stay_fused():
    pattern = Pattern("row", 6, 4, 4)
    q, k, v = unpack(packed(pattern, 1, 2, 4, dtype=torch.bfloat16))
    with (
        torch.no_grad(),
        mock.patch.multiple(structured, MAX_SINGLE_TILE=pattern.seq_len, MAX_WRITTEN_OUT=pattern.seq_len),
        mock.patch.object(structured, "_written_out") as written_out,
    ):
        attention_structured(q, k, v, pattern)
    assert not written_out.called


@every_rule
def test_written_out_scores_match_too(kind, wrap):
    """The path of devices without a suitable fused kernel, taken here on the CPU."""
    pattern = Pattern(kind, 5, 9, 7, 3, wrap)
    qkv = packed(pattern, 2, 2, 4)
    with mock.patch.object(structured, "FUSED_DEVICES", frozenset()):
        assert_matches_reference(qkv, pattern)
        assert_matches_reference(qkv, pattern, prefix_lengths=torch.tensor([0, 3]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_rule
def test_on_a_gpu(kind, wrap):
    pattern = Pattern(kind, 20, 9, 12, 5, wrap)
    qkv = packed(pattern, 2, 2, 16).cuda()
    for lengths in (None, torch.tensor([0, 7], device="cuda", dtype=torch.int32)):
        q, k, v = unpack(qkv.clone().requires_grad_())
        found = attention_structured(q, k, v, pattern, prefix_lengths=lengths)
        expected = attention_reference(q, k, v, pattern, prefix_lengths=lengths)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
        weight = torch.randn_like(found)
        found, expected = (torch.autograd.grad((o * weight).sum(), (q, k, v)) for o in (found, expected))
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("lengths", [None, [0, 4]])
@every_rule
def test_single_tile(kind, wrap, lengths):
    pattern = Pattern(kind, 6, 4, 4, 3, wrap)
    options = {} if lengths is None else {"prefix_lengths": torch.tensor(lengths)}
    with mock.patch.object(structured, "MAX_SINGLE_TILE", pattern.seq_len):
        assert_matches_reference(packed(pattern, 2, 2, 4), pattern, **options)


@every_rule
def test_scale_and_other_strides(kind, wrap):
    pattern = Pattern(kind, 5, 9, 7, 3, wrap)
    qkv = packed(pattern, 2, 2, 4)
    assert_matches_reference(qkv, pattern, scale=0.7)
    q, k, v = unpack(qkv)
    expected = attention_reference(q, k, v, pattern)
    scattered = q.transpose(-1, -2).contiguous().transpose(-1, -2)  # last stride is not 1
    doubled = torch.stack([k, k], dim=-1)[..., 0]
    torch.testing.assert_close(attention_structured(scattered, doubled, v.contiguous(), pattern), expected)
    shared = v[:, :1].expand(-1, 2, -1, -1)  # one head of values for all
    torch.testing.assert_close(attention_structured(q, k, shared, pattern), attention_reference(q, k, shared, pattern))


@every_rule
@pytest.mark.parametrize("position", [0, 4, 5, 6, 30, 67])
def test_no_output_before_a_changed_key_changes(kind, wrap, position):
    pattern = Pattern(kind, 5, 9, 7, 3, wrap)
    q, k, v = unpack(packed(pattern, 1, 2, 4))
    before = attention_structured(q, k, v, pattern)
    k, v = k.clone(), v.clone()
    k[:, :, position] += 3
    v[:, :, position] -= 3
    changed = (attention_structured(q, k, v, pattern) != before).any(dim=-1).any(dim=1)[0]  # (T,)
    assert torch.equal(changed, dense_mask(pattern)[:, position])


@pytest.mark.parametrize("kind", ["row", "conv"])
def test_a_span_that_is_off_by_one_is_caught(kind):
    pattern = Pattern(kind, 5, 9, 7, 3)
    correct = patterns.RULES[kind, "linear" if kind == "conv" else None]
    wrong = correct._replace(allows=lambda q, k, width, half: correct.allows(q, k, width, half) & (q - k != width))
    assert_matches_reference(packed(pattern, 1, 1, 4), pattern)
    q, k, v = unpack(packed(pattern, 1, 1, 4))
    expected = attention_reference(q, k, v, pattern)
    with mock.patch.dict(patterns.RULES, {(kind, "linear" if kind == "conv" else None): wrong}):
        found = attention_structured(q, k, v, pattern)
    assert (found - expected).abs().max() > 1e-3


def test_a_rule_without_a_reach():
    with mock.patch.dict(patterns.RULES, {("row", None): oracle.OTHER_RULE}):
        assert_matches_reference(packed(Pattern("row", 5, 9, 7), 2, 2, 4), Pattern("row", 5, 9, 7))


def test_a_reach_that_is_too_short_is_caught():
    pattern = Pattern("row", 5, 90, 7)
    q, k, v = unpack(packed(pattern, 1, 1, 4))
    short = patterns.RULES["row", None]._replace(reach=lambda width, half: width - 1)
    with mock.patch.dict(patterns.RULES, {("row", None): short}):
        found = attention_structured(q, k, v, pattern)
    assert (found - attention_reference(q, k, v, pattern)).abs().max() > 1e-3


class Allocations(TorchDispatchMode):
    """Sizes of the storages that operators return, each counted once, in elements of the largest and bytes of all."""

    def __init__(self) -> None:
        super().__init__()
        self.kept, self.seen, self.largest, self.total_bytes = [], set(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self.seen:
                self.kept.append(x)  # so that no address is used twice
                self.seen.add(x.untyped_storage().data_ptr())
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
                self.total_bytes += x.untyped_storage().nbytes()
        return result


@every_rule
@pytest.mark.parametrize("prefix_lengths", [None, torch.tensor([77])])
def test_nothing_as_large_as_the_mask_is_made(kind, wrap, prefix_lengths):
    pattern = Pattern(kind, 256, 32, 32, 11, wrap)
    q, k, v = (x.requires_grad_() for x in unpack(packed(pattern, 1, 1, 8, dtype=torch.float32)))
    with Allocations() as allocations:
        attention_structured(q, k, v, pattern, prefix_lengths=prefix_lengths).sum().backward()
    assert 0 < allocations.largest < pattern.seq_len**2 / 20


def test_memory_of_a_row_layer_at_128x128_stays_within_four_times_its_inputs_and_output():
    pattern = Pattern("row", 256, 128, 128)
    q, k, v = unpack(packed(pattern, 1, 1, 16, dtype=torch.float32))
    inputs_and_output = 4 * q.numel() * q.element_size()
    with torch.no_grad(), Allocations() as allocations:
        attention_structured(q, k, v, pattern)
    assert allocations.total_bytes + 3 * q.numel() * q.element_size() < 4 * inputs_and_output


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        (Windows.one(2, 3), [[2, 3, 4]]),
        (Windows(1, 3, 2, 2), [[1, 2], [3, 4], [5, 6]]),
        (Windows(0, 3, 5, 2), [[0, 1, 2, 3, 4], [2, 3, 4, 5, 6], [4, 5, 6, 7, 8]]),
        (Windows(2, 3, 2, 1, stride=3), [[2, 5], [3, 6], [4, 7]]),
    ],
)
def test_windows_cut_and_add_back(windows, expected):
    positions = torch.arange(10.0).expand(2, 10).contiguous()
    cut = windows.of(positions)
    assert cut.tolist() == [expected] * 2
    total = torch.zeros(2, 10)
    windows.add_to(total, torch.ones_like(cut))
    times = [sum(row.count(i) for row in expected) for i in range(10)]
    assert total.tolist() == [times] * 2
