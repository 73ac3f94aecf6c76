"""Train a tokenizer, then a prior.

    python train.py tokenizer fit --config small --data.folder pictures --run runs/my-tokenizer
    python train.py prior fit --config small --data.folder pictures --tokenizer runs/my-tokenizer --run runs/my-prior

`--config` takes a file, or the name of one in configs/tokenizer or configs/prior. Every value in it can be overridden
on the command line (--trainer.max_steps 1000), --print_config shows all of them, `fit --help` explains them. Ctrl-C
ends a run with a checkpoint; the same command with --ckpt_path last goes on. `validate` in the place of `fit` measures
the last checkpoint of a run. A run ends with a model folder, RUN/model; RUN/config.yaml says how it was trained.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import ArgumentError
from PIL import Image
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

import cli
from averaging import WeightAveraging
from callbacks.checkpoint import RunCheckpoint
from callbacks.pictures import PictureWriter
from callbacks.process_watch import ProcessWatch, watch_first_process
from callbacks.progress import Progress
from callbacks.run_config import REJECTS, SETTINGS, RunConfig, settings_of
from callbacks.tokenizer_record import ImageTokenizerRecord
from callbacks.update_watch import UpdateWatch
from checkpoint_files import TRAINING_STATE, load_checkpoint
from checkpoint_folder import LAST, CheckpointFolder, CheckpointPolicy
from config_files import dropped_options, with_config_files
from data.datamodule import PriorData, TokenizerData
from data.text import TextTokenizer
from grids import captioned_grid, reconstruction_grid
from locks import only_writer
from pipeline import TextToImage, fingerprint, to_pil_images
from resume_command import resume_command
from settings_changes import changed_settings
from sharding import STRATEGY, strategy_of
from transformer.sampling import SamplingConfig
from transformer.training import PriorSystem
from vqvae.folders import load_image_tokenizer, load_image_tokenizer_config
from vqvae.training import TokenizerSystem

log = logging.getLogger(__name__)

GRID_PICTURES = 16
CHECKPOINT = Path("checkpoints") / LAST  # in the run's folder
NOISE = (  # Lightning's, about things that are as they should be here
    ".*does not have many workers.*",
    ".*LeafSpec.*",
    ".*smaller than the logging interval.*",
    ".*`IterableDataset` has `__len__` defined.*",  # data/shards/streaming.py keeps to it with any number of workers
    ".*callback, but loading a checkpoint outside the 'fit' stage.*",
    ".*all_gather is deprecated.*",
    ".*recommended to use `self.log\\('val/(psnr|relaxation_gap|code).*",  # computed over all devices as they are
)


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
        parser.add_argument("--max_skipped", type=int, default=10, help="updates in a row that may not be finite")
        parser.add_lightning_class_args(WeightAveraging, "ema")
        parser.link_arguments("run", "trainer.default_root_dir")

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        """Leaves sys.argv alone: on several devices, Lightning starts the script again with it."""
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        trainer = self.config[self.subcommand].trainer
        if trainer.precision is None:
            trainer.precision = cli.default_precision(trainer.accelerator)
        batches = trainer.max_steps * trainer.accumulate_grad_batches
        if isinstance(trainer.val_check_interval, int) and 0 < batches < trainer.val_check_interval:
            trainer.val_check_interval = batches  # a short run is validated once, at its end
        data = self.config[self.subcommand].data
        files = data.folder or data.shards
        if self.subcommand == "fit" and files and data.loading.report is None and not trainer.fast_dev_run:
            data.loading.report = str(self.run_folder / REJECTS)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self.config_init[self.subcommand]
        callbacks = [*(config.trainer.callbacks or []), *self._callbacks()]
        if config.trainer.logger is None:
            kwargs["logger"] = self.subcommand == "fit" and TensorBoardLogger(
                self.run_folder, "tensorboard", version=""
            )
        kwargs["strategy"] = strategy_of(config.trainer.strategy, self.kind, self.can_spread)
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    @property
    def spread(self) -> bool:
        """Whether the weights are to be spread over the devices."""
        return self.config[self.subcommand].trainer.strategy == STRATEGY

    def _callbacks(self) -> list[Callback]:
        """In this order: Lightning puts the weight averaging behind them, and the checkpoint behind that."""
        picture = PictureWriter(self.picture_name, self.run_folder / "pictures", self.draw)
        policy = self.config_init[self.subcommand].checkpoints
        self.files = CheckpointFolder((self.run_folder / CHECKPOINT).parent, policy)
        self.checkpoint = RunCheckpoint(self.files)
        watch = UpdateWatch(self.run_folder / "spikes.jsonl", self.config[self.subcommand].max_skipped)
        # Drawn on one device, which would wait for the others' shares of the weights for ever.
        return [*([] if self.spread else [picture]), watch, ProcessWatch(), Progress(), self.checkpoint]

    @property
    def run_folder(self) -> Path:
        return Path(self.config[self.subcommand].run)

    def fit(self, model: pl.LightningModule, datamodule: pl.LightningDataModule, ckpt_path: str | None) -> None:
        with only_writer(self.run_folder) if rank_zero_only.rank == 0 else nullcontext():
            ckpt_path = self._start(ckpt_path)
            self.prepare()
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
            if self.checkpoint.failed:
                raise OSError(f"the run's end could not be saved: {self.checkpoint.error or 'see the first device'}")
            if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
                self._end(ckpt_path)
        if self.checkpoint.interrupted:
            raise KeyboardInterrupt
        if self.checkpoint.stopped:
            raise SystemExit(0)  # whoever takes the machine away is to see no error, and scripts are not to go on

    def _end(self, resumed: str | None) -> None:
        if self.checkpoint.stopped:
            print(f"stopped at step {self.trainer.global_step}; to go on: {self.to_go_on}")
        self._export_checkpoint(resumed)
        print(f"model: {self.run_folder / cli.MODEL_FOLDER}")

    def _start(self, ckpt_path: str | None) -> str | None:
        """The checkpoint to go on from. Raises ValueError where a run would be overwritten, or there is none."""
        holds_run = bool(self.files.newest_first())
        if ckpt_path is None:
            if holds_run:
                raise ValueError(
                    f"{self.run_folder} holds a run already: go on with --ckpt_path last, or name another --run"
                )
            return None
        path, checkpoint = self._existing_checkpoint(ckpt_path, TRAINING_STATE)
        if holds_run and not self._existing_checkpoint("last")[0].samefile(path):
            raise ValueError(
                f"{self.run_folder} holds a run already, and {path} is not its last checkpoint: name another --run"
            )
        now = yaml.safe_load(settings_of(self._parser(self.subcommand), self.config[self.subcommand]))
        for change in changed_settings(checkpoint.get(SETTINGS, now), now):  # the first checkpoints had none
            log.warning("other than before: %s", change)
        log.info("going on from %s, step %s", path, checkpoint["global_step"])
        return str(path)

    def _existing_checkpoint(self, ckpt_path: str, keys: Sequence[str] = ()) -> tuple[Path, dict[str, Any]]:
        load = partial(load_checkpoint, model=self.model, keys=keys)
        return self.files.newest_good(load) if ckpt_path == "last" else (Path(ckpt_path), load(ckpt_path))

    def _export_checkpoint(self, resumed: str | None) -> None:
        """Exports the averaged weights in the checkpoint; in the resumed one where that fit was over already."""
        own = self.files.last
        checkpoint = load_checkpoint(own if own.is_file() or resumed is None else resumed, self.model)
        self.load_whole(checkpoint["state_dict"])
        self.export(self.run_folder / cli.MODEL_FOLDER)

    def load_whole(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(weights)

    def validate(
        self, model: pl.LightningModule, datamodule: pl.LightningDataModule, ckpt_path: str | None, verbose: bool
    ) -> None:
        path, _ = self._existing_checkpoint(ckpt_path or "last")
        self.prepare()
        self.trainer.validate(model, datamodule=datamodule, ckpt_path=str(path), verbose=verbose, weights_only=True)

    def prepare(self) -> None:
        """What is left to do before the Trainer takes over."""

    def export(self, folder: Path) -> None:
        """Writes the model folder."""
        raise NotImplementedError

    picture_name: str

    def draw(self, system: pl.LightningModule) -> Image.Image:
        """The picture that shows how far the training is."""
        raise NotImplementedError

    @cached_property
    def held_out_batch(self) -> dict[str, Any]:
        """The first validation samples, on the CPU."""
        batch = next(iter(self.datamodule.val_dataloader()))
        return {name: value[:GRID_PICTURES] for name, value in batch.items()}


class TokenizerCLI(RunCLI):
    kind = "tokenizer"
    picture_name = "reconstructions"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.link_arguments("data.image_size", "model.vae.image_size")

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        super().parse_arguments(parser, args + dropped_options(args))

    def prepare(self) -> None:
        """Refuses what the Trainer cannot do beside a discriminator, whose training is stepped by hand."""
        if self.model.adversary is None:
            return
        for name, usual, instead in (
            ("gradient_clip_val", None, "; model.adversarial.gradient_clip_val clips both networks"),
            ("accumulate_grad_batches", 1, ""),
        ):
            if (value := getattr(self.trainer, name)) not in (usual, 0):
                raise ValueError(
                    f"trainer.{name} is {value}, which training with a discriminator does not know: expected "
                    f"{'null' if usual is None else usual}{instead}"
                )

    def export(self, folder: Path) -> None:
        self.model.model.save_pretrained(folder)

    def draw(self, system: TokenizerSystem) -> Image.Image:
        images = self.held_out_batch["images"]
        recon = system.model.decode(system.model.encode(images.to(system.device)))
        return reconstruction_grid(to_pil_images(images), to_pil_images(recon))


class PriorCLI(RunCLI):
    kind = "prior"
    can_spread = True
    picture_name = "samples"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--tokenizer", type=str, required=True, help="run or model folder of the image tokenizer")
        for name in ("codebook_size", "grid_size"):
            parser.link_arguments("tokenizer", f"model.prior.{name}", compute_fn=_of_tokenizer(name))
        parser.link_arguments("tokenizer", "data.image_size", compute_fn=_of_tokenizer("image_size"))
        parser.link_arguments("data.text.text_len", "model.prior.text_len")
        parser.link_arguments(
            ("data.text.tokenizer", "data.text.vocab_size"), "model.prior.text_vocab_size", compute_fn=_text_vocab_size
        )

    def _callbacks(self) -> list[Callback]:
        self.record = ImageTokenizerRecord()
        return [self.record, *super()._callbacks()]

    def prepare(self) -> None:
        """Gives the data what they need of the image tokenizer; refuses codes that another one made."""
        self.image_tokenizer = load_image_tokenizer(cli.model_folder(self.config[self.subcommand].tokenizer))
        self.record.fingerprint = own = fingerprint(self.image_tokenizer)
        self.datamodule.setup()
        made_by = getattr(self.datamodule.source, "fingerprint", None)
        if made_by is not None and made_by != own:
            raise ValueError(f"the codes in {self.datamodule.codes} are of tokenizer {made_by}, --tokenizer is {own}")
        self.datamodule.encode_images = self._encode

    def _encode(self, images: Tensor) -> Tensor:
        return self.image_tokenizer.to(images.device).encode(images)

    def _pipeline(self, system: PriorSystem) -> TextToImage:
        return TextToImage(system.prior, self.datamodule.text_tokenizer, self.image_tokenizer.to(system.device))

    def load_whole(self, weights: dict[str, Tensor]) -> None:
        if self.spread:
            self.model.unspread(weights)
        else:
            super().load_whole(weights)

    def export(self, folder: Path) -> None:
        self._pipeline(self.model).save_pretrained(folder, data_fingerprint=self.datamodule.fingerprint)

    def draw(self, system: PriorSystem) -> Image.Image:
        captions = self.held_out_batch["captions"]
        pictures = self._pipeline(system).sample(captions, seeds=[0] * len(captions), config=SamplingConfig())
        return captioned_grid(
            [(caption, [picture]) for caption, picture in zip(captions, to_pil_images(pictures), strict=True)]
        )


def _of_tokenizer(name: str) -> Callable[[str | None], Any]:
    def value(folder: str | None) -> Any:
        if folder is None:
            raise ValueError("--tokenizer is missing: the run or model folder of the image tokenizer")
        return getattr(load_image_tokenizer_config(cli.model_folder(folder)), name)

    return value


def _text_vocab_size(tokenizer: str | None, vocab_size: int) -> int:
    return vocab_size if tokenizer is None else TextTokenizer.load(tokenizer).vocab_size


KINDS = {
    "tokenizer": (TokenizerCLI, TokenizerSystem, TokenizerData),
    "prior": (PriorCLI, PriorSystem, PriorData),
}


def train(kind: str, args: list[str]) -> dict[str, float]:
    """What `python train.py KIND ARGS` does; returns the last values of what was logged (train/loss, val/psnr, ...).

    Raises ValueError for a wrong command line or wrong input, OSError where the last state could not be written. After
    a run that Ctrl-C has ended, KeyboardInterrupt; after one that SIGTERM or SIGUSR1 has ended, SystemExit(0).
    """
    if kind not in KINDS:
        raise ValueError(f"expected tokenizer or prior, got {kind!r}")
    run_class, system, data = KINDS[kind]
    options = {"exit_on_error": False}
    torch.set_float32_matmul_precision("high")
    try:
        run = run_class(
            system,
            data,
            args=with_config_files(kind, args),
            to_go_on=resume_command(kind, args),
            save_config_callback=RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            parser_kwargs=options
            | {"prog": f"train.py {kind}", "description": f"Train a {kind}."}
            | dict.fromkeys(run_class.subcommands(), options),
            trainer_defaults={
                "use_distributed_sampler": False,  # the data share themselves out, see data/order.py
                "log_every_n_steps": 10,
                "enable_model_summary": False,
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except ArgumentError as error:
        raise ValueError(cli.of_command_line(error)) from error
    return {name: float(value) for name, value in run.trainer.callback_metrics.items()}


def be_quiet() -> None:
    """What is of interest is said, once; Lightning's advice is not."""
    level = logging.INFO if rank_zero_only.rank == 0 else logging.ERROR  # further devices would say the same again
    logging.basicConfig(level=level, format="%(message)s")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)


def main() -> None:
    watch_first_process()
    be_quiet()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    train(sys.argv[1], sys.argv[2:])


if __name__ == "__main__":
    cli.run(main)
