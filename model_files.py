"""A model as a folder, `model.safetensors` and `config.json`, and as a training checkpoint. No code is ever unpickled.

Written by hand instead of by huggingface_hub's PyTorchModelHubMixin, which loads with missing keys forgiven, drops
settings it does not know, falls back to a pickle and takes a mistyped path for a name on the network. The files are the
same, so such a folder can be uploaded to the Hub and downloaded from it as it is.
"""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
OF_ALL_CHECKPOINTS = ("pytorch-lightning_version", "global_step")  # without these, none is read
TRAINING_STATE = ("optimizer_states", "loops")  # without these, no fit goes on


def save_folder(folder: str | Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Writes both files, each beside its place and then renamed, so that an interrupted save leaves the old ones.

    While they are renamed there are no settings: a save that is cut there leaves nothing that loads, but no mixture.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    weights, settings = folder / f".{WEIGHTS}.part", folder / f".{CONFIG}.part"
    save_file(tensors, weights, metadata={"format": "pt"})
    settings.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / CONFIG).unlink(missing_ok=True)
    weights.replace(folder / WEIGHTS)
    settings.replace(folder / CONFIG)


def load_config(folder: str | Path) -> dict[str, Any]:
    """The settings in `folder`. ValueError where the file is missing or no JSON object."""
    path = _existing(Path(folder) / CONFIG)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, expected an object of settings")
    return config


def load_weights(folder: str | Path, model: nn.Module) -> None:
    """Fills `model` with the weights in `folder`.

    Raises ValueError naming the file where it is missing or damaged, and the tensors that it lacks, has too many, or
    has in another shape than the model.
    """
    path = _existing(Path(folder) / WEIGHTS)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    problems = mismatches(tensors, model.state_dict())
    if problems:
        raise ValueError(f"{path} does not fit its {CONFIG}: " + "; ".join(problems))
    model.load_state_dict(tensors)


def load_checkpoint(path: str | Path, model: nn.Module, keys: Sequence[str] = ()) -> dict[str, Any]:
    """A training checkpoint whose "state_dict" fits `model`, which is not touched; tensors stay on the disk until used.

    Raises ValueError naming the file where it is missing, damaged, of another model, or holds weights without `keys`
    and OF_ALL_CHECKPOINTS.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights = checkpoint["state_dict"]
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or no training checkpoint: {str(error).splitlines()[0]}") from error
    problems = mismatches(weights, model.state_dict())
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise ValueError(f"{path} is of another model than this run's: {shown}")
    missing = [key for key in (*OF_ALL_CHECKPOINTS, *keys) if key not in checkpoint]
    if missing:
        raise ValueError(
            f"{path} holds weights but no {', '.join(missing)}: expected a checkpoint as training writes it"
        )
    return checkpoint


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
