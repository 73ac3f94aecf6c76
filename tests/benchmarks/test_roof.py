"""Pairs, blocks, FLOPs and bytes against masks counted in full, and against the counts known of the paper's masks."""

import itertools

import pytest

from benchmarks.ceilings import Ceilings
from benchmarks.roof import (
    BLOCK,
    ORDERS,
    Counts,
    count,
    fewest_blocks,
    in_order,
    matrix_flops,
    moved_bytes,
    roof_ms,
)
from kernels.patterns import CONV_WRAPS, Pattern, dense_mask


def counted_in_full(pattern: Pattern, order: str) -> Counts:
    positions = in_order(pattern, order).long()
    mask = dense_mask(pattern)[positions][:, positions]
    blocks = gathered = 0
    for queries in mask.split(BLOCK):
        blocks += sum(bool(block.any()) for block in queries.split(BLOCK, dim=1))
        gathered += -(-int(queries.any(dim=0).sum()) // BLOCK)
    return Counts(int(mask.sum()), blocks, gathered)


@pytest.mark.parametrize(
    ("kind", "wrap"),
    [("causal", "linear"), ("row", "linear"), ("column", "linear"), *(("conv", w) for w in CONV_WRAPS)],
)
@pytest.mark.parametrize("shape", [(64, 16, 16), (70, 9, 13), (3, 20, 31), (5, 1, 40), (5, 40, 1)])
def test_counts_are_those_of_the_whole_mask(kind, wrap, shape):
    pattern = Pattern(kind, *shape, 5, wrap)
    for order in ("raster", "column", "4x16", "8x8"):
        assert count(pattern, order) == counted_in_full(pattern, order)


@pytest.mark.parametrize("order", ["raster", "column", "4x16", "8x8"])
def test_an_order_names_every_position_once(order):
    pattern = Pattern("conv", 5, 9, 21)
    assert in_order(pattern, order).sort().values.tolist() == list(range(pattern.seq_len))


def test_tiles_are_as_large_as_they_say():
    pattern = Pattern("conv", 1, 16, 32)
    image = in_order(pattern, "4x16")[1:] - 1
    y, x = image[:64] // 32, image[:64] % 32
    assert (y.unique().tolist(), x.unique().tolist()) == (list(range(4)), list(range(16)))


@pytest.mark.parametrize(
    ("grid", "kind", "order", "pairs", "blocks"),
    [
        (32, "causal", "raster", 819_840, 210),
        (32, "row", "raster", 328_304, 105),
        (32, "column", "column", 311_936, 90),
        (32, "column", "raster", 311_936, 210),
        (32, "conv", "raster", 352_209, 132),
        (64, "causal", "raster", 9_472_128, 2_346),
        (64, "row", "raster", 1_345_632, 393),
        (64, "column", "column", 1_214_592, 330),
        (64, "conv", "raster", 1_320_753, 693),
        (128, "causal", "raster", 138_453_120, 33_930),
        (128, "row", "raster", 6_332_480, 1_799),
        (128, "column", "column", 5_283_968, 1_418),
        (128, "conv", "raster", 5_205_489, 4_040),
    ],
)
def test_counts_of_the_papers_masks(grid, kind, order, pairs, blocks):
    assert count(Pattern(kind, 256, grid, grid), order)[:2] == (pairs, blocks)


def test_only_conv_gains_from_gathered_keys_and_other_orders():
    for grid, kind in itertools.product((32, 64, 128), ("row", "column")):
        counts = count(Pattern(kind, 256, grid, grid), *ORDERS[kind])
        assert counts.gathered == counts.blocks == fewest_blocks(Pattern(kind, 256, grid, grid))
    # Tiles of 4x16 or 8x8 at 64x64: 8 blocks, those at the edges fewer; at 32x32 rows are as good.
    conv = Pattern("conv", 256, 64, 64)
    assert fewest_blocks(conv) == count(conv, "8x8").gathered < 0.75 * count(conv, "raster").blocks
    assert fewest_blocks(Pattern("conv", 256, 32, 32)) == 132


def test_flops_and_bytes_by_hand():
    assert [matrix_flops(10, 64, pass_) for pass_ in ("fwd", "bwd", "fwd+bwd")] == [2560, 6400, 8960]
    elements = 2 * 3 * 100 * 64
    assert moved_bytes((2, 3, 100, 64), 2, "fwd") == 4 * elements * 2 + 600 * 4
    assert moved_bytes((2, 3, 100, 64), 2, "bwd") == 8 * elements * 2 + 600 * 4
    assert moved_bytes((2, 3, 100, 64), 2, "fwd+bwd") == 12 * elements * 2 + 1200 * 4


def test_the_roof_is_the_longer_of_two_times():
    """A row layer of the paper's, bfloat16, D=64: 105 blocks are 110 MFLOP, q, k, v, o and lse 660 kB a head."""
    pattern, shape = Pattern("row", 256, 32, 32), (1, 1, 1280, 64)
    bound_by_memory = roof_ms(pattern, shape, 2, "fwd", Ceilings(flops=790e12, bytes=4.3e12))
    assert bound_by_memory == pytest.approx(660_480 / 4.3e12 * 1e3)
    bound_by_products = roof_ms(pattern, shape, 2, "fwd", Ceilings(flops=790e12, bytes=4.3e13))
    assert bound_by_products == pytest.approx(105 * 64**2 * 4 * 64 / 790e12 * 1e3)
    both = roof_ms(pattern, shape, 2, "fwd+bwd", Ceilings(flops=790e12, bytes=4.3e12))
    assert both == pytest.approx(bound_by_memory + roof_ms(pattern, shape, 2, "bwd", Ceilings(790e12, 4.3e12)))
