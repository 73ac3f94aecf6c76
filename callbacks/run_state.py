"""Where a run stands, in questions that several callbacks ask."""

import math

import pytorch_lightning as pl


def total_steps(trainer: pl.Trainer) -> int | None:
    """Updates of the whole run; None where it has no end."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if math.isfinite(steps) else None


def after_last_step(trainer: pl.Trainer) -> bool:
    return trainer.global_step == total_steps(trainer)


def any_device(trainer: pl.Trainer, decision: bool) -> bool:
    """Whether any device decides so: the same answer on all."""
    return trainer.strategy.reduce_boolean_decision(decision, all=False)
