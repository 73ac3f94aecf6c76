"""The two residual blocks a prior can be built of.

PaperBlock: pre-norm GPT-2 block with LayerNorm, GELU and biases (https://arxiv.org/abs/2102.12092 states no more than
"sparse transformer", https://arxiv.org/abs/1904.10509, whose pre-activation block this is). ModernBlock: RMSNorm
(https://arxiv.org/abs/1910.07467), QK-norm and 2-D rotary positions in the attention, SwiGLU
(https://arxiv.org/abs/2002.05202), no biases.

Shapes: B batch, N positions, C n_embd.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from transformer.attention import SelfAttention
from transformer.config import PriorConfig
from transformer.rms_norm import RMSNorm


class MLP(nn.Module):
    """C -> mlp_ratio * C -> C with GELU, in the tanh form that GPT-2 and its successors use."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, config.mlp_ratio * config.n_embd)
        self.proj = nn.Linear(config.mlp_ratio * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.gelu(self.up(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """silu(gate) * up, with two thirds of the MLP's width so that both have as many weights."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        hidden = swiglu_width(config)
        self.gate_up = nn.Linear(config.n_embd, 2 * hidden, bias=False)
        self.proj = nn.Linear(hidden, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.proj(F.silu(gate) * up)


def swiglu_width(config: PriorConfig) -> int:
    """Two thirds of mlp_ratio * n_embd, rounded up to a multiple of 32, which matrix units and vectors like."""
    return -(-2 * config.mlp_ratio * config.n_embd // (3 * 32)) * 32


class PaperBlock(nn.Module):
    """(B, N, C) -> (B, N, C)."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.attention = SelfAttention(config)
        self.mlp_norm = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], attend: Callable[..., Tensor]) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, attend)
        return x + self.mlp(self.mlp_norm(x))


class ModernBlock(nn.Module):
    """(B, N, C) -> (B, N, C)."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.n_embd)
        self.attention = SelfAttention(config)
        self.mlp_norm = RMSNorm(config.n_embd)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], attend: Callable[..., Tensor]) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, attend)
        return x + self.mlp(self.mlp_norm(x))
