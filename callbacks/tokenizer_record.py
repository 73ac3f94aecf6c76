"""Which image tokenizer a prior's checkpoint belongs to."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class ImageTokenizerRecord(Callback):
    """Has the fingerprint of the image tokenizer in a prior's checkpoints; one that has another is refused.

    Codes mean nothing without it. Raises ValueError when a checkpoint is loaded.
    """

    NAME = "image_tokenizer"  # in the checkpoint

    def __init__(self) -> None:
        self.fingerprint: str | None = None  # to be set before the fit or the validation

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[self.NAME] = self.fingerprint

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        saved = checkpoint.get(self.NAME, self.fingerprint)  # the first checkpoints did not have it
        if saved != self.fingerprint:
            raise ValueError(
                f"the checkpoint was trained on codes of tokenizer {saved}, --tokenizer is {self.fingerprint}"
            )
