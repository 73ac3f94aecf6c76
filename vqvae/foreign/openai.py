"""The dVAE that OpenAI released, `encoder.pkl` and `decoder.pkl`: pickled modules of their package.

https://arxiv.org/abs/2102.12092. The names of the weights are ours, but for `w` and `b`.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from vqvae.config import DiscreteVAEConfig
from vqvae.foreign.weights import Converted, Weights, numbers_after

NAME = "OpenAI's dVAE"
FILES = 2
EXPECTED = "OpenAI's encoder.pkl and decoder.pkl (blocks.input.w)"
LEAVES = {"w": "weight", "b": "bias"}


def recognises(tensors: Mapping[str, Tensor]) -> bool:
    return "blocks.input.w" in tensors and "blocks.output.conv.w" in tensors


def convert(files: Sequence[Weights], image_size: int) -> Converted:
    """Of both files, in any order. Raises ValueError where they are not an encoder and a decoder."""
    parts = {_part(file): file.tensors for file in files}
    if len(parts) != FILES:
        found = ", ".join(f"{file.path} ({_part(file)})" for file in files)
        raise ValueError(f"{NAME} is an encoder.pkl and a decoder.pkl, found {found}")
    encoder, decoder = parts["encoder"], parts["decoder"]
    config = DiscreteVAEConfig(
        image_size=image_size,
        n_hid=len(encoder["blocks.input.w"]),
        n_init=len(decoder["blocks.input.w"]),
        n_groups=len(numbers_after("blocks.group_", encoder)),
        n_blk_per_group=len(numbers_after("blocks.group_1.block_", encoder)),
        codebook_size=len(encoder["blocks.output.conv.w"]),
        post_gain=_post_gain(files),
    )
    tensors = {
        f"{part}.{_our_name(name)}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()
    }
    return Converted(NAME, config, tensors)


def _part(file: Weights) -> str:
    """The encoder looks at 7x7 pixels first, the decoder at one code."""
    return "decoder" if file.tensors["blocks.input.w"].shape[2:] == (1, 1) else "encoder"


def _our_name(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{module}.{LEAVES.get(leaf, leaf)}"


def _post_gain(files: Sequence[Weights]) -> float | None:
    """That of all blocks; None, which is the paper's, where the files do not tell."""
    gains = {value for file in files for name, value in file.numbers.items() if name.endswith(".post_gain")}
    if len(gains) > 1:
        raise ValueError(f"its blocks have the gains {sorted(gains)}, expected one for all")
    return gains.pop() if gains else None
