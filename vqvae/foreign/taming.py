"""Checkpoints of taming-transformers: VQGAN and its variant with a Gumbel quantizer (https://arxiv.org/abs/2012.09841).

The network is conv_encoder.py and conv_decoder.py under other names. Of the Gumbel variant, each pair of linear maps
that follow one another is one of ours: quant_conv and proj give the logits, embed and post_quant_conv the embedding.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from vqvae.config import DiscreteVAEConfig
from vqvae.foreign.weights import Converted, Weights, numbers_after

NAME = "a VQGAN of taming-transformers"
FILES = 1
EXPECTED = "a VQGAN of taming-transformers (encoder.down.0, quantize.embedding or quantize.proj), with its yaml or not"
DROPPED = ("loss.",)  # the discriminator and the network of the perceptual loss

STAGES = {
    r"encoder\.conv_in": "encoder.blocks.input",
    r"encoder\.norm_out": "encoder.blocks.narrow.norm",
    r"encoder\.conv_out": "encoder.blocks.narrow.conv",
    r"quant_conv": "encoder.blocks.output",
    r"post_quant_conv": "decoder.blocks.input",
    r"decoder\.conv_in": "decoder.blocks.widen",
    r"decoder\.norm_out": "decoder.blocks.output.norm",
    r"decoder\.conv_out": "decoder.blocks.output.conv",
    r"(encoder|decoder)\.mid\.block_([12])\.(\w+)": r"\1.blocks.middle.block_\2.\3",
    r"(encoder|decoder)\.mid\.attn_1\.(\w+)": r"\1.blocks.middle.attention.\2",
}
LEVEL = re.compile(
    r"(encoder(?=\.down)|decoder(?=\.up))\.(?:down|up)\.(\d+)\.(?:(block|attn)\.(\d+)\.(\w+)|((?:down|up)sample)\.conv)"
)
LAYERS = {
    "norm1": "res_path.norm_1",
    "conv1": "res_path.conv_1",
    "norm2": "res_path.norm_2",
    "conv2": "res_path.conv_2",
    "nin_shortcut": "id_path",
    "proj_out": "out",
}


def recognises(tensors: Mapping[str, Tensor]) -> bool:
    quantized = "quantize.embedding.weight" in tensors or "quantize.proj.weight" in tensors
    return quantized and "encoder.down.0.block.0.conv1.weight" in tensors


def convert(files: Sequence[Weights], image_size: int) -> Converted:
    """Of one file. Raises ValueError where it is another network than ours."""
    (file,) = files
    tensors = {name: tensor for name, tensor in file.tensors.items() if not name.startswith(DROPPED)}
    return convert_tensors(NAME, tensors, image_size, normalise=False)


def convert_tensors(name: str, tensors: Mapping[str, Tensor], image_size: int, normalise: bool) -> Converted:
    """Of a state dict. `normalise`: whether codes and vectors are compared at length 1, which no tensor tells."""
    n_groups = len(numbers_after("encoder.down.", tensors))
    attentive = {level for level in range(n_groups) if numbers_after(f"encoder.down.{level}.attn.", tensors)}
    if attentive != {n_groups - 1}:
        raise ValueError(
            f"its encoder has attention at the levels {sorted(attentive)} of 0 to {n_groups - 1}, expected at the last"
        )
    n_hid = len(_get(tensors, "encoder.conv_in.weight"))
    widths = [len(_get(tensors, f"encoder.down.{level}.block.0.conv1.weight")) for level in range(n_groups)]
    if any(width % n_hid for width in widths):
        raise ValueError(f"its widths are {widths}, expected multiples of the first convolution's, {n_hid}")
    gumbel = "quantize.proj.weight" in tensors
    ours = dict(_composed(tensors) if gumbel else tensors)
    codebook = None if gumbel else ours.pop("quantize.embedding.weight")
    converted = {_our_name(name, n_groups): tensor for name, tensor in ours.items()}
    if codebook is not None:
        converted["quantizer.embedding"] = codebook
        converted["quantizer.counts"] = torch.ones(len(codebook))  # it has been learnt: nothing starts it anew
    config = DiscreteVAEConfig(
        image_size=image_size,
        n_hid=n_hid,
        n_init=len(_get(tensors, "encoder.conv_out.weight")),
        n_groups=n_groups,
        n_blk_per_group=len(numbers_after("encoder.down.0.block.", tensors)),
        codebook_size=len(tensors["quantize.proj.weight"] if codebook is None else codebook),
        network="conv",
        pixels="signed",
        quantizer="gumbel" if codebook is None else "vq",
        quantizer_options={} if codebook is None else _options(codebook, normalise),
        width_multipliers=tuple(width // n_hid for width in widths),
    )
    return Converted(f"{name}, {'Gumbel' if gumbel else 'VQ'}", config, converted)


def _options(codebook: Tensor, normalise: bool) -> dict[str, Any]:
    return {"codebook_dim": codebook.shape[1], "ema": False, "normalise": normalise, "standardise": False}


def _get(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"it lacks {name}")
    return tensors[name]


def _composed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without quantize.proj and quantize.embed, which become parts of the convolutions beside them; in float64."""
    composed = dict(tensors)
    proj, proj_bias = (composed.pop(f"quantize.proj.{leaf}").double() for leaf in ("weight", "bias"))
    embed = _get(composed, "quantize.embed.weight").double()  # (K, D)
    del composed["quantize.embed.weight"]
    conv, conv_bias = (_get(composed, f"quant_conv.{leaf}").double() for leaf in ("weight", "bias"))
    post = _get(composed, "post_quant_conv.weight").double()
    for left, right, names in (
        (proj, conv, "quantize.proj and quant_conv"),
        (post, embed.T, "post_quant_conv and quantize.embed"),
    ):
        if left.shape[1] != right.shape[0]:
            raise ValueError(f"{names} do not follow one another: {tuple(left.shape)} and {tuple(right.shape)}")
    composed["quant_conv.weight"] = (proj[:, :, 0, 0] @ conv[:, :, 0, 0]).float()[:, :, None, None]
    composed["quant_conv.bias"] = (proj[:, :, 0, 0] @ conv_bias + proj_bias).float()
    composed["post_quant_conv.weight"] = (post[:, :, 0, 0] @ embed.T).float()[:, :, None, None]
    return composed


def _our_name(name: str, n_groups: int) -> str:
    """A name that is none of theirs stays as it is, and is said to be unknown where it is compared with ours."""
    module, _, leaf = name.rpartition(".")
    for pattern, ours in STAGES.items():
        if match := re.fullmatch(pattern, module):
            return f"{_with_our_layer(match.expand(ours))}.{leaf}"
    if not (match := LEVEL.fullmatch(module)):
        return name
    part, level, kind, number, layer, step = match.groups()
    group = int(level) + 1 if part == "encoder" else n_groups - int(level)  # theirs begin at the highest resolution
    stage = f"{part}.blocks.group_{group}"
    if step:
        return f"{stage}.{step}.conv.{leaf}"
    block = f"{'block' if kind == 'block' else 'attention'}_{int(number) + 1}"
    return f"{_with_our_layer(f'{stage}.{block}.{layer}')}.{leaf}"


def _with_our_layer(module: str) -> str:
    stage, _, layer = module.rpartition(".")
    return f"{stage}.{LAYERS.get(layer, layer)}"


def resolution(path: Path) -> int:
    """Side of the pictures, of a yaml file beside the checkpoint. Raises ValueError where it does not tell."""
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        side = settings["model"]["params"]["ddconfig"]["resolution"]
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} has no model.params.ddconfig.resolution, as configs of VQGANs have") from error
    if not isinstance(side, int) or side < 1:
        raise ValueError(f"{path}: resolution is {side!r}, expected a number of pixels")
    return side
