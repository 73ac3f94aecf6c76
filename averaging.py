"""The moving average of the weights (EMA) while they train, which is what is validated, exported and sampled from.

As Lightning's own, and in checkpoints of the same form; but it also takes weights that are spread over devices, each
device averaging its share, and it does not have the host wait for the device at each update.
"""

import itertools
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sharding import fill, gathered, local, spread_like

EPOCH = "update_starting_at_epoch"  # of Lightning's average, not of this one


class Average:
    """Of a module's parameters and buffers: this device's share of them, by name.

    Args:
        decay: of the average, at each update; the first one takes the weights as they are.
        device: where it is kept; None: where the module's tensors are.
        buffers: whether buffers of floating point are averaged, or copied like all other ones.
    """

    def __init__(self, module: nn.Module, decay: float, device: torch.device | int | None, buffers: bool) -> None:
        self.decay, self.device, self.updates = decay, device, 0
        self.averaged = {name for name, _ in (named_tensors(module) if buffers else module.named_parameters())}
        self.shares = {name: local(own).detach().to(device, copy=True) for name, own in named_tensors(module)}

    def follow(self, module: nn.Module) -> None:
        """Goes where the module has gone, unless it has a device of its own."""
        if self.device is None:
            self.shares = {name: self.shares[name].to(own.device) for name, own in named_tensors(module)}

    @torch.no_grad()
    def update_parameters(self, module: nn.Module) -> None:
        averages, weights = [], []
        for name, own in named_tensors(module):
            share, weight = self.shares[name], local(own)
            if self.updates and name in self.averaged and share.is_floating_point():
                averages.append(share)
                weights.append(weight.to(share.device))
            else:
                share.copy_(weight)
        if averages:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        self.updates += 1

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        for name, own in named_tensors(module):
            kept = self.shares[name].clone()
            self.shares[name].copy_(local(own))
            local(own).copy_(kept)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for name, own in named_tensors(module):
            local(own).copy_(self.shares[name])

    def state_dict(self, module: nn.Module, keep: bool) -> dict[str, Tensor]:
        """Whole tensors, by the names in the module's own state dict; none without `keep`, which is for one device."""
        own = dict(named_tensors(module))
        whole = {name: gathered(_spread_share(self.shares[name], own[name]), keep) for name in module.state_dict()}
        return whole if keep else {}

    @torch.no_grad()
    def load_state_dict(self, module: nn.Module, whole: Mapping[str, Tensor], updates: int) -> None:
        own = dict(named_tensors(module))
        for name, tensor in whole.items():
            self.shares[name].copy_(local(spread_like(tensor, own[name])))
        self.updates = updates


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(module.named_parameters(), module.named_buffers())


def _spread_share(share: Tensor, own: Tensor) -> Tensor:
    """As a part of what is spread like `own`; itself where that is not."""
    if not isinstance(own, DTensor):
        return share
    share, mesh = share.to(own.device), own.device_mesh
    return DTensor.from_local(share, mesh, own.placements, shape=own.shape, stride=own.stride())


def drop_epoch(settings: MutableMapping[str, Any]) -> None:
    """Takes `EPOCH` out of `ema`'s settings: earlier versions wrote it into each run's config.yaml, as null.

    Raises ValueError where it is anything else.
    """
    if (value := settings.pop(EPOCH, None)) not in (None, "null"):
        raise ValueError(
            f"ema.{EPOCH} is {value}, which is no longer known: checkpoints are written after steps, so an average of "
            "an epoch's end would be lost where the run is killed before it; expected ema.update_starting_at_step"
        )


class WeightAveraging(EMAWeightAveraging):
    """Validates with the average in the weights' place, and leaves it there when the training ends.

    Args:
        device: where the average is kept; None: where the model is.
        use_buffers: whether buffers are averaged; else they are the model's.
        decay: at each update, in [0, 1].
        update_every_n_steps, update_starting_at_step: when there are updates. Lightning's further one at an epoch's end
            would be lost where the run is killed before it: checkpoints are written after steps.

    Raises ValueError for a decay outside its range.
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
    ) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"ema.decay is {decay}, expected 0 to 1")
        super().__init__(device, use_buffers, decay, update_every_n_steps, update_starting_at_step)
        self._decay = decay

    @property
    def state_key(self) -> str:
        return EMAWeightAveraging.__qualname__  # as it is in checkpoints, those of before this class among them

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nothing: the model is not yet on its device, and not yet spread."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._average_model is None:
            self._average_model = self._start(pl_module)
        self._average_model.follow(pl_module)

    def _start(self, pl_module: pl.LightningModule) -> Average:
        return Average(pl_module, self._decay, self._device, self._use_buffers)

    def _swap_models(self, pl_module: pl.LightningModule) -> None:
        self._average_model.swap(pl_module)

    def _copy_average_to_current(self, pl_module: pl.LightningModule) -> None:
        self._average_model.copy_to(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The average is the checkpoint's `state_dict`, for whoever wants a model and not to go on training it."""
        if self._average_model is not None:
            checkpoint["current_model_state"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = self._average_model.state_dict(pl_module, trainer.is_global_zero)
            checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self._average_model.updates)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """By now the model has `state_dict`. Most strategies load before the model is on its device, some after."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if self._average_model is None:
            self._average_model = self._start(pl_module)
        updates = checkpoint.get("averaging_state", {}).get("n_averaged", 0)
        self._average_model.load_state_dict(pl_module, checkpoint["state_dict"], int(updates))
        fill(pl_module, checkpoint.get("current_model_state", checkpoint["state_dict"]))
