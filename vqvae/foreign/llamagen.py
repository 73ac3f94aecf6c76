"""Tokenizers of LlamaGen, vq_ds8 and vq_ds16 (https://arxiv.org/abs/2406.06525).

VQGAN's network with other names, and a codebook of few dimensions whose codes are compared at length 1.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from vqvae.foreign import taming
from vqvae.foreign.weights import Converted, Weights, numbers_after

NAME = "a tokenizer of LlamaGen"
FILES = 1
EXPECTED = "a tokenizer of LlamaGen, vq_ds8 or vq_ds16 (encoder.conv_blocks.0, quantize.embedding)"
DROPPED = ("quantize.codebook_used",)  # the last codes of their training
MIDDLE = {"0": "block_1", "1": "attn_1", "2": "block_2"}


def recognises(tensors: Mapping[str, Tensor]) -> bool:
    return "encoder.conv_blocks.0.res.0.conv1.weight" in tensors and "quantize.embedding.weight" in tensors


def convert(files: Sequence[Weights], image_size: int) -> Converted:
    """Of one file. Raises ValueError where it is another network than ours."""
    (file,) = files
    n_groups = len(numbers_after("encoder.conv_blocks.", file.tensors))
    tensors = {
        _name_in_taming(name, n_groups): tensor for name, tensor in file.tensors.items() if not name.startswith(DROPPED)
    }
    return taming.convert_tensors(NAME, tensors, image_size, normalise=True)


def _name_in_taming(name: str, n_groups: int) -> str:
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.([012])\.(.+)", name):
        part, number, rest = match.groups()
        return f"{part}.mid.{MIDDLE[number]}.{rest}"
    if match := re.fullmatch(r"(encoder|decoder)\.conv_blocks\.(\d+)\.(.+)", name):
        part, number, rest = match.groups()
        level = f"down.{number}" if part == "encoder" else f"up.{n_groups - 1 - int(number)}"  # from the lowest
        return f"{part}.{level}.{re.sub(r'^res', 'block', rest)}"
    return name
