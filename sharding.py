"""Lightning's strategy for models whose weights are spread over the devices, and tensors that go there and back.

Lightning's own FSDPStrategy runs on GPUs only, flattens the weights and writes checkpoints that other strategies do not
read. This one leaves the spreading to the model's `configure_model`, runs on CPUs as well, and writes the checkpoints
of a single device: a run may go on with another strategy or number of devices.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from callbacks.folder_io import ReadAlready

STRATEGY = "fsdp"  # its name on the command line


def local(tensor: Tensor) -> Tensor:
    """This device's share, which shares its memory; all of a tensor that is not spread."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: Tensor, keep: bool = True) -> Tensor | None:
    """All of a tensor, on the CPU; None unless `keep`. Every device has to ask, also one that does not keep it."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu() if keep else None


def spread_like(whole: Tensor, like: Tensor) -> Tensor:
    """`whole`, which every device holds, spread as `like` is; itself where that is not, or is another tensor's kind."""
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def fill(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors into a module that may be spread; all names have to fit."""
    own = module.state_dict()
    module.load_state_dict({name: spread_like(whole, own[name]) for name, whole in weights.items()})


def strategy_of(name: Any, kind: str, can_spread: bool) -> Any:
    """What the Trainer is to be given for a strategy's name on the command line; objects stay as they are.

    Under "ddp", gradients lie where they are sent from, and are not copied there and back.

    Raises ValueError for a name that models of this kind are not trained with.
    """
    if name == "ddp":
        return DDPStrategy(gradient_as_bucket_view=True)
    if not isinstance(name, str) or name == "auto" or name.startswith("ddp"):
        return name
    if name != STRATEGY or not can_spread:
        expected = f"auto, ddp or {STRATEGY}" if can_spread else "auto or ddp"
        raise ValueError(f"trainer.strategy is {name!r}, expected {expected} for a {kind}")
    return ShardedStrategy()


class ShardedStrategy(ModelParallelStrategy):
    """For a LightningModule that spreads itself over `device_mesh["data_parallel"]` in `configure_model`.

    A checkpoint is gathered tensor by tensor into the first process' memory, which has to hold it.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self._gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As of a single device; empty on all devices but the first."""
        state = optimizer.state_dict()
        state["state"] = {number: self._gathered(values) for number, values in state["state"].items()}
        return state if self.is_global_zero else {}

    def _gathered(self, values: Mapping[str, Any]) -> dict[str, Any]:
        whole = {
            name: gathered(value, self.is_global_zero) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        return whole if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: str, weights_only: bool | None = None) -> dict[str, Any]:
        """On every device, its tensors left on the disk until they are used; or what was read already."""
        if isinstance(self.checkpoint_io, ReadAlready):
            return self.checkpoint_io.load_checkpoint(checkpoint_path)
        return torch.load(self.broadcast(checkpoint_path), map_location="cpu", mmap=True, weights_only=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        fill(self.lightning_module, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state["state"] = {
                number: {
                    name: spread_like(value, parameters[number]) if isinstance(value, Tensor) else value
                    for name, value in values.items()
                }
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict(state)
