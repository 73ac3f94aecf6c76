"""The Triton kernels against the oracle at small sizes, in Triton's interpreter where there is no GPU."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux")

from kernels import flash_launch, patterns
from kernels.flash import attention_flash
from kernels.patterns import Pattern, dense_mask
from kernels.reference import attention_reference
from kernels.tiles import image_tiling
from tests.kernels import oracle
from tests.kernels.flash_cases import SMALL, blocks, inputs, small_blocks  # noqa: F401
from tests.kernels.oracle import DEVICE, every_rule, output_and_gradient, unpack

# Odd grids: 7x5, a single row, a single column.
SHAPES = [(5, 7, 5, 3), (3, 1, 19, 3), (2, 19, 1, 3)]


pytestmark = pytest.mark.usefixtures("poisoned_memory", "small_blocks")


def assert_matches_reference(qkv: Tensor, pattern: Pattern, **options) -> None:
    oracle.assert_matches_reference(attention_flash, qkv, pattern, atol=1e-5, **options)


def test_unwritten_memory_is_poisoned():
    assert torch.empty(3, device=DEVICE).isnan().all()
    assert flash_launch.empty_rows(torch.zeros(1, 1, 2, 3, device=DEVICE)).isnan().all()


@every_rule
@pytest.mark.parametrize("shape", SHAPES)
def test_odd_grids(kind, wrap, shape):
    pattern = Pattern(kind, *shape, wrap)
    assert_matches_reference(inputs(pattern, heads=1), pattern)


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [24, 64])
def test_error_is_at_most_twice_that_of_masked_sdpa_in_the_same_dtype(kind, wrap, dtype, head_dim):
    pattern = Pattern(kind, 18, 4, 9, 5, wrap)
    qkv = inputs(pattern, heads=1, head_dim=head_dim, dtype=dtype)
    oracle.assert_as_exact_as_masked_sdpa(attention_flash, qkv, pattern)


@pytest.mark.parametrize("head_dim", [1, 16, 32, 80, 128, 256])
def test_head_dims(head_dim):
    pattern = Pattern("row", 17, 3, 6)
    assert_matches_reference(inputs(pattern, heads=1, head_dim=head_dim), pattern)


@every_rule
@pytest.mark.parametrize(("block_m", "block_n"), [(16, 64), (64, 16), (64, 64)])
def test_33x31_in_large_blocks_and_blocks_of_unequal_sides(kind, wrap, block_m, block_n):
    pattern = Pattern(kind, 35, *((33, 31) if block_m == block_n else (7, 9)), 5, wrap)
    with blocks(block_m, block_n):
        oracle.assert_as_exact_as_masked_sdpa(attention_flash, inputs(pattern, heads=1), pattern)


@every_rule
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_prefix_lengths_from_none_to_all(kind, wrap, dtype):
    pattern = Pattern(kind, 20, 3, 6, 3, wrap)
    prefix_lengths = torch.tensor([[0, 9], [7, 9], [16, 9], [20, 9]], dtype=dtype, device=DEVICE)[:, 0]
    assert_matches_reference(inputs(pattern, batch=4, heads=1), pattern, prefix_lengths=prefix_lengths)


@every_rule
@pytest.mark.parametrize("prefix", [None, 17])
def test_text_keys_gather_from_several_splits(kind, wrap, prefix):
    pattern = Pattern(kind, 20, 7, 9, 3, wrap)
    lengths = None if prefix is None else torch.tensor([prefix], device=DEVICE)
    with mock.patch.object(flash_launch, "LEAST_BLOCKS_A_SPLIT", 1):
        if (kind, prefix) != ("causal", None):  # which is all text
            assert flash_launch.text_splits(flash_launch.Layer.of(pattern, 0.25, lengths), SMALL.block_m) == 4
        assert_matches_reference(inputs(pattern, heads=1), pattern, prefix_lengths=lengths)


@pytest.mark.parametrize("wrap", patterns.CONV_WRAPS)
@pytest.mark.parametrize(("height", "width", "kernel"), [(9, 16, 3), (6, 22, 5), (6, 13, 11), (3, 30, 11)])
def test_windows_on_wide_grids(wrap, height, width, kernel):
    """Two-dimensional tiles with their halo; at 13 columns a halo of 11 + 4 - 1 would wrap onto itself."""
    pattern = Pattern("conv", 5, height, width, kernel, wrap)
    order = image_tiling(pattern, SMALL.block_m, SMALL.block_n).ORDER
    assert order == ("raster" if (width, kernel) == (13, 11) else "window")
    assert_matches_reference(inputs(pattern, heads=1), pattern)


@pytest.mark.parametrize(
    ("pattern", "block", "order", "tile_w"),
    [
        (Pattern("row", 256, 32, 32), 64, "raster", 0),
        (Pattern("row", 256, 128, 128), 64, "raster", 0),
        (Pattern("causal", 256, 32, 32), 64, "raster", 0),
        (Pattern("column", 256, 64, 64), 64, "column", 0),
        (Pattern("conv", 256, 32, 32), 64, "raster", 0),
        (Pattern("conv", 256, 64, 64), 64, "window", 16),
        (Pattern("conv", 256, 128, 128), 64, "window", 16),
        (Pattern("conv", 256, 128, 128), 128, "window", 32),
    ],
)
def test_order_of_tiles(pattern, block, order, tile_w):
    tiling = image_tiling(pattern, block, 64)
    assert (order, tile_w) == (tiling.ORDER, tiling.TILE_W)


@every_rule
def test_strides(kind, wrap):
    pattern = Pattern(kind, 5, 4, 5, 3, wrap)
    q, k, v = unpack(inputs(pattern, batch=2))
    scattered = q.transpose(-1, -2).contiguous().transpose(-1, -2)  # last stride is not 1
    doubled = torch.stack([k, k], dim=-1)[..., 0]
    shared = v[:1, :1].expand(2, 2, -1, -1)  # one head of values for all
    tensors = [x.detach().requires_grad_() for x in (scattered, doubled, shared)]
    found, expected = attention_flash(*tensors, pattern), attention_reference(*tensors, pattern)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    do = torch.randn(2, 2, 16, pattern.seq_len, device=DEVICE).transpose(-1, -2)
    gradients = [torch.autograd.grad(o, tensors, do) for o in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)
    one = torch.ones((), device=DEVICE)
    gradients = [torch.autograd.grad(attend(*tensors, pattern), tensors, one.expand_as(do))
                 for attend in (attention_flash, attention_reference)]  # fmt: skip
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_output_is_laid_out_for_merging_heads():
    pattern = Pattern("row", 5, 2, 3)
    o = attention_flash(*unpack(inputs(pattern, batch=2)), pattern)
    assert o.transpose(1, 2).flatten(2).data_ptr() == o.data_ptr()


@pytest.mark.parametrize("scale", [0.05, 3.0])
def test_scale(scale):
    pattern = Pattern("row", 5, 3, 5)
    assert_matches_reference(inputs(pattern, heads=1), pattern, scale=scale)


def test_scores_beyond_the_range_of_exp():
    pattern = Pattern("row", 5, 3, 5)
    qkv = inputs(pattern, heads=1) * 40
    found, expected = (attend(*unpack(qkv), pattern) for attend in (attention_flash, attention_reference))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


small_pattern_strategy = st.builds(
    lambda rule, text_len, height, width, kernel: Pattern(rule[0], text_len, height, width, kernel, rule[1]),
    st.sampled_from(oracle.ALL_RULES),
    text_len=st.integers(1, 40),
    height=st.integers(1, 6),
    width=st.integers(1, 24),
    kernel=st.sampled_from([1, 3, 5, 11]),
)


@given(small_pattern_strategy, st.integers(1, 2), st.data())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_random_shapes(pattern, batch, data):
    lengths = data.draw(st.none() | st.lists(st.integers(0, pattern.text_len), min_size=batch, max_size=batch))
    qkv = inputs(pattern, batch, heads=3 - batch, seed=data.draw(st.integers(0, 99)))
    prefix_lengths = None if lengths is None else torch.tensor(lengths, device=DEVICE)
    with blocks(*data.draw(st.sampled_from([(16, 16), (32, 16), (16, 32), (64, 64)]))):
        assert_matches_reference(qkv, pattern, prefix_lengths=prefix_lengths)


@every_rule
@pytest.mark.parametrize("position", [0, 4, 5, 22])
def test_no_output_before_a_changed_key_changes(kind, wrap, position):
    pattern = Pattern(kind, 5, 5, 7, 3, wrap)
    q, k, v = unpack(inputs(pattern, heads=1))
    before = attention_flash(q, k, v, pattern)
    k, v = k.clone(), v.clone()
    k[:, :, position] += 3
    v[:, :, position] -= 3
    changed = (attention_flash(q, k, v, pattern) != before).any(dim=-1).any(dim=1)[0]  # (T,)
    assert torch.equal(changed, dense_mask(pattern, DEVICE)[:, position])


def row_without_the_token_above(q, k, width: int, half: int):
    return (k <= q) & (q - k < width)


def conv_without_the_last_column(q, k, width: int, half: int):
    offset = q - k
    rows_above = (offset >= width - half) & (offset <= half * width + half) & ((offset + half) % width < 2 * half)
    return (offset >= 0) & ((offset <= half) | rows_above)


@pytest.mark.parametrize(
    ("kind", "wrap", "allows"),
    [("row", None, row_without_the_token_above), ("conv", "linear", conv_without_the_last_column)],
)
def test_a_rule_that_is_off_by_one_is_caught(kind, wrap, allows):
    pattern = Pattern(kind, 5, 5, 7, 3)
    qkv = inputs(pattern, heads=1)
    expected = output_and_gradient(attention_reference, qkv, pattern)
    wrong = patterns.RULES[kind, wrap]._replace(allows=allows)
    with mock.patch.dict(patterns.RULES, {(kind, wrap): wrong}):
        found = output_and_gradient(attention_flash, qkv, pattern)
    assert all((x - y).abs().max() > 1e-3 for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("kernel", ["forward", "query_gradient", "key_gradient"])
@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        (Pattern("row", 5, 8, 7), {"REACH": 6}),
        (Pattern("column", 5, 8, 7), {"ORDER": "raster", "REACH": 32}),  # of 42
        (Pattern("conv", 5, 8, 16, 3, "modulo"), {"WRAP": "clamped"}),  # windows that do not go round
    ],
)
def test_a_span_that_is_too_short_is_caught(kernel, pattern, fault):
    """Of one kernel alone, so that no other hides it."""
    qkv = inputs(pattern, heads=1)
    expected = output_and_gradient(attention_reference, qkv, pattern)
    right = image_tiling(pattern, 16, 16)
    short = right._replace(**fault)
    assert pattern.kind != "conv" or right.ORDER == "window"
    correct = getattr(flash_launch, f"{kernel}_call")

    def with_short_span(*arguments):
        call = correct(*arguments)
        return call._replace(arguments=call.arguments | {"IMAGE": short})

    with mock.patch.object(flash_launch, f"{kernel}_call", with_short_span):
        found = output_and_gradient(attention_flash, qkv, pattern)
    assert max((x - y).abs().max() for x, y in zip(found, expected, strict=True)) > 1e-3


def test_a_rule_without_a_reach():
    with mock.patch.dict(patterns.RULES, {("row", None): oracle.OTHER_RULE}):
        assert_matches_reference(inputs(Pattern("row", 5, 5, 7), heads=1), Pattern("row", 5, 5, 7))
