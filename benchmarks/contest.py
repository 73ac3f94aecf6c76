"""Priors that train in turns for equal time, on the same batches: which of them learns most in it?

Turns are short and their order changes, so that whatever else the machine does hits all alike. Only training is on the
clock: validation and the reading of batches are not. On a CPU the clock is the processor time of this process, so that
other processes are not charged. The step size follows the clock as well (warm-up, then a cosine that ends with the
time), so that no prior has another schedule for being quicker.
"""

import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data.datamodule import PriorData
from precision import default_precision
from transformer.config import PriorConfig
from transformer.embeddings import PAD
from transformer.losses import PriorLoss, prior_loss
from transformer.model import Prior
from transformer.schedules import cosine_factor
from transformer.training import OptimConfig, drop_captions, make_optimizer, step_key

Batch = dict[str, Any]
BETAS, WEIGHT_DECAY, CLIP_NORM, CAPTION_DROPOUT = (0.9, 0.96), 4.5e-2, 1.0, 0.1
WARMUP_SHARE, MIN_RATIO = 0.05, 0.02  # of the time; of the peak step size
TURNS = 32  # of each
VALIDATE_EVERY = 4  # turns


class Point(NamedTuple):
    """Of a curve: seconds of training, updates, and validation losses in nats a token."""

    seconds: float
    updates: int
    image: float
    text: float


class Contestant:
    """A prior in training, and its curve.

    Args:
        args: `device`, `seed` (of starting values and dropped captions), `minutes` to train, and the peak step sizes
            `lr` and `muon_lr`.
    """

    def __init__(self, config: PriorConfig, data: PriorData, args: Namespace) -> None:
        torch.manual_seed(args.seed)
        self.prior = Prior(config).to(args.device)
        optim = OptimConfig(lr=args.lr, muon_lr=args.muon_lr, betas=BETAS, weight_decay=WEIGHT_DECAY)
        self.optimizer = make_optimizer(self.prior, optim)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.device, self.seed, self.budget = torch.device(args.device), args.seed, 60 * args.minutes
        self.autocast = default_precision(args.device) == "bf16-mixed"
        self.batches, self.validation = endless(data), data.val_dataloader()
        self.seconds, self.updates = 0.0, 0
        self.curve: list[Point] = []

    def train_until(self, seconds: float) -> None:
        """Updates, until so many seconds have been spent on them in all."""
        self.prior.train()
        while self.seconds < seconds:
            tokens = self._on_device(next(self.batches))
            start = self._clock()
            self._update(*tokens)
            self.seconds += self._clock() - start
            self.updates += 1

    def _clock(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _update(self, text_tokens: Tensor, image_tokens: Tensor) -> None:
        share = round(1000 * self.seconds / self.budget)
        factor = cosine_factor(share, warmup_steps=round(1000 * WARMUP_SHARE), total_steps=1000, min_ratio=MIN_RATIO)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        text_tokens = drop_captions(text_tokens, CAPTION_DROPOUT, step_key(self.seed, self.updates))
        self.optimizer.zero_grad()
        self._loss(text_tokens, image_tokens).total.backward()
        nn.utils.clip_grad_norm_(self.prior.parameters(), CLIP_NORM)
        self.optimizer.step()

    def _loss(self, text_tokens: Tensor, image_tokens: Tensor) -> PriorLoss:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            output = self.prior(text_tokens, image_tokens)
        return prior_loss(output.text_logits, output.image_logits, text_tokens, image_tokens)

    @torch.no_grad()
    def validate(self) -> None:
        """Adds a point to the curve: means over all tokens, pads aside."""
        self.prior.eval()
        image, pictures, text, words = 0.0, 0, 0.0, 0
        for batch in self.validation:
            text_tokens, image_tokens = self._on_device(batch)
            loss, count = self._loss(text_tokens, image_tokens), int((text_tokens != PAD).sum())
            image, pictures = image + float(loss.image) * len(image_tokens), pictures + len(image_tokens)
            text, words = text + float(loss.text) * count, words + count
        self.curve.append(Point(self.seconds, self.updates, image / pictures, text / words))

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch["text_tokens"].to(self.device), batch["image_tokens"].to(self.device)


def endless(data: PriorData) -> Iterator[Batch]:
    """Training batches, epoch after epoch: the same ones for everybody who asks."""
    loader = data.train_dataloader()
    while True:
        yield from loader


def compete(contestants: Mapping[str, Contestant]) -> None:
    """Turns until the time of each is used up; a validation at the start and after some of them."""
    order = list(contestants.values())
    for contestant in order:
        contestant.validate()
    for turn in range(1, TURNS + 1):
        for contestant in order:
            contestant.train_until(contestant.budget * turn / TURNS)
            if turn % VALIDATE_EVERY == 0:
                contestant.validate()
        order.reverse()  # who ended a round begins the next
        if turn % VALIDATE_EVERY == 0:
            losses = "   ".join(f"{name} {contestant.curve[-1].image:.4f}" for name, contestant in contestants.items())
            print(f"{order[0].budget * turn / TURNS:6.1f} s: {losses}", flush=True)
