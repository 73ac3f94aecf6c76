"""LightningCLI with a run folder: what both kinds of training share on their command line, and how a run goes."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import SUPPRESS
from PIL import Image
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

import cli
import start_signals
from averaging import EPOCH, WeightAveraging, drop_epoch
from callbacks.checkpoint import RunCheckpoint
from callbacks.dry_run import DryRun
from callbacks.event_log import EventLog
from callbacks.folder_io import ReadAlready
from callbacks.optimizer_settings import OptimizerSettings
from callbacks.output import say
from callbacks.pictures import PictureWriter
from callbacks.progress import Progress
from callbacks.run_config import REJECTS, SETTINGS, settings_of
from callbacks.same_checkpoint import Resumed, SameCheckpoint
from callbacks.update_watch import UpdateWatch
from checkpoint_files import TRAINING_STATE, load_checkpoint
from checkpoint_folder import LAST, CheckpointFolder, CheckpointPolicy
from data.worker_signals import killed_workers_said
from locks import only_writer
from memory import model_too_large_said, out_of_memory_said
from precision import default_precision
from process_watch import processes_watched
from settings_changes import changed_settings
from sharding import STRATEGY, strategy_of

log = logging.getLogger(__name__)

GRID_PICTURES = 16
CHECKPOINT = Path("checkpoints") / LAST  # in the run's folder
CHOSEN = "IMAGEWORDS_CHECKPOINT"  # in the environment of further processes: the last good one that the first has found
DRY_RUN = {  # of the Trainer, with --check
    "logger": False,
    "callbacks": None,
    "enable_progress_bar": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
    "min_epochs": None,
    "min_steps": None,
}


class RunCLI(LightningCLI):
    """LightningCLI with a run folder: checkpoint, logs, pictures and the exported model lie in --run."""

    kind: str
    can_spread = False  # the weights over devices

    def __init__(self, *args: Any, to_go_on: str, **kwargs: Any) -> None:
        """Runs the command line's subcommand at once. `to_go_on` is the command for the case that it is interrupted."""
        self.to_go_on = to_go_on
        super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        skipped = {"model", "datamodule", "weights_only"}
        return {"fit": skipped | {"train_dataloaders", "val_dataloaders"}, "validate": skipped | {"dataloaders"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str, default=f"runs/{self.kind}", help="folder of this run")
        parser.add_argument(
            "--checkpoints", type=CheckpointPolicy, default=CheckpointPolicy(), help="when, and how many"
        )
        parser.add_argument("--check", action="store_true", help="try two updates and say what a run would take")
        skipped = "so many updates in a row that are not finite end a run, at the next step that is logged"
        parser.add_argument("--max_skipped", type=int, default=10, help=skipped)
        parser.add_lightning_class_args(WeightAveraging, "ema")
        parser.add_argument(f"--ema.{EPOCH}", default=SUPPRESS, help=SUPPRESS)  # see `drop_epoch`
        parser.link_arguments("run", "trainer.default_root_dir")

    @property
    def checks(self) -> bool:
        """Whether this is no run, but a look at what one would take."""
        return self.subcommand == "fit" and self.config[self.subcommand].check

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        """Leaves sys.argv alone: on several devices, Lightning starts the script again with it."""
        self.config = parser.parse_args(args)
        drop_epoch(self.config[self.config.subcommand].ema)

    def _parse_ckpt_path(self) -> None:
        """Lightning's would read the file before anything has looked at it; `_start` and `validate` read it checked."""

    def before_instantiate_classes(self) -> None:
        trainer = self.config[self.subcommand].trainer
        if self.subcommand != "fit" and self.config[self.subcommand].check:
            raise ValueError(f"--check is for fit, which it tries: {self.subcommand} has none")
        if trainer.gradient_clip_val is not None and not trainer.gradient_clip_val >= 0:
            raise ValueError(f"trainer.gradient_clip_val is {trainer.gradient_clip_val}, expected at least 0, or null")
        for name in ("max_steps", "max_epochs"):
            if self.subcommand == "fit" and trainer[name] == 0:
                raise ValueError(f"trainer.{name} is 0, expected at least 1, or -1 for no limit")
        for name in ("limit_train_batches", "limit_val_batches"):
            if isinstance(trainer[name], float) and trainer[name] == 1:  # which of the two was meant, is lost by now
                raise ValueError(
                    f"trainer.{name} is 1, a single batch or all of them: expected null for all, a part below 1 or at "
                    "least 2 batches"
                )
        if trainer.precision is None:
            trainer.precision = default_precision(trainer.accelerator)
        if not isinstance(trainer.val_check_interval, int | float | None):
            raise ValueError(
                f"trainer.val_check_interval is {trainer.val_check_interval!r}, expected a number of batches or a part "
                "of an epoch: after times, a run that goes on would be validated at other steps than one left alone"
            )
        data = self.config[self.subcommand].data
        self.given = self.config[self.subcommand].clone()  # without what a check sets
        if self.checks:
            log.info("check: building the model")
            for name, value in DRY_RUN.items():
                trainer[name] = value
            trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch and 1
            data.loading.report = None
        files = data.folder or data.shards
        writes = self.subcommand == "fit" and not trainer.fast_dev_run and not self.checks
        if writes and files and data.loading.report is None:
            data.loading.report = str(self.run_folder / REJECTS)

    def instantiate_classes(self) -> None:
        with model_too_large_said():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self.config_init[self.subcommand]
        callbacks = [*(config.trainer.callbacks or []), *self._callbacks()]
        batches, interval = config.trainer.max_steps * config.trainer.accumulate_grad_batches, "val_check_interval"
        if isinstance(config.trainer[interval], int) and 0 < batches < config.trainer[interval]:
            kwargs[interval] = batches  # a short run is validated once, at its end
        if config.trainer.logger is None:
            kwargs["logger"] = self.subcommand == "fit" and EventLog(self.run_folder, "tensorboard", version="")
        kwargs["strategy"] = strategy_of(config.trainer.strategy, self.kind, self.can_spread)
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    @property
    def spread(self) -> bool:
        """Whether the weights are to be spread over the devices."""
        return self.config[self.subcommand].trainer.strategy == STRATEGY

    def _callbacks(self) -> list[Callback]:
        """In this order: Lightning puts the weight averaging behind them, and the checkpoint behind that."""
        policy = self.config_init[self.subcommand].checkpoints
        self.files = CheckpointFolder((self.run_folder / CHECKPOINT).parent, policy)
        self.same_checkpoint = SameCheckpoint()
        if self.checks:
            self.dry_run = DryRun(self.run_folder, policy)
            return [self.same_checkpoint, self.dry_run]
        self.checkpoint = RunCheckpoint(self.files)
        picture = PictureWriter(self.picture_name, self.run_folder / "pictures", self.draw)
        watch = UpdateWatch(self.run_folder / "spikes.jsonl", self.config[self.subcommand].max_skipped)
        # Drawn on one device, which would wait for the others' shares of the weights for ever.
        shown = [] if self.spread else [picture]
        return [self.same_checkpoint, *shown, watch, OptimizerSettings(), Progress(), self.checkpoint]

    @property
    def run_folder(self) -> Path:
        return Path(self.config[self.subcommand].run)

    def fit(self, model: pl.LightningModule, datamodule: pl.LightningDataModule, ckpt_path: str | None) -> None:
        lock = only_writer(self.run_folder) if rank_zero_only.rank == 0 else nullcontext()
        with lock, nullcontext() if self.checks else self.checkpoint.signals_kept():
            ckpt_path = self._start(ckpt_path)
            if self.checks:
                log.info("check: looking through the data")
            self.prepare()
            datamodule.setup()  # before Lightning begins a log
            out_of_memory = out_of_memory_said(datamodule.loading.batch_size)
            with self._going_on_said(), killed_workers_said(), out_of_memory, processes_watched(self.trainer):
                self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
            if self.checks:
                self.dry_run.report()
                return
            if self.checkpoint.failed:
                why = self.checkpoint.error or "see the first device"
                raise OSError(f"the run's end could not be saved: {why}; with room for it, go on: {self.to_go_on}")
            if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
                self._end(ckpt_path)
        start_signals.leave()
        if self.checkpoint.interrupted:
            raise KeyboardInterrupt
        if self.checkpoint.stopped:
            raise SystemExit(0)  # whoever takes the machine away is to see no error, and scripts are not to go on

    @contextmanager
    def _going_on_said(self) -> Iterator[None]:
        """Where an error ends the training, says what goes on from the last checkpoint, if there is one."""
        try:
            yield
        except Exception as error:
            began = self.files.written or isinstance(error, ChildProcessError | FloatingPointError)
            if rank_zero_only.rank == 0 and began and self.files.newest_first():
                print(f"to go on from the last checkpoint: {self.to_go_on}", flush=True)
            raise

    def _end(self, resumed: str | None) -> None:
        if self.checkpoint.stopped:
            say(f"stopped at step {self.trainer.global_step}; to go on: {self.to_go_on}", sys.stdout)
        if resumed is not None and not self.files.written:
            say(f"no step was left to train: {resumed} is of step {self.trainer.global_step}", sys.stdout)
        self._export_checkpoint(resumed)
        say(f"model: {self.run_folder / cli.MODEL_FOLDER}", sys.stdout)

    def _start(self, ckpt_path: str | None) -> str | None:
        """The checkpoint to go on from. Raises ValueError where a run would be overwritten, or there is none."""
        holds_run = bool(self.files.newest_first())
        if ckpt_path is None:
            if holds_run:
                raise ValueError(
                    f"{self.run_folder} holds a run already: go on with --ckpt_path last, or name another --run"
                )
            return None
        if ckpt_path == "last" and self.files.empty:  # a scheduler repeats its command, whatever became of the last job
            log.warning("no checkpoint in %s yet: the run begins at its beginning", self.run_folder)
            return None
        path, checkpoint = self._existing_checkpoint(ckpt_path, TRAINING_STATE)
        if ckpt_path != "last" and holds_run and not self._existing_checkpoint("last")[0].samefile(path):
            raise ValueError(
                f"{self.run_folder} holds a run already, and {path} is not its last checkpoint: name another --run"
            )
        parser = self._parser(self.subcommand)
        now = yaml.safe_load(settings_of(parser, self.given))
        defaults = yaml.safe_load(parser.dump(parser.get_defaults(), skip_unset=False, skip_validation=True))
        for change in changed_settings(checkpoint.get(SETTINGS, now), now, defaults):  # the first checkpoints had none
            log.warning("other than before: %s", change)
        log.info("going on from %s, step %s", path, checkpoint["global_step"])
        self.same_checkpoint.resumed = Resumed.of(path, checkpoint)
        return str(path)

    def _existing_checkpoint(self, ckpt_path: str, keys: Sequence[str] = ()) -> tuple[Path, dict[str, Any]]:
        """For "last", the first process chooses; those that it starts afterwards load the same one, or fail."""
        load = partial(load_checkpoint, model=self.model, keys=keys)
        if rank_zero_only.rank != 0 and ckpt_path == "last":
            ckpt_path = os.environ.get(CHOSEN, ckpt_path)
        if ckpt_path != "last":
            return Path(ckpt_path), load(ckpt_path)
        path, checkpoint = self.files.newest_good(load)
        os.environ[CHOSEN] = str(path)
        return path, checkpoint

    def _export_checkpoint(self, resumed: str | None) -> None:
        """Exports the averaged weights in the checkpoint; in the resumed one where that fit was over already."""
        path = self.files.last if self.files.written or resumed is None else resumed
        checkpoint = load_checkpoint(path, self.model)
        self.load_whole(checkpoint["state_dict"])
        self.export(self.run_folder / cli.MODEL_FOLDER)

    def load_whole(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(weights)

    def validate(
        self, model: pl.LightningModule, datamodule: pl.LightningDataModule, ckpt_path: str | None, verbose: bool
    ) -> None:
        path, checkpoint = self._existing_checkpoint(ckpt_path or "last")
        self.same_checkpoint.resumed = Resumed.of(path, checkpoint)
        self.trainer.strategy.checkpoint_io = ReadAlready(checkpoint)
        self.prepare()
        with killed_workers_said(), processes_watched(self.trainer):
            self.trainer.validate(model, datamodule=datamodule, ckpt_path=str(path), verbose=verbose, weights_only=True)

    def prepare(self) -> None:
        """What is left to do before the Trainer takes over."""

    def export(self, folder: Path) -> None:
        """Writes the model folder."""
        raise NotImplementedError  # each kind of training has its own

    picture_name: str

    def draw(self, system: pl.LightningModule) -> Image.Image:
        """The picture that shows how far the training is."""
        raise NotImplementedError  # each kind of training has its own

    @cached_property
    def held_out_batch(self) -> dict[str, Any]:
        """The first validation samples, on the CPU."""
        batch = next(iter(self.datamodule.val_dataloader()))
        return {name: value[:GRID_PICTURES] for name, value in batch.items()}
