"""A prior's weights spread over devices: each keeps a share of every tensor, of its gradient and of its moments.

Fully sharded data parallelism (https://arxiv.org/abs/2304.11277) by torch's fully_shard: a block's weights are gathered
right before it works and dropped after it, forwards and backwards, and its gradients are summed and shared out at once.
What is no block's, tables and heads above all, is gathered for the whole step.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from transformer.attention import RotaryNorm
from transformer.config import PriorConfig
from transformer.model import Prior
from transformer.rms_norm import RMSNorm

NORMS = (nn.LayerNorm, RMSNorm, RotaryNorm)


def spread(prior: Prior, mesh: DeviceMesh, products: torch.dtype | None = None) -> None:
    """Makes `prior` one of many that train together, in place; its `loss` alone is to be called from then on.

    Args:
        prior: with the same weights on all devices.
        mesh: those devices, in one dimension.
        products: what autocast takes the blocks' weights to; they are then sent in it, at half the traffic. Norms and
            all that is no block's stay in float32, and gradients are summed in it.
    """
    policy = MixedPrecisionPolicy(products, torch.float32, cast_forward_inputs=False) if products else None
    for block in prior.blocks:
        if policy is None:
            fully_shard(block, mesh=mesh)
        else:
            fully_shard([module for module in block.modules() if isinstance(module, NORMS)], mesh=mesh)
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(prior, mesh=mesh)
    register_fsdp_forward_method(prior, "loss")


def is_spread(prior: nn.Module) -> bool:
    return isinstance(prior, FSDPModule)


def whole_prior(config: PriorConfig, weights: Mapping[str, Tensor]) -> Prior:
    """A prior of these very tensors, which may lie on the disk: to be saved, not to be run."""
    with torch.device("meta"):
        prior = Prior(config)
    prior.load_state_dict(weights, assign=True)
    return prior
