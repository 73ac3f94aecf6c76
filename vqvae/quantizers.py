"""The quantizers by name; their contract is in quantizer.py."""

import inspect
from collections.abc import Mapping
from typing import Any

from vqvae.gumbel import Gumbel
from vqvae.quantizer import Quantizer
from vqvae.vector_quantizer import VectorQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {"gumbel": Gumbel, "vq": VectorQuantizer}


def build_quantizer(kind: str, codebook_size: int, values_per_code: int, options: Mapping[str, Any]) -> Quantizer:
    """The quantizer named `kind`. Raises ValueError for an unknown kind, or an option that its class does not have."""
    if kind not in QUANTIZERS:
        raise ValueError(f"unknown quantizer {kind!r}, expected one of {', '.join(QUANTIZERS)}")
    parameters = inspect.signature(QUANTIZERS[kind].__init__).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"quantizer {kind!r} has no option {name!r}, expected one of {', '.join(known)}")
        if not isinstance(value, int | float):
            raise ValueError(f"option {name} of quantizer {kind!r} is {value!r}, expected a number")
    return QUANTIZERS[kind](codebook_size, values_per_code, **options)
