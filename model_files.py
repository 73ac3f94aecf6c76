"""A model as a folder, `model.safetensors` and `config.json`. No code is ever unpickled.

Written by hand instead of by huggingface_hub's PyTorchModelHubMixin, which loads with missing keys forgiven, drops
settings it does not know, falls back to a pickle and takes a mistyped path for a name on the network. The files are the
same, so such a folder can be uploaded to the Hub and downloaded from it as it is.
"""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from whole_files import read_object, sync, written_beside

ModelT = TypeVar("ModelT", bound=nn.Module)

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def save_folder(folder: str | Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Writes both files, each beside its place and then renamed, so that an interrupted save leaves the old ones.

    While they are renamed there are no settings: a save that is cut there leaves nothing that loads, but no mixture.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    for pattern in (f".{WEIGHTS}.*.part", f".{CONFIG}.*.part", ".tmp*"):  # of a process that was killed
        for part in folder.glob(pattern):  # the last one is what safetensors writes beside, all of the weights
            part.unlink(missing_ok=True)
    with written_beside(folder / CONFIG) as settings:
        settings.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        sync(settings)  # both, before the old settings go: a disk may be full only then
        with written_beside(folder / WEIGHTS) as weights:
            write_tensors(tensors, weights, {"format": "pt"})
            (folder / CONFIG).unlink(missing_ok=True)


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Brought to the disk. Raises OSError naming the file where it cannot be written."""
    path.touch()
    mode = path.stat().st_mode  # as the umask has it; safetensors leaves a file that its owner alone may read
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # its own, also for a full disk
        raise OSError(errno.EIO, str(error), str(path)) from error
    path.chmod(mode)
    sync(path)


def load_config(folder: str | Path) -> dict[str, Any]:
    """The settings in `folder`. ValueError where the file is missing or no JSON object."""
    path = _existing(Path(folder) / CONFIG)
    return read_object(path)


def load_model(folder: str | Path, build: Callable[[], ModelT]) -> ModelT:
    """What `build` makes, with the weights in `folder`, in evaluation mode.

    The names and shapes in the file are held against the model's before that gets memory: settings that somebody has
    made a million times too large cost none.

    Raises ValueError naming the file where it is missing or damaged, the tensors that it lacks, has too many, or has in
    another shape than the model, and those that are not finite.
    """
    path = _existing(Path(folder) / WEIGHTS)
    try:
        with safe_open(path, "pt") as file:
            names = file.offset_keys()
            shapes = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
        problems = mismatches(shapes, _without_memory(Path(folder) / CONFIG, build).state_dict())
        if problems:
            raise ValueError(f"{path} does not fit its {CONFIG}: " + "; ".join(problems))
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds numbers that are not finite")
    model = build()
    model.load_state_dict(tensors)
    return model.eval()


def _without_memory(config: Path, build: Callable[[], ModelT]) -> ModelT:
    try:
        with torch.device("meta"):
            return build()
    except Exception as error:  # the settings in a file are anybody's, and some are beyond what torch can count
        raise ValueError(f"{config}: no model can be made of it: {str(error) or type(error).__name__}") from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"no file {path}: expected a folder with {WEIGHTS} and {CONFIG}, as save_pretrained writes it")
    return path


def mismatches(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """What differs between two models' state dicts, in words: names that one lacks, and shapes."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    for name in found.keys() & expected.keys():
        if found[name].shape != expected[name].shape:
            problems.append(f"{name} is {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}")
    return sorted(problems)
