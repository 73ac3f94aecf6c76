"""What refuses that a number is read back from a device, which would have the host wait for it."""

import pytorch_lightning as pl
from torch.utils._python_dispatch import TorchDispatchMode

READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique2", "_to_cpu"}


class NoReading(TorchDispatchMode):
    """Refuses what waits for a device: reading a number, results whose size depends on numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        assert name not in READS, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


class Watch(pl.Callback):
    """Steps, from the transfer of the batch to the optimiser's, in which nothing may be read: all but the run's last
    one, at whose end it is asked what is not known yet."""

    def __init__(self) -> None:
        self.mode, self.steps, self._watching = NoReading(), 0, False

    def on_train_batch_start(self, trainer, *args) -> None:
        if trainer.global_step < trainer.max_steps - 1:
            self.mode.__enter__()
            self._watching = True

    def on_train_batch_end(self, trainer, *args) -> None:
        if self._watching:
            self._end()
            self.steps += 1

    def on_exception(self, trainer, *args) -> None:
        if self._watching:
            self._end()

    def _end(self) -> None:
        self.mode.__exit__(None, None, None)
        self._watching = False
