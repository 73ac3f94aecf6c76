"""Random numbers as a function of (seed, position, code): SplitMix64, computed on tensors.

Sampling asks for the same picture alone, in any batch, on any device and in any order. A stateful generator ties each
number to all drawn before it; a counter-based one does not. SplitMix64 (Steele, Lea, Flood 2014,
https://doi.org/10.1145/2660193.2660195) is a counter times an odd constant, scrambled: its n-th output is computed
directly, with integer arithmetic that is exact everywhere.

The uniform numbers are thus the same bits on all devices. Their logarithm in float64 is not quite: libraries round its
last bit differently (on one CPU, PyTorch's own and what Inductor compiles differed in it for 7,754 of 261,376 values,
and by no more). That moves a code's standing in the race by parts in 1e16, so devices draw the same token but where two
codes come that close; the models' float32 logits, which differ between devices by parts in 1e7, decide far sooner.

Shapes: B batch, K codebook.
"""

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that has it: PyTorch's int64 wraps around, which is the arithmetic wanted."""
    return value - (1 << 64) if value >= 1 << 63 else value


GAMMA = _signed(0x9E3779B97F4A7C15)
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)


def splitmix64(seeds: Tensor, index: Tensor) -> Tensor:
    """Output number `index` (from 0) of the generator seeded with `seeds`: int64, any 64 bits; both broadcast."""
    z = seeds + (index + 1) * GAMMA
    z = (z ^ _shift_right(z, 30)) * MIX_1
    z = (z ^ _shift_right(z, 27)) * MIX_2
    return z ^ _shift_right(z, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift that moves zeros in at the left, where int64's own repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def exponential_noise(seeds: Tensor, position: int | Tensor, codebook_size: int) -> Tensor:
    """Exp(1) variates for the codes at one picture position, float64 (B, K), from int64 seeds (B,).

    The seed is scrambled once before use, so that seeds 0, 1, 2, ... start far apart in the counter.
    """
    counter = torch.arange(codebook_size, device=seeds.device) + position * codebook_size
    return -_uniform(splitmix64(splitmix64(seeds, torch.zeros_like(seeds))[:, None], counter)).log()


def uniform_noise(seeds: Tensor, count: int) -> Tensor:
    """Uniform variates in (0, 1), float64 (B, count), of int64 seeds (B,): another stream than exponential_noise's."""
    counter = torch.arange(count, device=seeds.device)
    return _uniform(splitmix64(splitmix64(seeds, torch.ones_like(seeds))[:, None], counter))


def _uniform(bits: Tensor) -> Tensor:
    """Inside (0, 1): of the highest bits, the sum would be rounded up to 1, whose logarithm no race survives."""
    return ((_shift_right(bits, 11).double() + 0.5) * 2.0**-53).clamp(max=1 - 2.0**-53)
