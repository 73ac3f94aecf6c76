"""The tokenizer's optimiser, as settings."""

from dataclasses import dataclass

from vqvae.schedules import cosine


@dataclass(frozen=True, kw_only=True)
class TokenizerOptim:
    """AdamW with a cosine step size from `lr` to `min_lr` over `decay_steps` updates (None: the whole run).

    The paper's values are the defaults; its batch is 512 and its run 3,000,000 updates long.
    """

    lr: float = 1e-4
    min_lr: float = 1.25e-6
    decay_steps: int | None = 1_200_000
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}, expected more than 0")
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"min_lr is {self.min_lr} and lr {self.lr}, expected 0 <= min_lr <= lr")
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"decay_steps is {self.decay_steps}, expected at least 1, or none for the whole run")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, expected at least 0")

    def lr_at(self, step: int, run_steps: int) -> float:
        """Step size of update `step`, counted from 0, in a run of `run_steps` updates.

        The cosine runs from the first update on; over the first `warmup_steps` it is scaled up linearly.
        """
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * cosine(step, self.lr, self.min_lr, self.decay_steps or run_steps)
