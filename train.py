"""Train a tokenizer, then a prior.

    python train.py tokenizer fit --config small --data.folder pictures --run runs/my-tokenizer
    python train.py prior fit --config small --data.folder pictures --tokenizer runs/my-tokenizer --run runs/my-prior

`--config` takes a file, or the name of one in configs/tokenizer or configs/prior. Every value in it can be overridden
on the command line (--trainer.max_steps 1000), --print_config shows all of them, `fit --help` explains them; with
--check, two updates find out what a run would take. Ctrl-C or SIGTERM ends a run with a checkpoint; however it ended,
the same command with --ckpt_path last goes on. `validate` in the place of `fit` measures the last checkpoint of a run.
A run ends with a model folder, RUN/model; RUN/config.yaml says how it was trained.
"""

import sys

import start_signals

if __name__ == "__main__":  # before what takes seconds to import
    start_signals.install(start_signals.trains(sys.argv[1:]))


import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError
from PIL import Image
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

import cli
from callbacks.run_config import RunConfig
from callbacks.tokenizer_record import ImageTokenizerRecord
from config_files import dropped_options, with_config_files
from data.datamodule import PriorData, TokenizerData
from data.text import TextTokenizer
from grids import captioned_grid, reconstruction_grid
from pipeline import TextToImage, fingerprint, to_pil_images
from process_watch import watch_first_process
from resume_command import resume_command
from run_cli import RunCLI
from transformer.sampling import SamplingConfig
from transformer.training import PriorSystem
from vqvae.folders import load_image_tokenizer, load_image_tokenizer_config
from vqvae.training import TokenizerSystem

NOISE = (  # Lightning's, about things that are as they should be here
    ".*does not have many workers.*",
    ".*LeafSpec.*",
    ".*smaller than the logging interval.*",
    ".*`IterableDataset` has `__len__` defined.*",  # data/shards/streaming.py keeps to it with any number of workers
    ".*callback, but loading a checkpoint outside the 'fit' stage.*",
    ".*all_gather is deprecated.*",
    ".*recommended to use `self.log\\('val/(psnr|relaxation_gap|code).*",  # computed over all devices as they are
)


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
    be_quiet()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    kind, args = sys.argv[1], sys.argv[2:]
    watch_first_process(f"To go on from the last checkpoint: {resume_command(kind, args)}")
    train(kind, args)


if __name__ == "__main__":
    cli.run(main)
