"""Quantizers of signs, whose codebook is the corners of a cube, 2^D codes that need no look-up.

    LFQ    corners at +-1 (https://arxiv.org/abs/2310.05737, section 3.1)
    BSQ    vectors on the unit sphere, corners at +-1 / sqrt(D) (https://arxiv.org/abs/2406.07548, section 4)

Soft assignments q(c | z) ~ exp(-|z - c|^2 / (temperature r^2)), where r is the size of each number of a code, are
independent from bit to bit: a bit is set with logit 4 z_d / (temperature r). So entropies over all codes come from D
numbers a vector (entropies.py).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vqvae.entropies import batch_entropy_of_bits, entropy_of_bits
from vqvae.quantizer import Quantized, Quantizer


class LFQ(Quantizer):
    """The code of a vector is its signs; gradients pass straight through to the encoder.

    The first channel counts most in the index. The loss is entropy * (sample entropy - diversity * batch entropy) +
    commitment * |z_e - sg(code)|^2, the entropies in nats, the square averaged over positions and channels.

    Args:
        codebook_size: K, a power of 2.
        values_per_code: colour values for which a code stands; unused here, part of every quantizer's signature.
        entropy: weight of the entropies.
        diversity: weight of the batch entropy among them.
        commitment: weight of the distance to the code.
        temperature: of the soft assignments.
        group_bits: the batch entropy is exact up to 2^group_bits codes, else a sum over groups of so many bits.
    """

    def __init__(
        self,
        codebook_size: int,
        values_per_code: int,
        *,
        entropy: float = 0.1,
        diversity: float = 1.0,
        commitment: float = 0.25,
        temperature: float = 0.35,
        group_bits: int = 18,
    ) -> None:
        super().__init__(codebook_size)
        bits = codebook_size.bit_length() - 1
        if codebook_size != 2**bits:
            raise ValueError(f"codebook_size is {codebook_size}, expected a power of 2, each bit a sign")
        for name, value in {"entropy": entropy, "diversity": diversity, "commitment": commitment}.items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}, expected at least 0")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}, expected more than 0")
        if not (isinstance(group_bits, int) and 1 <= group_bits <= 24):
            raise ValueError(f"group_bits is {group_bits}, expected a whole number from 1 to 24")
        self.in_channels = self.out_channels = bits
        self.entropy, self.diversity, self.commitment = entropy, diversity, commitment
        self.temperature, self.group_bits = temperature, group_bits

    @property
    def corner(self) -> float:
        """Size of each number of a code."""
        return 1.0

    def place(self, z_e: Tensor) -> Tensor:
        """z_e, (B, D, h, w) of any floating dtype, where its codes are: float32."""
        return z_e.float()

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        bits = indices.unsqueeze(1) >> self._places(indices) & 1  # (B, D, h, w)
        return self.corner * (2.0 * bits - 1)

    def hard_indices(self, z_e: Tensor) -> Tensor:
        return ((z_e > 0).long() << self._places(z_e)).sum(dim=1)

    def _places(self, like: Tensor) -> Tensor:
        """Of each channel's bit in the index: (D, 1, 1)."""
        return torch.arange(self.in_channels - 1, -1, -1, device=like.device)[:, None, None]

    def relax(self, z_e: Tensor) -> Quantized:
        with torch.autocast(z_e.device.type, enabled=False):
            return self._quantize(self.place(z_e), self.hard_indices(z_e))

    def _quantize(self, z_e: Tensor, indices: Tensor) -> Quantized:
        codes = self.indices_to_codes(indices)
        commitment_loss = (z_e - codes).square().mean()
        logits = rearrange(4 / (self.temperature * self.corner) * z_e, "b d h w -> (b h w) d")
        sample_entropy = entropy_of_bits(logits).sum(dim=1).mean()
        batch_entropy = batch_entropy_of_bits(logits, self.group_bits, all_ranks=self.training)
        loss = self.entropy * (sample_entropy - self.diversity * batch_entropy) + self.commitment * commitment_loss
        parts = {"sample_entropy": sample_entropy, "batch_entropy": batch_entropy, "commitment": commitment_loss}
        z_q = z_e + (codes - z_e).detach()
        return Quantized(z_q, indices, loss, parts={name: value.detach() for name, value in parts.items()})


class BSQ(LFQ):
    """LFQ of vectors of length 1, whose distance to their code has a bound.

    Arguments as for LFQ. The paper's tau is 2 D / temperature.
    """

    @property
    def corner(self) -> float:
        return self.in_channels**-0.5

    def place(self, z_e: Tensor) -> Tensor:
        return F.normalize(z_e.float(), dim=1)
