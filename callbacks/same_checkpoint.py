"""Whether all devices go on from one and the same checkpoint, or measure it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback

from checkpoint_files import content_of


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that a device goes on from, or measures."""

    path: Path
    step: int
    content: str
    """Of `content_of`."""

    @classmethod
    def of(cls, path: Path, checkpoint: dict[str, Any]) -> "Resumed":
        return cls(path, checkpoint["global_step"], content_of(path))


class SameCheckpoint(Callback):
    """Has all devices end where they would use checkpoints that differ, as those that torchrun or a cluster has
    started may: each of these chooses for itself, and other machines may see another state of a shared folder.

    Attributes:
        resumed: this device's; None: it begins anew. To be set before the Trainer starts.
    """

    def __init__(self) -> None:
        self.resumed: Resumed | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Raises the same ValueError on all devices, before anything is loaded."""
        if trainer.world_size == 1:
            return
        does = "goes on from" if stage == "fit" else "measures"
        everywhere: list[Resumed | None] = [None] * trainer.world_size
        dist.all_gather_object(everywhere, self.resumed)
        for device, other in enumerate(everywhere):
            if _state(other) != _state(everywhere[0]):
                raise ValueError(
                    f"device 0 {does} {_said(everywhere[0])}, device {device} {does} {_said(other)}: expected the same "
                    "file everywhere"
                )


def _state(resumed: Resumed | None) -> tuple[int, str] | None:
    return resumed and (resumed.step, resumed.content)


def _said(resumed: Resumed | None) -> str:
    return "no checkpoint" if resumed is None else f"{resumed.path}, step {resumed.step} ({resumed.content[:8]})"
