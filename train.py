"""Train a tokenizer, then a prior.

    python train.py tokenizer fit --config small --data.folder pictures --run runs/my-tokenizer
    python train.py prior fit --config small --data.folder pictures --tokenizer runs/my-tokenizer --run runs/my-prior

`--config` takes a file, or the name of one in configs/tokenizer or configs/prior. Every value in it can be overridden
on the command line (--trainer.max_steps 1000), --print_config shows all of them, --help explains them. Ctrl-C ends a
run with a checkpoint; the same command with --ckpt_path last goes on. A run ends with a model folder, RUN/model.
"""

import logging
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentError
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from torch import Tensor
from torchvision.utils import make_grid

import cli
from callbacks import AtEnd, LastCheckpoint, PictureWriter, Progress, reconstruction_grid
from data.datamodule import PriorData, TokenizerData
from data.text import TextTokenizer
from pipeline import TextToImage, fingerprint, load_image_tokenizer, load_image_tokenizer_config
from transformer.sampling import SamplingConfig
from transformer.training import PriorSystem
from vqvae.training import TokenizerSystem

CONFIGS = Path(__file__).parent / "configs"
GRID_PICTURES = 16


class RunCLI(LightningCLI):
    """LightningCLI with a run folder: checkpoints, logs, pictures and the exported model lie in --run."""

    kind: str

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        both = {"model", "datamodule"}
        return {"fit": both | {"train_dataloaders", "val_dataloaders"}, "validate": both | {"dataloaders"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str, default=f"runs/{self.kind}", help="folder of this run")
        parser.add_lightning_class_args(EMAWeightAveraging, "ema")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.save_last": True,
                "checkpoint.save_top_k": 0,
                "checkpoint.enable_version_counter": False,
                "checkpoint.train_time_interval": timedelta(minutes=10),
            }
        )
        parser.link_arguments("run", "trainer.default_root_dir")
        parser.link_arguments("run", "checkpoint.dirpath", compute_fn=lambda run: str(Path(run) / "checkpoints"))

    @property
    def run_folder(self) -> Path:
        return Path(self.config[self.subcommand].run)

    def before_fit(self) -> None:
        self._check_run_folder()
        self.trainer.callbacks += [
            LastCheckpoint(self.run_folder / "checkpoints"),
            Progress(),
            AtEnd(self.export),
            *self.picture_writers(),
        ]

    def _check_run_folder(self) -> None:
        last = self.run_folder / "checkpoints" / "last.ckpt"
        wanted = self.config.fit.ckpt_path
        if wanted == "last" and not last.is_file():
            raise ValueError(f"nothing to go on with: {last} is missing")
        if wanted is None and last.is_file():
            raise ValueError(
                f"{self.run_folder} holds a run already: go on with --ckpt_path last, or name another --run"
            )

    def after_fit(self) -> None:
        print(f"model: {self.run_folder / cli.MODEL_FOLDER}")
        if any(isinstance(callback, LastCheckpoint) and callback.interrupted for callback in self.trainer.callbacks):
            print("interrupted; the same command with --ckpt_path last goes on")

    def export(self, system: pl.LightningModule) -> None:
        """Writes the model folder."""
        raise NotImplementedError

    def picture_writers(self) -> list[PictureWriter]:
        raise NotImplementedError

    def held_out_batch(self) -> dict[str, Any]:
        """The first validation samples, on the CPU."""
        loader = self.datamodule.val_dataloader()
        batches = iter(loader)
        return {name: value[:GRID_PICTURES] for name, value in next(batches).items()}


class TokenizerCLI(RunCLI):
    kind = "tokenizer"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.link_arguments("data.image_size", "model.vae.image_size")

    def export(self, system: TokenizerSystem) -> None:
        system.model.save_pretrained(self.run_folder / cli.MODEL_FOLDER)

    def picture_writers(self) -> list[PictureWriter]:
        return [PictureWriter("reconstructions", self.run_folder / "pictures", self._reconstructions)]

    def _reconstructions(self, system: TokenizerSystem) -> Tensor:
        images = self.held_out_batch()["images"]
        model = system.model
        return reconstruction_grid(images, model.decode(model.encode(images.to(system.device))))


class PriorCLI(RunCLI):
    kind = "prior"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--tokenizer", type=str, required=True, help="run or model folder of the image tokenizer")
        sizes = {"codebook_size": "codebook_size", "grid_size": "grid_size"}
        for name, target in sizes.items():
            parser.link_arguments(
                "tokenizer",
                f"model.prior.{target}",
                compute_fn=lambda path, n=name: getattr(_tokenizer_config(path), n),
            )
        parser.link_arguments("tokenizer", "data.image_size", compute_fn=lambda p: _tokenizer_config(p).image_size)
        parser.link_arguments("data.text.text_len", "model.prior.text_len")
        parser.link_arguments(
            ("data.text.tokenizer", "data.text.vocab_size"), "model.prior.text_vocab_size", compute_fn=_text_vocab_size
        )

    def before_fit(self) -> None:
        super().before_fit()
        self._connect_tokenizer()

    def before_validate(self) -> None:
        self._connect_tokenizer()

    def _connect_tokenizer(self) -> None:
        """What the prior's data needs of the image tokenizer; refuses codes that another one made."""
        self.image_tokenizer = load_image_tokenizer(cli.model_folder(self.config[self.subcommand].tokenizer))
        self.datamodule.setup()
        source = self.datamodule.source
        made_by, own = getattr(source, "fingerprint", None), fingerprint(self.image_tokenizer)
        if made_by is not None and made_by != own:
            raise ValueError(f"the codes in {self.datamodule.codes} are of tokenizer {made_by}, --tokenizer is {own}")
        self.datamodule.encode_images = self._encode

    def _encode(self, images: Tensor) -> Tensor:
        return self.image_tokenizer.to(images.device).encode(images)

    def _pipeline(self, system: PriorSystem) -> TextToImage:
        return TextToImage(system.prior, self.datamodule.text_tokenizer, self.image_tokenizer)

    def export(self, system: PriorSystem) -> None:
        self._pipeline(system).save_pretrained(
            self.run_folder / cli.MODEL_FOLDER, data_fingerprint=self.datamodule.fingerprint
        )

    def picture_writers(self) -> list[PictureWriter]:
        return [PictureWriter("samples", self.run_folder / "pictures", self._samples)]

    def _samples(self, system: PriorSystem) -> Tensor:
        captions = self.held_out_batch()["captions"]
        pictures = self._pipeline(system).sample(captions, seeds=[0] * len(captions), config=SamplingConfig())
        return make_grid(pictures.cpu(), nrow=8, pad_value=1.0)


def _tokenizer_config(path: str) -> Any:
    return load_image_tokenizer_config(cli.model_folder(path))


def _text_vocab_size(tokenizer: str | None, vocab_size: int) -> int:
    return vocab_size if tokenizer is None else TextTokenizer.load(tokenizer).vocab_size


SYSTEMS = {
    "tokenizer": (TokenizerCLI, TokenizerSystem, TokenizerData),
    "prior": (PriorCLI, PriorSystem, PriorData),
}


def resolve_config(kind: str, name: str) -> str:
    """A config's file from its path or its name in configs/. Raises ValueError where there is neither."""
    folder = CONFIGS / kind
    named = folder / f"{name}.yaml"
    if Path(name).is_file():
        return name
    if named.is_file():
        return str(named)
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise ValueError(f"unknown config {name!r}: no such file, and the {kind} configs are {known}")


def train(kind: str, args: list[str]) -> None:
    """What `python train.py KIND ARGS` does. Raises ValueError for a wrong command line or wrong input."""
    if kind not in SYSTEMS:
        raise ValueError(f"expected tokenizer or prior, got {kind!r}")
    args = list(args)
    for i, arg in enumerate(args):
        if arg == "--config" and i + 1 < len(args):
            args[i + 1] = resolve_config(kind, args[i + 1])
        elif arg.startswith("--config="):
            args[i] = f"--config={resolve_config(kind, arg.removeprefix('--config='))}"
    sys.argv = [f"train.py {kind}"]  # the CLI's parser takes its name from here
    run_class, system, data = SYSTEMS[kind]
    torch.set_float32_matmul_precision("high")
    try:
        run_class(
            system,
            data,
            args=args,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={name: {"exit_on_error": False} for name in run_class.subcommands()}
            | {"exit_on_error": False},
            trainer_defaults={
                "use_distributed_sampler": False,  # the data share themselves out, see data/order.py
                "log_every_n_steps": 10,
                "enable_progress_bar": False,  # ours joins in before_fit
                "enable_model_summary": False,
            },
            auto_configure_optimizers=False,
        )
    except ArgumentError as error:
        raise ValueError(str(error)) from error


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    train(sys.argv[1], sys.argv[2:])


if __name__ == "__main__":
    cli.run(main)
