"""The quantizers by name; their contract is in quantizer.py."""

import inspect
from collections.abc import Mapping
from typing import Any

from vqvae.fsq import FSQ
from vqvae.gumbel import Gumbel
from vqvae.ibq import IBQ
from vqvae.lfq import BSQ, LFQ
from vqvae.quantizer import Quantizer
from vqvae.vector_quantizer import VectorQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {
    "gumbel": Gumbel,
    "vq": VectorQuantizer,
    "fsq": FSQ,
    "lfq": LFQ,
    "bsq": BSQ,
    "ibq": IBQ,
}


def build_quantizer(kind: str, codebook_size: int, values_per_code: int, options: Mapping[str, Any]) -> Quantizer:
    """The quantizer named `kind`.

    Raises ValueError for an unknown kind, or an option that its class does not have or that is of another type: those
    whose default is a tuple are lists of whole numbers, all others numbers.
    """
    if kind not in QUANTIZERS:
        raise ValueError(f"unknown quantizer {kind!r}, expected one of {', '.join(QUANTIZERS)}")
    parameters = inspect.signature(QUANTIZERS[kind].__init__).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"quantizer {kind!r} has no option {name!r}, expected one of {', '.join(known)}")
        if isinstance(known[name], tuple):
            if not (isinstance(value, list | tuple) and all(type(each) is int for each in value)):
                raise ValueError(f"option {name} of quantizer {kind!r} is {value!r}, expected a list of whole numbers")
        elif not isinstance(value, int | float):
            raise ValueError(f"option {name} of quantizer {kind!r} is {value!r}, expected a number")
    return QUANTIZERS[kind](codebook_size, values_per_code, **options)
