"""Competitors compute what they are held against: FlexAttention's masks are ours, also in column order."""

import pytest
import torch

from benchmarks.contestants import (
    FLEX_BLOCKS,
    MAX_MASKED,
    column_order_mask_mod,
    dense_backends,
    flex_contestants,
    kernel_options,
    line_up,
    mask_mod,
    swap_image_axes,
)
from benchmarks.roof import in_order
from kernels.patterns import CONV_WRAPS, KINDS, Pattern, dense_mask
from kernels.reference import attention_reference

RULES = [(kind, "linear") for kind in KINDS if kind != "conv"] + [("conv", wrap) for wrap in CONV_WRAPS]
every_rule = pytest.mark.parametrize(("kind", "wrap"), RULES)
COLUMN = Pattern("column", 10, 6, 9)


def whole(allows, length):
    positions = torch.arange(length)
    return allows(torch.tensor(0), torch.tensor(0), positions[:, None], positions[None, :])


def qkv(pattern):
    return [torch.randn(2, 3, pattern.seq_len, 16) for _ in range(3)]


@every_rule
def test_flex_gets_the_same_rule(kind, wrap):
    pattern = Pattern(kind, 10, 6, 9, 5, wrap)
    assert torch.equal(whole(mask_mod(pattern), pattern.seq_len), dense_mask(pattern))


@pytest.mark.parametrize("shape", [(10, 6, 9), (1, 7, 1), (4, 1, 8), (3, 5, 5)])
def test_the_rule_in_column_order_is_the_column_rule(shape):
    pattern = Pattern("column", *shape)
    order = in_order(pattern, "column").long()
    assert torch.equal(
        whole(column_order_mask_mod(pattern), pattern.seq_len), dense_mask(pattern)[order[:, None], order[None, :]]
    )


def test_tokens_go_into_column_order_and_back():
    x = torch.randn(2, 3, COLUMN.seq_len, 4)
    swapped = swap_image_axes(x, COLUMN.text_len, COLUMN.height)
    assert torch.equal(swapped, x[:, :, in_order(COLUMN, "column").long()])
    assert torch.equal(swap_image_axes(swapped, COLUMN.text_len, COLUMN.width), x)


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")
@every_rule
def test_flex_computes_the_attention_that_it_is_held_against(kind, wrap):
    pattern = Pattern(kind, 100, 6, 9, 5, wrap)  # three blocks of 64
    q, k, v = qkv(pattern)
    contestants = flex_contestants(pattern, "cpu", compiler=None)
    names = {name for name, _, _ in contestants}
    orders = ("flex", "permuted") if kind == "column" else ("flex",)
    assert names == {f"{order}/{block}" for order in orders for block in FLEX_BLOCKS}
    for _, computed, make in contestants:
        assert computed == pattern
        torch.testing.assert_close(make()(q, k, v), attention_reference(q, k, v, pattern))


@pytest.mark.parametrize("kind", ["conv", "column"])
def test_flex_and_its_permutation_are_compiled_whole(kind):
    """By a backend that compiles nothing; a graph break is an error there too."""
    pattern = Pattern(kind, 10, 6, 9, 5)
    q, k, v = qkv(pattern)
    torch.compiler.reset()
    *_, (_, _, make) = flex_contestants(pattern, "cpu", compiler="eager")
    torch.testing.assert_close(make()(q, k, v), attention_reference(q, k, v, pattern))


def test_flex_tiles_divide_its_blocks():
    assert set(kernel_options(64).values()) == {64}
    assert kernel_options(128) == {}


def test_backends_are_what_they_are_called():
    """Of the two, a CPU has flash only: the other says so, and does not run something else."""
    causal = Pattern("causal", 10, 6, 9)
    q, k, v = qkv(causal)
    flash, cudnn = dense_backends(causal)
    assert (flash.name, cudnn.name) == ("causal/flash", "causal/cudnn")
    torch.testing.assert_close(flash.make()(q, k, v), attention_reference(q, k, v, causal))
    with pytest.raises(RuntimeError):
        cudnn.make()(q, k, v)


def test_contestants_of_a_cpu_compute_what_they_say():
    pattern = Pattern("conv", 20, 15, 16, 5)
    q, k, v = qkv(pattern)
    contestants = line_up(pattern, "cpu")
    assert [name for name, _, _ in contestants] == ["ours", "masked", "causal"]
    for _, computed, make in contestants:
        torch.testing.assert_close(make()(q, k, v), attention_reference(q, k, v, computed), atol=1e-5, rtol=1e-5)


def test_contestants_of_a_gpu():
    names = [name for name, _, _ in line_up(COLUMN, "cuda")]
    flex = [f"{order}/{block}" for order in ("flex", "permuted") for block in FLEX_BLOCKS]
    assert names == ["ours", "masked", "causal/flash", "causal/cudnn", *flex]
    ours = line_up(COLUMN, "cuda")[0].make()
    assert ours.keywords == {"pattern": COLUMN, "impl": "triton"}


def test_no_mask_is_made_for_long_sequences():
    pattern = Pattern("row", 256, 128, 128)
    (masked,) = (each for each in line_up(pattern, "cpu") if each.name == "masked")
    with pytest.raises(ValueError, match=f"T is 16640, masks are made up to {MAX_MASKED}"):
        masked.make()
