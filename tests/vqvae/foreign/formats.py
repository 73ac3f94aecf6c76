"""Weights by the names and shapes of each format, and what the networks there make of them.

Written down from the descriptions of the formats, with functions of torch only: nothing here knows our modules.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def random_weights(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Of a size at which every layer still says something; norms and biases away from 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            tensors[name] = values * math.sqrt(2 / math.prod(shape[1:]))
        else:
            tensors[name] = 0.1 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return tensors


def meta_weights(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


# ---- VQGAN, as taming-transformers and LlamaGen name it


class Sizes(NamedTuple):
    """`multipliers` from the highest resolution to the lowest, where the attention is."""

    ch: int
    multipliers: tuple[int, ...]
    blocks: int
    z_channels: int
    codebook_size: int
    codebook_dim: int


TINY = Sizes(ch=32, multipliers=(1, 2, 2), blocks=2, z_channels=12, codebook_size=20, codebook_dim=12)


def _conv(name: str, n_in: int, n_out: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (n_out, n_in, kernel, kernel), f"{name}.bias": (n_out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _block(name: str, n_in: int, n_out: int) -> Shapes:
    shapes = _norm(f"{name}.norm1", n_in) | _conv(f"{name}.conv1", n_in, n_out, 3)
    shapes |= _norm(f"{name}.norm2", n_out) | _conv(f"{name}.conv2", n_out, n_out, 3)
    return shapes | (_conv(f"{name}.nin_shortcut", n_in, n_out, 1) if n_in != n_out else {})


def _attention(name: str, width: int) -> Shapes:
    shapes = _norm(f"{name}.norm", width)
    for layer in ("q", "k", "v", "proj_out"):
        shapes |= _conv(f"{name}.{layer}", width, width, 1)
    return shapes


class Names(NamedTuple):
    """Where a format has its parts: of level i (0: the highest resolution of n) and block j."""

    block: str
    attention: str
    step: str
    middle: tuple[str, str, str]
    from_lowest: bool = False


TAMING = {
    "encoder": Names(
        "down.{i}.block.{j}", "down.{i}.attn.{j}", "down.{i}.downsample.conv", ("block_1", "attn_1", "block_2")
    ),
    "decoder": Names("up.{i}.block.{j}", "up.{i}.attn.{j}", "up.{i}.upsample.conv", ("block_1", "attn_1", "block_2")),
}
LLAMAGEN = {
    "encoder": Names(
        "conv_blocks.{i}.res.{j}", "conv_blocks.{i}.attn.{j}", "conv_blocks.{i}.downsample.conv", ("0", "1", "2")
    ),
    "decoder": Names(
        "conv_blocks.{i}.res.{j}", "conv_blocks.{i}.attn.{j}", "conv_blocks.{i}.upsample.conv", ("0", "1", "2"), True
    ),
}


class Layer(NamedTuple):
    """A layer in its order: its kind, its name, its widths."""

    kind: str
    name: str
    n_in: int
    n_out: int


def layers(part: str, format: dict[str, Names], sizes: Sizes) -> Iterator[Layer]:
    """Of the encoder or the decoder, one after the other."""
    names, n = format[part], len(sizes.multipliers)
    widths = [sizes.ch * multiplier for multiplier in sizes.multipliers]
    encoder = part == "encoder"
    width = sizes.ch if encoder else widths[-1]
    yield Layer("conv", f"{part}.conv_in", 3 if encoder else sizes.z_channels, width)
    if not encoder:
        yield from _middle(part, names, width)
    for level in range(n) if encoder else reversed(range(n)):
        i = n - 1 - level if names.from_lowest else level
        for j in range(sizes.blocks if encoder else sizes.blocks + 1):
            yield Layer("block", f"{part}.{names.block.format(i=i, j=j)}", width, widths[level])
            width = widths[level]
            if level == n - 1:
                yield Layer("attention", f"{part}.{names.attention.format(i=i, j=j)}", width, width)
        if level != (n - 1 if encoder else 0):
            yield Layer("down" if encoder else "up", f"{part}.{names.step.format(i=i)}", width, width)
    if encoder:
        yield from _middle(part, names, width)
    yield Layer("norm", f"{part}.norm_out", width, width)
    yield Layer("conv", f"{part}.conv_out", width, sizes.z_channels if encoder else 3)


def _middle(part: str, names: Names, width: int) -> Iterator[Layer]:
    for kind, name in zip(("block", "attention", "block"), names.middle, strict=True):
        yield Layer(kind, f"{part}.mid.{name}", width, width)


def vqgan_shapes(format: dict[str, Names], sizes: Sizes, gumbel: bool = False) -> Shapes:
    shapes: Shapes = {}
    for layer in (*layers("encoder", format, sizes), *layers("decoder", format, sizes)):
        kind, name, n_in, n_out = layer
        match kind:
            case "block":
                shapes |= _block(name, n_in, n_out)
            case "attention":
                shapes |= _attention(name, n_in)
            case "norm":
                shapes |= _norm(name, n_in)
            case _:
                shapes |= _conv(name, n_in, n_out, 3)
    shapes |= _conv("quant_conv", sizes.z_channels, sizes.codebook_dim, 1)
    shapes |= _conv("post_quant_conv", sizes.codebook_dim, sizes.z_channels, 1)
    if gumbel:
        shapes |= _conv("quantize.proj", sizes.codebook_dim, sizes.codebook_size, 1)
        return shapes | {"quantize.embed.weight": (sizes.codebook_size, sizes.codebook_dim)}
    return shapes | {"quantize.embedding.weight": (sizes.codebook_size, sizes.codebook_dim)}


def run(part: str, format: dict[str, Names], sizes: Sizes, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """What the encoder makes of pixels in [-1, 1], or the decoder of what post_quant_conv gives."""

    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], **options)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-6)

    def swish(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    def block(name: str, x: Tensor) -> Tensor:
        h = conv(f"{name}.conv1", swish(norm(f"{name}.norm1", x)), padding=1)
        h = conv(f"{name}.conv2", swish(norm(f"{name}.norm2", h)), padding=1)
        return h + (conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in tensors else x)

    def attention(name: str, x: Tensor) -> Tensor:
        q, k, v = (conv(f"{name}.{layer}", norm(f"{name}.norm", x)).flatten(2) for layer in "qkv")  # (B, C, H W)
        weights = (torch.einsum("bcq,bck->bqk", q, k) * q.shape[1] ** -0.5).softmax(dim=2)
        return x + conv(f"{name}.proj_out", torch.einsum("bqk,bck->bcq", weights, v).reshape(x.shape))

    for kind, name, _, _ in layers(part, format, sizes):
        match kind:
            case "conv":
                x = conv(name, x, padding=1)
            case "block":
                x = block(name, x)
            case "attention":
                x = attention(name, x)
            case "norm":
                x = swish(norm(name, x))
            case "down":
                x = conv(name, F.pad(x, (0, 1, 0, 1)), stride=2)
            case "up":
                x = conv(name, x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), padding=1)
    return x


# ---- OpenAI's dVAE


class DalleSizes(NamedTuple):
    n_hid: int
    n_blk_per_group: int
    n_init: int
    codebook_size: int


TINY_DALLE = DalleSizes(n_hid=8, n_blk_per_group=2, n_init=6, codebook_size=24)
MULTIPLIERS = (1, 2, 4, 8)


def dalle_shapes(part: str, sizes: DalleSizes) -> Shapes:
    encoder = part == "encoder"
    widths = [sizes.n_hid * multiplier for multiplier in (MULTIPLIERS if encoder else MULTIPLIERS[::-1])]
    before, kernels = (sizes.n_hid, (3, 3, 3, 1)) if encoder else (sizes.n_init, (1, 3, 3, 3))
    shapes: Shapes = {"blocks.input.w": (before, 3, 7, 7) if encoder else (before, sizes.codebook_size, 1, 1)}
    for g, width in enumerate(widths, start=1):
        for b in range(1, sizes.n_blk_per_group + 1):
            name, n_hid = f"blocks.group_{g}.block_{b}", width // 4
            if before != width:
                shapes[f"{name}.id_path.w"] = (width, before, 1, 1)
            ends = [before, n_hid, n_hid, n_hid, width]
            for i, kernel in enumerate(kernels, start=1):
                shapes[f"{name}.res_path.conv_{i}.w"] = (ends[i], ends[i - 1], kernel, kernel)
            before = width
    shapes["blocks.output.conv.w"] = (sizes.codebook_size if encoder else 6, before, 1, 1)
    return shapes | {f"{name[:-1]}b": shape[:1] for name, shape in shapes.items()}


def run_dalle(part: str, sizes: DalleSizes, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """What the encoder makes of mapped pixels, or the decoder of codes as one-hot vectors."""

    def conv(name: str, x: Tensor) -> Tensor:
        weight = tensors[f"{name}.w"]
        return F.conv2d(x, weight, tensors[f"{name}.b"], padding=weight.shape[-1] // 2)

    x = conv("blocks.input", x)
    for g in range(1, 5):
        for b in range(1, sizes.n_blk_per_group + 1):
            name, h = f"blocks.group_{g}.block_{b}", x
            for i in range(1, 5):
                h = conv(f"{name}.res_path.conv_{i}", F.relu(h))
            x = conv(f"{name}.id_path", x) if f"{name}.id_path.w" in tensors else x
            x = x + h / (4 * sizes.n_blk_per_group) ** 2
        if g < 4:
            x = F.max_pool2d(x, 2) if part == "encoder" else F.interpolate(x, scale_factor=2, mode="nearest")
    return conv("blocks.output.conv", F.relu(x))


def one_hot(indices: Tensor, codebook_size: int) -> Tensor:
    return F.one_hot(indices, codebook_size).permute(0, 3, 1, 2).float()


def random_images(side: int, n: int = 2) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1))
