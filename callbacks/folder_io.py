"""Lightning's checkpoints in a CheckpointFolder."""

from typing import Any

import torch
from lightning_fabric.plugins.io import TorchCheckpointIO

from checkpoint_folder import CheckpointFolder


class FolderIO(TorchCheckpointIO):
    """Has a CheckpointFolder write, wherever Lightning says. What keeps it from that is remembered: raised on one
    device, it would leave the others waiting for that one.

    Attributes:
        error: of the last attempt, None where it went well; on the first device, which alone writes.
    """

    def __init__(self, files: CheckpointFolder) -> None:
        self.files = files
        self.error: Exception | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.error = None
        try:
            _check_finite(checkpoint)
            self.files.write(checkpoint)
        except (OSError, FloatingPointError) as error:
            self.error = error


class ReadAlready(TorchCheckpointIO):
    """Gives Lightning a checkpoint that was read and checked: under its name, a run that still trains may have put
    another."""

    def __init__(self, checkpoint: dict[str, Any]) -> None:
        self.checkpoint = checkpoint

    def load_checkpoint(self, path: Any, *args: Any, **settings: Any) -> dict[str, Any]:
        return self.checkpoint


def _check_finite(checkpoint: dict[str, Any]) -> None:
    """Raises FloatingPointError naming weights that are not finite: such a run has no use for its last state."""
    trained = checkpoint.get("current_model_state", {})
    for name, tensor in (*checkpoint["state_dict"].items(), *trained.items()):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise FloatingPointError(f"{name} is not finite")
