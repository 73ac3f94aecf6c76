"""Updates that are left out because a loss or a gradient is not finite.

A loss that is not finite makes its gradient so. Gradients are those of all devices, each of which then finds the same
norm: not finite, the optimiser does nothing. Whether it does is for the device to decide, so that the host never waits
for it: fused optimisers and `MuonAdamW` take the answer as a tensor, `found_inf`.

An update that is left out counts like any other: data, schedules and random numbers go on as if nothing had happened.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


class Check(NamedTuple):
    """What one optimiser was to step by."""

    losses: Sequence[Mapping[str, Tensor]]  # of each batch that was added up, {"loss": (), further terms: ()}
    names: Sequence[str]  # of the P parameters that have a gradient
    norms: Tensor  # (P,) of their gradients; of spread ones, of this device's share
    found_inf: Tensor  # (), 1 where a gradient on any device is not finite, else 0


class Guard:
    """What is known of one update: `begin`, then for each optimiser `loss` of each batch that is added up, and `check`
    before its step.

    Attributes:
        checks: of each optimiser, in the order of their steps.
    """

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self._losses: list[Mapping[str, Tensor]] = []

    def begin(self) -> None:
        self.checks, self._losses = [], []

    def loss(self, loss: Tensor, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss () to go backwards from: itself, but its gradient is NaN where it is not finite."""
        value = loss.detach()
        self._losses.append({"loss": value} | {name: term.detach() for name, term in terms.items()})
        if loss.requires_grad:
            loss.register_hook(lambda gradient: torch.where(value.isfinite(), gradient, torch.nan))
        return loss

    def check(
        self, optimizer: Optimizer, parameters: Iterable[tuple[str, nn.Parameter]], largest: float | None = None
    ) -> Tensor:
        """Has the optimiser's next step do nothing where a gradient is not finite.

        Args:
            optimizer: a MuonAdamW, or of PyTorch's with `fused=True`.
            parameters: all that the optimiser changes, with their names.
            largest: to which the gradients' norm is clipped; None or 0: no limit.

        Returns the norm (), spread if the gradients are, before it is clipped.
        """
        known = [(name, parameter) for name, parameter in parameters if parameter.grad is not None]
        with torch.no_grad():
            norms = torch.stack(torch._foreach_norm([parameter.grad for _, parameter in known]))
            norm = torch.linalg.vector_norm(norms)
            whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
            found_inf = (~whole.isfinite()).float()
        if largest:
            nn.utils.clip_grads_with_norm_([parameter for _, parameter in known], largest, norm)
        optimizer.found_inf = found_inf
        own = norms.to_local() if isinstance(norms, DTensor) else norms
        self.checks.append(Check(self._losses, [name for name, _ in known], own, found_inf))
        self._losses = []
        return norm


class Held:
    """Tensors that a forward pass changes, such as running sums, as they were before it."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._before = [(tensor, tensor.detach().clone()) for tensor in tensors]

    @torch.no_grad()
    def put_back(self, found_inf: Tensor) -> None:
        """As they were where `found_inf` is 1, else as they are."""
        for tensor, before in self._before:
            tensor.copy_(torch.where(found_inf > 0, before, tensor))
