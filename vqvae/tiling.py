"""Pictures larger than memory: encoded and decoded tile by tile, any multiple of the downsample factor.

A tile is worked on with a margin around it. Of the paper's network, whose receptive field has an end, the result is
that of the whole picture at once. VQGAN's, with normalisation and attention over all it is given, sees each tile as a
picture of its own; there tiles are blended where their margins overlap.

Legend: H W pixels, h w token grid, f downsample factor.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vqvae.config import DiscreteVAEConfig
from vqvae.indices import check_indices
from vqvae.model import DiscreteVAE


class _Span(NamedTuple):
    """Along one side, in tokens: what a tile takes in, and of that what it gives."""

    first: int
    end: int
    begin_given: int
    end_given: int


def margin(config: DiscreteVAEConfig) -> int:
    """Tokens around a tile that its own depend on, in the paper's network; of VQGAN's, which has no such end, 16.

    The encoder looks further than the decoder: on each side (k - 1) / 2 pixels of its resolution for every convolution.
    """
    if config.network != "dalle":
        return 16
    pixels = 3 + sum(3 * config.n_blk_per_group * 2**g for g in range(config.n_groups))
    return -(-pixels // config.downsample_factor)


@torch.no_grad()
def encode_tiled(model: DiscreteVAE, picture: Tensor, tile: int = 64) -> Tensor:
    """One picture -> its indices, as `DiscreteVAE.encode` gives them, with the memory of a tile.

    Args:
        model: in evaluation mode, on the device that is to do the work.
        picture: (3, H, W), floats in [0, 1] or uint8, on any device; of numpy.memmap by torch.from_numpy, it need not
            fit into memory. H and W are multiples of f.
        tile: side of what is encoded at a time, in tokens, its margins not counted.

    Returns:
        (h, w) int64, on the CPU.

    Raises:
        ValueError: a picture of another kind, or a tile below 1.
    """
    factor = model.config.downsample_factor
    _check_tile(tile)
    if picture.ndim != 3 or picture.shape[0] != 3 or any(side < factor or side % factor for side in picture.shape[1:]):
        raise ValueError(
            f"the picture has shape {tuple(picture.shape)}, expected (3, H, W) with H and W multiples of {factor}"
        )
    if not (picture.is_floating_point() or picture.dtype == torch.uint8):
        raise ValueError(f"the picture has dtype {picture.dtype}, expected floats in [0, 1] or uint8")
    weight, around = model.encoder.output_conv.weight, margin(model.config)
    height, width = (side // factor for side in picture.shape[1:])
    indices = torch.empty(height, width, dtype=torch.int64)
    for y in _spans(height, tile, around):
        for x in _spans(width, tile, around):
            part = picture[:, factor * y.first : factor * y.end, factor * x.first : factor * x.end].to(weight.device)
            part = part / 255 if part.dtype == torch.uint8 else part
            found = model.encode(part[None].to(weight.dtype))[0]
            indices[y.begin_given : y.end_given, x.begin_given : x.end_given] = _given(found, y, x)
    return indices


@torch.no_grad()
def decode_tiled(model: DiscreteVAE, indices: Tensor, tile: int = 64, out: Tensor | None = None) -> Tensor:
    """Indices of one picture -> the picture, as `DiscreteVAE.decode` gives it, with the memory of a row of tiles.

    Args:
        model: in evaluation mode, on the device that is to do the work.
        indices: (h, w) int64.
        tile: side of what is decoded at a time, in tokens, its margins not counted.
        out: (3, H, W) uint8 or float32 to be written to, of a numpy.memmap perhaps; None: a new one, uint8.

    Returns:
        `out`; uint8 values are rounded to the nearest of 256.

    Raises:
        ValueError: indices or `out` of another kind, or a tile below 1.
    """
    _check_tile(tile)
    if indices.ndim != 2:
        raise ValueError(f"indices have shape {tuple(indices.shape)}, expected (h, w): one picture")
    check_indices(indices[None], model.codebook_size)  # all of them, before anything is written
    factor = model.config.downsample_factor
    shape = (3, factor * indices.shape[0], factor * indices.shape[1])
    if out is None:
        out = torch.empty(shape, dtype=torch.uint8)
    if out.shape != shape or out.dtype not in (torch.uint8, torch.float32):
        raise ValueError(f"out is {out.dtype} {tuple(out.shape)}, expected uint8 or float32 {shape}")
    device, around = next(model.parameters()).device, margin(model.config)
    blended = 0 if model.config.network == "dalle" else around // 2
    for y in _spans(indices.shape[0], tile, around, blended):
        top, bottom = factor * y.begin_given, factor * y.end_given
        sums, weights = torch.zeros(3, bottom - top, shape[2]), torch.zeros(bottom - top, shape[2])
        for x in _spans(indices.shape[1], tile, around, blended):
            part = indices[y.first : y.end, x.first : x.end].to(device)
            image = model.decode(part[None])[0].float().cpu()
            given = _given(image, y, x, factor)
            weight = _ramp(x, indices.shape[1], blended, factor)[None, :]
            columns = slice(factor * x.begin_given, factor * x.end_given)
            sums[:, :, columns] += weight * given
            weights[:, columns] += weight
        band = sums / weights
        _write(out, band, top, _ramp(y, indices.shape[0], blended, factor), factor * blended, y.begin_given > 0)
    return out


def _write(out: Tensor, band: Tensor, top: int, ramp: Tensor, blended: int, over: bool) -> None:
    """Puts a band of rows into `out`; its first rows, where they overlap the last of the one above, between both."""
    rows = slice(top, top + band.shape[1])
    if over and blended:
        share = ramp[: 2 * blended, None]
        above = out[:, top : top + 2 * blended].float()
        above = above / 255 if out.dtype == torch.uint8 else above
        band[:, : 2 * blended] = share * band[:, : 2 * blended] + (1 - share) * above
    out[:, rows] = (band * 255).round().to(torch.uint8) if out.dtype == torch.uint8 else band


def _spans(length: int, tile: int, around: int, blended: int = 0) -> Iterator[_Span]:
    """Tiles along a side; each gives its own tokens and, where they are to be blended, so many of its margins."""
    for start in range(0, length, tile):
        end = min(start + tile, length)
        yield _Span(
            max(0, start - around), min(length, end + around), max(0, start - blended), min(length, end + blended)
        )


def _given(found: Tensor, y: _Span, x: _Span, factor: int = 1) -> Tensor:
    """Of what a tile gave, (..., rows, columns) with its margins, what is kept."""
    rows, columns = (
        slice(factor * (side.begin_given - side.first), factor * (side.end_given - side.first)) for side in (y, x)
    )
    return found[..., rows, columns].to("cpu")


def _ramp(span: _Span, length: int, blended: int, factor: int) -> Tensor:
    """Weights of what a tile gives along a side: rising over the overlap with its neighbour, 1 inside."""
    n = factor * (span.end_given - span.begin_given)
    weights = torch.ones(n)
    rise = (torch.arange(2 * blended * factor) + 0.5) / max(2 * blended * factor, 1)
    rise = rise[:n]
    if span.begin_given > 0:
        weights[: len(rise)] = torch.minimum(weights[: len(rise)], rise)
    if span.end_given < length:
        weights[n - len(rise) :] = torch.minimum(weights[n - len(rise) :], rise.flip(0))
    return weights


def _check_tile(tile: int) -> None:
    if tile < 1:
        raise ValueError(f"tile is {tile}, expected at least 1")
