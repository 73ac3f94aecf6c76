"""Muon for the matrices of the blocks, AdamW for all else, as one optimiser.

Muon (https://kellerjordan.github.io/posts/muon/) takes the momentum of a weight matrix to the nearest orthogonal one,
so that every direction is learnt at the same pace; tables, heads, gains and biases are not what it is for. Its steps
are scaled as in https://arxiv.org/abs/2502.16982, section 2.2: the root mean square of an update is 0.2 times the step
size whatever the shape, which is about what AdamW does at the same step size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer

Group = dict[str, Any]


class MuonAdamW(Optimizer):
    """Muon on the first group of parameters, AdamW on the others: one step, one state dict, one schedule.

    Args:
        matrices: parameters (n, m), with the step size `lr` and the `weight_decay` of their own.
        groups: of AdamW, with `lr` and `weight_decay` each.
        betas, eps: of AdamW.
    """

    def __init__(self, matrices: Group, groups: list[Group], betas: tuple[float, float], eps: float) -> None:
        self.muon = Muon([matrices], adjust_lr_fn="match_rms_adamw")
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
