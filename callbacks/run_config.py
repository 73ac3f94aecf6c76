"""RUN/config.yaml, from which a run can be repeated."""

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.cli import SaveConfigCallback

REJECTS = "rejects.json"  # in the run's folder: unusable files of its pictures, where no other report is asked for


class RunConfig(SaveConfigCallback):
    """Writes RUN/config.yaml, from which the run can be repeated: from its start, also where this part was resumed."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            folder = Path(self.config.run)
            folder.mkdir(parents=True, exist_ok=True)
            config = self.config.clone()
            config.ckpt_path = None
            if config.data.loading.report == str(folder / REJECTS):
                config.data.loading.report = None
            self.parser.save(config, folder / "config.yaml", skip_unset=False, overwrite=True)
