"""numpy's arrays in pickles, read from the records that pickles.py makes of them."""

import math

import torch
from torch import Tensor

from vqvae.foreign.pickles import Built, Global

RECONSTRUCT = {Global(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
DTYPE, ENCODE = Global("numpy", "dtype"), Global("_codecs", "encode")
FLOAT32 = ("f4", "<f4")


def is_array(value: object) -> bool:
    return isinstance(value, Built) and value.what in RECONSTRUCT


def tensor_of(record: Built) -> Tensor:
    """The array of float32 that a record stands for. Raises ValueError where it is none, or damaged."""
    try:
        _, shape, dtype, fortran, content = record.state
        if isinstance(content, Built) and content.what == ENCODE:  # bytes, as protocols up to 2 have them
            content = content.args[0].encode(content.args[1])
        name = dtype.args[0] if dtype.what == DTYPE else dtype.what
        order = dtype.state[1]
    except Exception as error:  # a record may hold anything
        raise ValueError(f"is a damaged array: {error or type(error).__name__}") from error
    if name not in FLOAT32 or order != "<":
        raise ValueError(f"is an array of {order}{name}, expected float32, <f4")
    sizes = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
    if not (sizes and isinstance(content, bytes)):
        raise ValueError("is a damaged array: its shape or its content is none")
    if 4 * math.prod(shape) != len(content):
        raise ValueError(f"has shape {shape} and {len(content)} bytes, expected {4 * math.prod(shape)}")
    if not content:
        return torch.empty(shape)
    values = torch.frombuffer(bytearray(content), dtype=torch.float32)
    return values.view(shape[::-1]).permute(*reversed(range(len(shape)))) if fortran else values.view(shape)
