"""Where a run stands, in questions that several callbacks ask."""

import math

import pytorch_lightning as pl
import torch


def total_steps(trainer: pl.Trainer) -> int | None:
    """Updates of the whole run, once it is where it goes on; None where it has no end.

    Lightning's own estimate takes all epochs for as long as this one, but a run may go on with other batches.
    """
    ends = [trainer.max_steps] if trainer.max_steps != -1 else []
    if trainer.max_epochs != -1:
        epochs = max(0, trainer.max_epochs - trainer.current_epoch)
        batches, every = trainer.num_training_batches, trainer.accumulate_grad_batches
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready // every if epochs else 0
        ends.append(trainer.global_step + epochs * math.ceil(batches / every) - done)
    return min(ends, default=None)


def after_last_step(trainer: pl.Trainer) -> bool:
    """Whether the fit ends with the batch that was just trained on, as Lightning's loops will decide."""
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return True
    in_last_epoch = trainer.max_epochs != -1 and trainer.current_epoch + 1 >= trainer.max_epochs
    return in_last_epoch and trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def any_device(trainer: pl.Trainer, *decisions: bool) -> list[bool]:
    """Of each decision, whether any device makes it: the same answers on all, for one exchange between them."""
    if trainer.world_size == 1:
        return list(decisions)
    counts = torch.tensor(decisions, dtype=torch.int32, device=trainer.strategy.root_device)
    return [count > 0 for count in trainer.strategy.reduce(counts, reduce_op="sum").tolist()]
