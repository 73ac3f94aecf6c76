"""Pictures while a run trains, on the disk and for the loggers."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback

from callbacks.run_state import after_last_step
from grids import save_png

log = logging.getLogger(__name__)

PICTURE_SHARE = 0.05  # of a run's time that drawing pictures may take


class PictureWriter(Callback):
    """During a validation, if the last time is long enough ago, draws a picture to disk and for the loggers.

    It has to come before a weight averaging callback in the Trainer's list: at the end of the validation's epoch, that
    one puts the weights of the training back in the place of the averaged ones.

    Args:
        name: of the picture; the files are folder/NAME-STEP.png.
        folder: where they go.
        draw: makes the picture from the system being validated, on one device alone.
        seconds: at least so long apart, and longer if drawing takes more than PICTURE_SHARE of the time. After the last
            step there is always one.
    """

    def __init__(
        self, name: str, folder: Path, draw: Callable[[pl.LightningModule], Image.Image], seconds: float = 60
    ) -> None:
        self.name, self.folder, self.draw, self.seconds = name, folder, draw, seconds
        self._next = -math.inf

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        started = time.monotonic()
        due = started >= self._next or after_last_step(trainer)
        idle = trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run
        if idle or not due or not trainer.is_global_zero:
            return
        with torch.no_grad():
            picture = self.draw(pl_module)
        try:
            save_png(picture, self.folder / f"{self.name}-{trainer.global_step:07d}.png")
            self._show(picture, trainer)
        except OSError as error:  # a full disk costs a picture, not the run
            log.warning("the picture of step %s could not be written: %s", trainer.global_step, error)
        took = time.monotonic() - started
        self._next = started + max(self.seconds, took / PICTURE_SHARE)

    def _show(self, picture: Image.Image, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):  # Weights & Biases and others
                logger.log_image(self.name, [picture], trainer.global_step)
            elif hasattr(logger.experiment, "add_image"):  # TensorBoard
                logger.experiment.add_image(self.name, np.asarray(picture), trainer.global_step, dataformats="HWC")
