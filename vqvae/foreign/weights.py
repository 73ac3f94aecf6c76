"""The weights in a file of torch.save by their names in a state dict, whatever is around them."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vqvae.config import DiscreteVAEConfig
from vqvae.foreign.archives import TorchFile, is_tensor
from vqvae.foreign.pickles import Built

UNDER = ("state_dict", "ema", "model")  # in this order: averaged weights are the ones to use
DEEPEST = 50  # modules within modules; a module may hold itself
MOST = 1_000_000  # attributes of modules; one may hold another under two names, and that one the next, and so on


class Weights(NamedTuple):
    """tensors: by name. numbers: of a pickled module the numbers that it and its parts hold, by name as well."""

    path: Path
    tensors: dict[str, Tensor]
    numbers: dict[str, float]


class Converted(NamedTuple):
    """A model of ours: `tensors` are the state dict of DiscreteVAE(config). `name`: what it was converted from."""

    name: str
    config: DiscreteVAEConfig
    tensors: dict[str, Tensor]


def read_weights(path: Path) -> Weights:
    """Of a pickled module, a state dict, or a checkpoint with one under "state_dict", "ema" or "model".

    Raises ValueError naming the file, as TorchFile does, and where it holds no weights.
    """
    with TorchFile(path) as file:
        root = file.root
        if isinstance(root, Built):
            named = list(islice(_held(root), MOST + 1))
            if len(named) > MOST:
                raise ValueError(f"{path}: its modules have more than {MOST:,} attributes")
            held = dict(named)
        else:
            found = root if isinstance(root, dict) else {}
            held = next((found[key] for key in UNDER if isinstance(found.get(key), dict)), found)
        tensors = {name: file.tensor(value) for name, value in _items(held) if is_tensor(value)}
    if not tensors:
        raise ValueError(f"{path} holds no weights: neither a module nor a state dict")
    numbers = {name: value for name, value in _items(held) if isinstance(value, int | float)}
    return Weights(path, tensors, numbers)


def _held(module: Built, above: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The attributes, parameters and buffers of a pickled module and of those in it."""
    state = module.state
    if not isinstance(state, dict) or depth > DEEPEST:
        return
    for held in (state, state.get("_parameters"), state.get("_buffers")):
        yield from ((f"{above}{name}", value) for name, value in _items(held))
    for name, part in _items(state.get("_modules")):
        if isinstance(part, Built):
            yield from _held(part, f"{above}{name}.", depth + 1)


def _items(values: Any) -> list[tuple[str, Any]]:
    """What has a text for its name: no weights have another."""
    return [item for item in values.items() if isinstance(item[0], str)] if isinstance(values, Mapping) else []


def numbers_after(start: str, names: Iterable[str]) -> set[int]:
    """The numbers with which names go on after `start`, up to the next dot."""
    rest = (name.removeprefix(start).partition(".")[0] for name in names if name.startswith(start))
    return {int(number) for number in rest if number.isdecimal()}
