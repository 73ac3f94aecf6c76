"""What of a run's settings may be another where it goes on from a checkpoint: not what its weights mean."""

from collections.abc import Iterable, Mapping
from typing import Any

OF_THE_MODEL = ("model.vae", "model.prior", "model.reconstruction", "data.image_size")
FREE = ("model.vae.quantizer_options",)  # of any names, where one that is missing has its default
NOT_OF_THE_WEIGHTS = ("model.prior.checkpoint_activations",)
UNIMPORTANT = (  # where a run lies, what it shows, and how fast it reads
    "run",
    "ckpt_path",
    "check",
    "checkpoints",
    "max_skipped",
    "data.loading.workers",
    "data.loading.report",
    *(f"trainer.{name}" for name in ("callbacks", "logger", "log_every_n_steps", "profiler", "enable_progress_bar")),
    "trainer.default_root_dir",
)
DECAY = "model.optim.decay"
OF_THE_PLATEAU = (DECAY, "model.optim.warmup_steps")  # which changes the step size that there is; others compute theirs


def changed_settings(saved: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """What is another now, in words, unimportant things left out, and settings that only the checkpoint's version has.
    Those that only this one has are there where they are not at their defaults.

    Args:
        saved, now, defaults: nested, as in a run's config.yaml.

    Raises ValueError naming the settings of the model that have changed, or those of a plateau, which would not take
    effect.
    """
    before, after = flat(saved), flat(now)
    names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    changes = {
        name: f"{name} was {before.get(name)} and is {after.get(name)}"
        for name in names
        if not _within(name, UNIMPORTANT) and _has(before, name) and _has(after, name)
    }
    of_model = [
        said for name, said in changes.items() if _within(name, OF_THE_MODEL) and not _within(name, NOT_OF_THE_WEIGHTS)
    ]
    if of_model:
        raise ValueError(f"the checkpoint is of another model: {', '.join(of_model)}")
    of_plateau = [changes[name] for name in OF_THE_PLATEAU if name in changes]
    if of_plateau and "plateau" in (before.get(DECAY), after.get(DECAY)):
        raise ValueError(
            f"{', '.join(of_plateau)}: where a plateau is one of the two, the checkpoint's step size goes with its own"
        )
    usual = flat(defaults)
    new = [
        f"{name} is {after[name]}, of which the checkpoint's version knew nothing"
        for name in sorted(after)
        if not _within(name, UNIMPORTANT) and not _has(before, name) and after[name] != usual.get(name)
    ]
    return [*changes.values(), *new]


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _has(settings: Mapping[str, Any], name: str) -> bool:
    """Whether flat settings are of a version that has this one, if only as a part of what is None there."""
    return _within(name, (*settings, *FREE)) or any(_within(other, (name,)) for other in settings)


def _within(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)
