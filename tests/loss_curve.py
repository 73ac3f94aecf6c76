"""A callback for runs on several devices, in processes that a test cannot look into."""

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch


class LossCurve(pl.Callback):
    """Writes RUN/curve.json: of each update the mean of the devices' losses, and the norm of its gradients."""

    def __init__(self) -> None:
        self.curve: dict[int, list[float]] = {}
        self.loss, self.batches = 0.0, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = trainer.callback_metrics["train/loss"].detach().clone()
        self.loss += float(trainer.strategy.reduce(loss, reduce_op="mean") if trainer.world_size > 1 else loss)
        self.batches += 1
        if self.batches == trainer.accumulate_grad_batches:
            norm = float(trainer.callback_metrics["train/grad_norm"])
            self.curve[trainer.global_step] = [self.loss / self.batches, norm]
            self.loss, self.batches = 0.0, 0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "curve.json"
            path.write_text(json.dumps({step: self.curve[step] for step in sorted(self.curve)}))


def curve_of(run: Path) -> dict[int, torch.Tensor]:
    return {int(step): torch.tensor(values) for step, values in json.loads((run / "curve.json").read_text()).items()}
