"""Other people's checkpoints as tokenizers of ours.

    python -m vqvae.pretrained encoder.pkl decoder.pkl --out FOLDER     OpenAI's dVAE
    python -m vqvae.pretrained last.ckpt model.yaml --out FOLDER        a VQGAN of taming-transformers, Gumbel or not
    python -m vqvae.pretrained vq_ds8_c2i.pt --out FOLDER               a tokenizer of LlamaGen
    python -m vqvae.pretrained lpips FILE --out FOLDER                  weights of the perceptual loss

What a file is, and the sizes of its network, are read off its weights. Nothing that a file names is imported or called
(foreign/pickles.py).
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from model_files import mismatches
from vqvae.foreign import llamagen, openai, taming
from vqvae.foreign.weights import Weights, read_weights
from vqvae.model import DiscreteVAE

FORMATS = (openai, taming, llamagen)
YAML = (".yaml", ".yml")
IMAGE_SIZE = 256  # of the pictures that all of them were trained on, as released
SHOWN = 3  # names or problems in a message


class Pretrained(NamedTuple):
    """A tokenizer in evaluation mode, and in words what it was converted from."""

    name: str
    model: DiscreteVAE


def load(files: Sequence[Path], image_size: int | None = None) -> Pretrained:
    """The tokenizer in `files`, which are all those that belong to it, in any order.

    Args:
        files: as in the examples above. The yaml file, which need not be there, says how large pictures are.
        image_size: side of the pictures in pixels; None: as in the yaml file, or 256.

    Raises ValueError naming the file that is missing, damaged, of none of the formats, or of a network that is not
    built here; UnsafePickle, a ValueError too, where it names functions that no weights need.
    """
    weights = [read_weights(path) for path in files if path.suffix not in YAML]
    configs = [path for path in files if path.suffix in YAML]
    kind = _kind_of(weights)
    if configs and (kind is not taming or len(configs) > 1):
        raise ValueError(f"{configs[-1]} is one yaml file too many for {kind.NAME}")
    if image_size is None:
        image_size = taming.resolution(configs[0]) if configs else IMAGE_SIZE
    try:
        name, config, tensors = kind.convert(weights, image_size)
        tensors = {key: tensor.float() for key, tensor in tensors.items()}
        with torch.device("meta"):  # without memory for sizes that only the file believes in
            problems = mismatches(tensors, DiscreteVAE(config).state_dict())
    except Exception as error:  # the names and shapes in a file are anybody's
        raise ValueError(f"{weights[0].path}: {error or type(error).__name__}") from error
    if problems:
        shown = "; ".join(problems[:SHOWN]) + ("; ..." if len(problems) > SHOWN else "")
        raise ValueError(f"{weights[0].path} is {name} with other layers than it has here: {shown}")
    model = DiscreteVAE(config)
    model.load_state_dict(tensors)
    return Pretrained(name, model.eval())


def _kind_of(weights: Sequence[Weights]) -> ModuleType:
    kinds = []
    for file in weights:
        kind = next((kind for kind in FORMATS if kind.recognises(file.tensors)), None)
        if kind is None:
            names = ", ".join(list(file.tensors)[:SHOWN]) + (", ..." if len(file.tensors) > SHOWN else "")
            expected = "; ".join(kind.EXPECTED for kind in FORMATS)
            raise ValueError(f"{file.path} has {len(file.tensors)} tensors ({names}), expected one of: {expected}")
        kinds.append(kind)
    if not kinds:
        raise ValueError(f"no weights among the files, expected one of: {'; '.join(kind.EXPECTED for kind in FORMATS)}")
    if len(set(kinds)) > 1 or len(kinds) != kinds[0].FILES:
        found = ", ".join(f"{file.path} ({kind.NAME})" for file, kind in zip(weights, kinds, strict=True))
        raise ValueError(f"{kinds[0].NAME} has its weights in {kinds[0].FILES} file(s), found {len(kinds)}: {found}")
    return kinds[0]


def save(model: DiscreteVAE, out: Path) -> None:
    """Writes the model folder `out` in one step. Raises ValueError where there is something already."""
    check_is_free(out)
    beside = out.with_name(f".{out.name}.part")
    shutil.rmtree(beside, ignore_errors=True)  # of a conversion that was interrupted
    model.save_pretrained(beside)
    if out.exists():
        out.rmdir()
    beside.rename(out)


def check_is_free(out: Path) -> None:
    """Raises ValueError unless `out` is missing or an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} is there already: name another folder, or empty it")


def describe(name: str, model: DiscreteVAE) -> str:
    """What it is and its sizes, in one line."""
    config = model.config
    (h, w), side = config.grid_size, config.image_size
    parts = {"encoder": model.encoder, "decoder": model.decoder}
    sizes = ", ".join(f"{part} {sum(p.numel() for p in module.parameters()):,}" for part, module in parts.items())
    return (
        f"{name}: {side}x{side} pixels, {h}x{w} codes of {config.codebook_size:,} (f{config.downsample_factor}); "
        f"parameters: {sizes}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where the folder was written, 2 where the user has to put something right."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] == ["lpips"]:
            _convert_lpips(arguments[1:])
        else:
            _convert(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser(**settings: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    return parser


def _convert(arguments: Sequence[str]) -> None:
    parser = _parser(prog="python -m vqvae.pretrained", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--image-size", type=int, help="side of the pictures (default: of the yaml file, or 256)")
    options = parser.parse_args(arguments)
    check_is_free(options.out)
    name, model = load(options.files, options.image_size)
    save(model, options.out)
    print(describe(name, model))
    print(f"model: {options.out}")


def _convert_lpips(arguments: Sequence[str]) -> None:
    from vqvae.lpips import SOURCE
    from vqvae.lpips_weights import convert  # tokenizers do without it

    parser = _parser(prog="python -m vqvae.pretrained lpips", description=f"FILE: {SOURCE}")
    parser.add_argument("file", type=Path, metavar="FILE", help="that archive, its unpacked folder or a .ckpt of it")
    options = parser.parse_args(arguments)
    for path in convert(options.file, options.out):
        print(f"weights: {path}")


if __name__ == "__main__":
    sys.exit(main())
