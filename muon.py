"""Muon for matrices and convolutions in the middle of a network, AdamW for all else, as one optimiser.

Muon (https://kellerjordan.github.io/posts/muon/) takes the momentum of a weight matrix to the nearest orthogonal one,
so that every direction is learnt at the same pace; tables, heads, gains and biases are not what it is for. To it, the
weight of a convolution is a matrix with a row for each channel that comes out. Steps are scaled as in
https://arxiv.org/abs/2502.16982, section 2.2: the root mean square of an update is 0.2 times the step size whatever the
shape, which is about what AdamW does at the same step size.

Against torch.optim.Muon, which takes one matrix after the other, the matrices of one shape are multiplied together: at
the size of the demo's prior, two cores then take half the time.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

Group = dict[str, Any]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration: x <- a x + b x^3 + c x^5 for each singular value. The steepest at 0 rather
than one that converges: it leaves values of about 0.7 to 1.2."""
ITERATIONS = 5
MAX_STACKED = 2**24
"""Numbers multiplied together at most: 32 MB in bf16, which matrices larger than that gain nothing from."""


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrix to each of (B, N, M), about: bfloat16 (B, N, M), singular values near 1."""
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = wide.to(torch.bfloat16).contiguous()
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrices else x.mT


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised; decoupled weight decay. Takes no closure.

    Parameters are (N, M) or (N, ...), then taken as (N, product of the rest); raises ValueError where one is a vector.
    """

    def __init__(
        self, params: list[Group], lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for weight in (weight for group in self.param_groups for weight in group["params"]):
            if weight.ndim < 2:
                raise ValueError(f"Muon got a parameter of shape {tuple(weight.shape)}, expected 2 dimensions or more")

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weights in _stacks([weight for weight in group["params"] if weight.grad is not None]):
                self._update(weights, group["lr"], group["weight_decay"], group["momentum"])

    def _update(self, weights: list[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        averages = [self._average(weight) for weight in weights]
        gradients = [weight.grad for weight in weights]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        momenta = torch.stack(torch._foreach_lerp(gradients, averages, momentum))
        updates = orthogonalise(momenta.flatten(start_dim=2))
        updates *= 0.2 * math.sqrt(max(updates.shape[1:]))  # root mean square 0.2
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        torch._foreach_add_(weights, list(updates.reshape(momenta.shape).to(weights[0].dtype)), alpha=-lr)

    def _average(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]


def _stacks(weights: list[Tensor]) -> Iterator[list[Tensor]]:
    """The weights by shape, at most MAX_STACKED numbers at once."""
    by_shape = defaultdict(list)
    for weight in weights:
        by_shape[weight.shape, weight.dtype, weight.device].append(weight)
    for alike in by_shape.values():
        most = max(1, MAX_STACKED // alike[0].numel())
        for first in range(0, len(alike), most):
            yield alike[first : first + most]


class MuonAdamW(Optimizer):
    """Muon on the first group of parameters, AdamW on the others: one step, one state dict, one schedule.

    Args:
        matrices: parameters of Muon, with the step size `lr` and the `weight_decay` of their own.
        groups: of AdamW, with `lr` and `weight_decay` each.
        betas, eps: of AdamW.
    """

    def __init__(self, matrices: Group, groups: list[Group], betas: tuple[float, float], eps: float) -> None:
        self.muon = Muon([matrices])
        self.adamw = AdamW(groups, betas=betas, eps=eps, fused=True)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Both work on the state and on the groups of the whole, which a schedule or a checkpoint changes."""
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()
        self.adamw.step()
        return loss
