"""What the processes of a run on several devices do together; nothing in a run of one process."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Processes in this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _SumOverRanks(torch.autograd.Function):
    # Each process's loss depends on every process's tensor, so the gradients are summed as well.

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _SumOverRanks.apply(gradient)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors of this shape, with its gradient."""
    return _SumOverRanks.apply(tensor) if world_size() > 1 else tensor


def from_first_rank(tensor: Tensor) -> Tensor:
    """The first process's tensor, in all of them. Not for what needs a gradient."""
    if world_size() > 1:
        tensor = tensor.contiguous()
        dist.broadcast(tensor, src=0)
    return tensor
