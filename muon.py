"""Muon for matrices and convolutions in the middle of a network, AdamW for all else, as one optimiser.

Muon (https://kellerjordan.github.io/posts/muon/) takes the momentum of a weight matrix to the nearest orthogonal one,
so that every direction is learnt at the same pace; tables, heads, gains and biases are not what it is for. To it, the
weight of a convolution is a matrix with a row for each channel that comes out. Steps are scaled as in
https://arxiv.org/abs/2502.16982, section 2.2: the root mean square of an update is 0.2 times the step size whatever the
shape, which is about what AdamW does at the same step size.

Against torch.optim.Muon, which takes one matrix after the other, the matrices of one shape are multiplied together: at
the size of the demo's prior, two cores then take half the time. Of weights that are spread over devices (DTensor, some
rows on each), every device puts whole matrices together and orthogonalises its part of them.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from precision import product_dtype

Group = dict[str, Any]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration: x <- a x + b x^3 + c x^5 for each singular value. The steepest at 0 rather
than one that converges: it leaves values of about 0.7 to 1.2."""
ITERATIONS = 5
MAX_STACKED = 2**24
"""Numbers multiplied together at most: 32 MB in bf16, which matrices larger than that gain nothing from."""


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrix to each of (B, N, M), about: (B, N, M) of `product_dtype`, singular values
    near 1."""
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = wide.to(product_dtype(wide.device)).contiguous()
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrices else x.mT


def orthogonalise_spread(rows: Tensor, like: DTensor) -> Tensor:
    """`orthogonalise` of B matrices of which each device has some rows: (B, its rows, M) -> the same, as that.

    Device r puts matrices r, r + W, ... of W devices together, and hands the rows of what comes out back.

    Args:
        like: spread over one dimension of devices, by rows, as the matrices are.
    """
    group, (count, _, columns) = like.device_mesh.get_group(), rows.shape
    rank, devices = dist.get_rank(group), dist.get_world_size(group)
    heights = [len(part) for part in torch.empty(like.shape[0], device="meta").chunk(devices)]
    heights += [0] * (devices - len(heights))
    taken = [len(range(device, count, devices)) for device in range(devices)]
    there, back = [taken[rank] * height for height in heights], [number * heights[rank] for number in taken]

    rows = rows.to(product_dtype(rows.device))
    parts = _exchange(torch.cat([rows[device::devices].flatten(0, 1) for device in range(devices)]), back, there, group)
    views = zip(parts.split(there), heights, strict=True)
    matrices = torch.cat([part.view(taken[rank], height, columns) for part, height in views], dim=1)
    updates = orthogonalise(matrices) if taken[rank] else matrices
    parts = _exchange(torch.cat([part.flatten(0, 1) for part in updates.split(heights, dim=1)]), there, back, group)
    result = torch.empty_like(rows)
    for device, part in enumerate(parts.split(back)):
        result[device::devices] = part.view(taken[device], heights[rank], columns)
    return result


def _exchange(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    """Of rows (sum(sent), M) in order, so many to each device, so many from each: (sum(received), M)."""
    result = rows.new_empty(sum(received), rows.shape[1])
    dist.all_to_all_single(result, rows, received, sent, group=group)
    return result


def _own(tensor: Tensor) -> Tensor:
    """This device's part of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


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
    def step(self, found_inf: Tensor | None = None) -> None:
        """Changes nothing where `found_inf` () is 1: a gradient is not finite. None: all are."""
        for group in self.param_groups:
            for weights in _stacks([weight for weight in group["params"] if weight.grad is not None]):
                self._update(weights, group["lr"], group["weight_decay"], group["momentum"], found_inf)

    def _update(
        self, weights: list[Tensor], lr: float, weight_decay: float, momentum: float, found_inf: Tensor | None
    ) -> None:
        averages = [_own(self._average(weight)) for weight in weights]
        gradients, own = [_own(weight.grad) for weight in weights], [_own(weight) for weight in weights]
        shrink: float | Tensor = 1 - lr * weight_decay
        if found_inf is not None:
            shrink = torch.where(found_inf > 0, 1.0, found_inf.new_full((), shrink, dtype=own[0].dtype))
            pairs = zip(averages, gradients, strict=True)
            gradients = [torch.where(found_inf > 0, average, gradient) for average, gradient in pairs]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        momenta = torch.stack(torch._foreach_lerp(gradients, averages, momentum))
        matrices, shape = momenta.flatten(start_dim=2), weights[0].shape
        spread = isinstance(weights[0], DTensor)
        updates = orthogonalise_spread(matrices, weights[0]) if spread else orthogonalise(matrices)
        updates *= 0.2 * math.sqrt(max(shape[0], math.prod(shape[1:])))  # root mean square 0.2
        if found_inf is not None:
            updates = torch.where(found_inf > 0, 0.0, updates)
        torch._foreach_mul_(own, shrink)
        torch._foreach_add_(own, list(updates.reshape(momenta.shape).to(own[0].dtype)), alpha=-lr)

    def _average(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]


def _stacks(weights: list[Tensor]) -> Iterator[list[Tensor]]:
    """The weights by shape, at most MAX_STACKED numbers at once, on each device if they are spread."""
    by_shape = defaultdict(list)
    for weight in weights:
        by_shape[weight.shape, weight.dtype, weight.device].append(weight)
    for alike in by_shape.values():
        devices = alike[0].device_mesh.size() if isinstance(alike[0], DTensor) else 1
        most = max(1, MAX_STACKED // alike[0].numel()) * devices
        for first in range(0, len(alike), most):
            yield alike[first : first + most]


class MuonAdamW(Optimizer):
    """Muon on the first group of parameters, AdamW on the others: one step, one state dict, one schedule.

    Args:
        matrices: parameters of Muon, with the step size `lr` and the `weight_decay` of their own.
        groups: of AdamW, with `lr` and `weight_decay` each.
        betas, eps: of AdamW.

    Attributes:
        found_inf: (), 1 where a step is to change nothing, 0 where it is not; None: as 0. GradScaler's name.
    """

    found_inf: Tensor | None = None

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
        self.adamw.found_inf = self.found_inf
        self.muon.step(self.found_inf)
        self.adamw.step()
        return loss
