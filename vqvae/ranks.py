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


class RowsOfAllRanks:
    """The rows (n, D) of all processes, n of which may differ, in one order: the first process's, the second's, ...

    What one process's rows are if it has the whole batch. All processes make it, and ask it, at the same time.
    """

    def __init__(self, own: Tensor) -> None:
        rank = dist.get_rank() if world_size() > 1 else 0
        sizes = torch.zeros(world_size(), dtype=torch.int64, device=own.device)
        sizes[rank] = len(own)
        sizes = sum_over_ranks(sizes).tolist()
        self._own, self._before, self._n = own, sum(sizes[:rank]), sum(sizes)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, numbers: Tensor) -> Tensor:
        """The rows of these numbers (m,), the same in all processes -> (m, D). Not for what needs a gradient."""
        if world_size() == 1:
            return self._own[numbers]
        at = numbers - self._before
        here = (at >= 0) & (at < len(self._own))
        rows = self._own.new_zeros(len(numbers), self._own.shape[1])
        rows[here] = self._own[at[here]]
        return sum_over_ranks(rows)
