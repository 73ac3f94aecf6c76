"""How a run is set up: RUN/config.yaml, from which it can be repeated, and the same in its checkpoints."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import ArgumentParser, Namespace
from pytorch_lightning.cli import SaveConfigCallback

from whole_files import write_file

REJECTS = "rejects.json"  # in the run's folder: unusable files of its pictures, where no other report is asked for
SETTINGS = "settings"  # in the checkpoint


def settings_of(parser: ArgumentParser, config: Namespace) -> str:
    """YAML from which the run can be repeated: from its start, also where this part is resumed."""
    config = config.clone()
    config.ckpt_path = None
    if config.data.loading.report == str(Path(config.run) / REJECTS):
        config.data.loading.report = None
    return parser.dump(config, skip_unset=False)


class RunConfig(SaveConfigCallback):
    """Writes RUN/config.yaml when a fit begins, and has checkpoints hold the same."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and not self.config.check:
            folder = Path(self.config.run)
            folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / "config.yaml", settings_of(self.parser, self.config).encode())

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[SETTINGS] = yaml.safe_load(settings_of(self.parser, self.config))
