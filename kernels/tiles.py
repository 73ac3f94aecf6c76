"""Where a tile of queries lies and which keys it can see: arithmetic on positions, run inside the Triton kernels.

The image is cut into tiles of `block` positions in one of three orders, so that what a tile sees is a short span:

    raster    positions one after the other; the span begins REACH before them (row, causal, conv on narrow grids)
    column    the same down the columns, by strides: the i-th is in row i % HEIGHT of column i // HEIGHT
    window    block / TILE_W grid rows of TILE_W columns; the span is the tile with its halo (conv on wide grids)

A span is a range of integers, its enumeration; `span_positions` turns them into raster positions, each of which comes
up at most once. It may hold keys that no query of the tile sees: the pattern's rule decides. Turned round
(TRANSPOSED), the tile is one of keys and the span holds the queries that may see it.

All positions here are raster positions in the image. Text is one more image in raster order, under the causal rule.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from kernels.patterns import Pattern

TILE_WIDTHS = (32, 16, 8, 4)  # of windows, the widest first: wider rows are longer runs in memory


class Tiling(NamedTuple):
    """How the kernels cut one image into tiles; a compile-time argument of theirs."""

    ORDER: str
    HEIGHT: int
    WIDTH: int
    HALF: int
    REACH: int
    """Positions that a span in raster order begins before its tile, or goes on after it where TRANSPOSED."""
    WRAP: str
    TILE_W: int
    DENSE: bool
    """Whether queries see all that lies before their tile; the span then begins with the tile."""

    def count(self, length: int, block: int) -> int:
        """The number of tiles of `block` positions."""
        if self.ORDER == "window":
            return triton.cdiv(self.HEIGHT, block // self.TILE_W) * triton.cdiv(self.WIDTH, self.TILE_W)
        return triton.cdiv(length, block)


CAUSAL = Tiling(ORDER="raster", HEIGHT=1, WIDTH=1, HALF=0, REACH=0, WRAP="linear", TILE_W=0, DENSE=True)


def image_tiling(pattern: Pattern, block: int, other: int) -> Tiling:
    """The order in which tiles of `block` positions see the fewest blocks of `other`."""
    if pattern.kind == "causal":
        return CAUSAL
    reach = pattern.image_len - 1 if pattern.reach is None else pattern.reach
    sizes = {"HEIGHT": pattern.height, "WIDTH": pattern.width, "HALF": pattern.half, "WRAP": pattern.conv_wrap}
    if pattern.kind == "column":
        return CAUSAL._replace(ORDER="column", DENSE=False, **sizes)
    raster = CAUSAL._replace(REACH=reach, DENSE=False, **sizes)
    if pattern.kind != "conv":
        return raster
    blocks = {raster: triton.cdiv(min(reach, pattern.image_len) + block, other)}
    for tile_w in TILE_WIDTHS:
        halo_w = tile_w + 2 * pattern.half
        # A halo wider than the grid would name some positions twice.
        if tile_w <= block and halo_w <= pattern.width:
            halo_h = min(block // tile_w + pattern.half, pattern.height)
            blocks[raster._replace(ORDER="window", TILE_W=tile_w)] = triton.cdiv(halo_h * halo_w, other)
    return min(blocks, key=blocks.__getitem__)  # of equals the first


@triton.jit
def tile_positions(tile, length, TILING: tl.constexpr, BLOCK: tl.constexpr):
    """Raster positions (BLOCK,) of a tile, and which of them lie in the image."""
    offs = tl.arange(0, BLOCK)
    if TILING.ORDER == "window":
        across: tl.constexpr = (TILING.WIDTH + TILING.TILE_W - 1) // TILING.TILE_W
        y = tile // across * (BLOCK // TILING.TILE_W) + offs // TILING.TILE_W
        x = tile % across * TILING.TILE_W + offs % TILING.TILE_W
        positions = y * TILING.WIDTH + x
        valid = (y < TILING.HEIGHT) & (x < TILING.WIDTH)
    elif TILING.ORDER == "column":
        i = tile * BLOCK + offs
        positions = i % TILING.HEIGHT * TILING.WIDTH + i // TILING.HEIGHT
        valid = i < length
    else:
        positions = tile * BLOCK + offs
        valid = positions < length
    return positions, valid


@triton.jit
def span(tile, length, TILING: tl.constexpr, BLOCK: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The range [first, end) that enumerates the keys which a tile of queries may see; TRANSPOSED: queries, keys."""
    if TILING.ORDER == "window":
        across: tl.constexpr = (TILING.WIDTH + TILING.TILE_W - 1) // TILING.TILE_W
        rows: tl.constexpr = BLOCK // TILING.TILE_W
        halo_w: tl.constexpr = TILING.TILE_W + 2 * TILING.HALF
        top = tile // across * rows
        # Rows -1 and HEIGHT take part, as columns beyond the grid's sides may lie in the row below or above.
        if TRANSPOSED:
            bottom = tl.minimum(top + rows + TILING.HALF, TILING.HEIGHT + 1)
        else:
            bottom = tl.minimum(top + rows, TILING.HEIGHT)
            top = tl.maximum(top - TILING.HALF, -1)
        first = (top + 1) * halo_w
        end = (bottom + 1) * halo_w
    elif TILING.ORDER == "column":
        first = tile * BLOCK
        end = first + BLOCK
        if TRANSPOSED:
            end = (end + TILING.HEIGHT - 1) // TILING.HEIGHT * TILING.HEIGHT  # to the bottom of the last key's column
        else:
            first = first // TILING.HEIGHT * TILING.HEIGHT  # from the top of the first query's column
        end = tl.minimum(end, length)
    else:
        first = tile * BLOCK
        end = first + BLOCK
        if TRANSPOSED:
            end += TILING.REACH
        else:
            first = tl.maximum(first - TILING.REACH, 0)
        end = tl.minimum(end, length)
    return first, end


@triton.jit
def span_positions(i, end, tile, length, TILING: tl.constexpr):
    """Raster positions of the numbers i of a span that goes to `end`, and which of them are real."""
    valid = i < end
    if TILING.ORDER == "window":
        across: tl.constexpr = (TILING.WIDTH + TILING.TILE_W - 1) // TILING.TILE_W
        halo_w: tl.constexpr = TILING.TILE_W + 2 * TILING.HALF
        y = i // halo_w - 1
        x = i % halo_w + (tile % across * TILING.TILE_W - TILING.HALF)
        if TILING.WRAP == "clamped":
            valid &= (x >= 0) & (x < TILING.WIDTH)
        if TILING.WRAP == "modulo":
            x = (x + TILING.WIDTH) % TILING.WIDTH
        positions = y * TILING.WIDTH + x
        valid &= (positions >= 0) & (positions < length)
    elif TILING.ORDER == "column":
        positions = i % TILING.HEIGHT * TILING.WIDTH + i // TILING.HEIGHT
    else:
        positions = i
    return positions, valid
