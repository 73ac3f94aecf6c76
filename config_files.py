"""The configs of train.py on its command line: which file a name means, and what of it another choice leaves out."""

import logging
import math
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from vqvae.config import DiscreteVAEConfig

log = logging.getLogger(__name__)

DEEPEST, MOST_NODES = 30, 100_000  # a config of ours has four levels and a hundred values
SECTIONS = ("trainer", "model", "data", "checkpoints", "ema")
CONFIGS = Path(__file__).parent / "configs"
OPTIONS_OF = {  # in model.vae: what only one choice of these knows, and how it is left out
    "quantizer": {"quantizer_options": "{}"},
    "network": {"post_gain": "null", "width_multipliers": "null"},
}
DEFAULTS_OF_CHOICES = {choice: getattr(DiscreteVAEConfig, choice) for choice in OPTIONS_OF}


def with_config_files(kind: str, args: list[str]) -> list[str]:
    """args with each config by its file. Raises ValueError where there is no such config."""
    resolved = list(args)
    for i, arg in enumerate(resolved):
        if arg in ("-c", "--config") and i + 1 < len(resolved):
            resolved[i + 1] = _resolve(kind, resolved[i + 1])
        elif arg.startswith("--config="):
            resolved[i] = f"--config={_resolve(kind, arg.removeprefix('--config='))}"
    return resolved


def _resolve(kind: str, name: str) -> str:
    """A config's file from its path or its name in configs/. Raises ValueError where there is neither, or no YAML."""
    folder = CONFIGS / kind
    named = folder / f"{name}.yaml"
    if Path(name).is_file():
        check_yaml(Path(name))
        _check_sections(Path(name))
        return name
    if named.is_file():
        return str(named)
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise ValueError(f"unknown config {name!r}: no such file, and the {kind} configs are {known}")


def check_yaml(path: Path) -> None:
    """ValueError naming the file where it is no YAML, or such as is read without an end.

    A name (`*a`) stands for all that was written under it: names of names of names make a billion values of some lines,
    and one within what it stands for has no end.
    """
    try:
        for depth, nodes in _growth(path.read_text(encoding="utf-8")):
            if depth > DEEPEST or nodes > MOST_NODES:
                raise ValueError(f"it is nested deeper than {DEEPEST} or has more than {MOST_NODES:,} values")
        yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no config: {' '.join(str(error).split())}") from error


def _check_sections(path: Path) -> None:
    """ValueError where a section is no mapping: the parser would put it in the place of all settings in it."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name in SECTIONS:
        if isinstance(config, dict) and name in config and not isinstance(config[name], dict):
            raise ValueError(f"{path} is no config: {name} is {config[name]!r}, expected settings by their names")


def _growth(text: str) -> Iterator[tuple[int, float]]:
    """Depth and number of values at each step of reading YAML, those counted again that names stand for."""
    sizes: dict[str, float] = {}
    outer: list[tuple[str | None, float]] = []  # of what is open: its name, and the values before it
    nodes = 0.0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            nodes += sizes.get(event.anchor, math.inf)  # a name that is not finished stands for itself too
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            outer.append((event.anchor, nodes))
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            name, before = outer.pop()
            if name is not None:
                sizes[name] = nodes - before
        yield len(outer), nodes


def dropped_options(args: list[str]) -> list[str]:
    """Empty values for what a config says of a quantizer or network in whose place the command line names another."""
    config = {name: value for file in _config_files(args) for name, value in _vae_settings(file).items()}
    dropped = []
    for choice, options in OPTIONS_OF.items():
        named, configured = _values_of(f"--model.vae.{choice}", args)[-1:], config.get(choice)
        for option, empty in options.items():
            given = any(arg.startswith(f"--model.vae.{option}") for arg in args)
            if named and configured is not None and named != [configured] and config.get(option) and not given:
                log.info("%s %s: the config's %s, meant for %s, is left out", choice, named[0], option, configured)
                dropped.append(f"--model.vae.{option}={empty}")
    return dropped


def _config_files(args: list[str]) -> list[str]:
    return _values_of("--config", args) or _values_of("-c", args)


def _values_of(name: str, args: list[str]) -> list[str]:
    """What is given as `name VALUE` or `name=VALUE`, in order."""
    pairs = zip_longest(args, args[1:], fillvalue="")
    return [after if arg == name else arg.removeprefix(f"{name}=") for arg, after in pairs if arg.split("=")[0] == name]


def _vae_settings(file: str) -> dict[str, Any]:
    """`model.vae` of a config; none where the file is no config, which the parser will say."""
    try:
        return DEFAULTS_OF_CHOICES | yaml.safe_load(Path(file).read_text(encoding="utf-8"))["model"]["vae"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, RecursionError):
        return {}
