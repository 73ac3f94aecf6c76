"""Where the time of a prior goes: attention and MLP of each block, whole passes, and a token of sampling.

Measured by hooks around the blocks' parts, each with the norm in front of it; the two additions of a block are in
neither. On a GPU they leave marks among its work and wait for nothing, so passes take as long as without them. Medians,
the first of several left out.

Shapes: B batch, N positions, C n_embd, h w token grid.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.shared import now
from transformer.decoding import UNKNOWN, generate
from transformer.model import Prior
from transformer.sampling import SamplingConfig
from transformer.stepping import STEPS_BEFORE_CAPTURE

PARTS = ("attention", "mlp")
DECODED = 32  # tokens of sampling that are timed, at most: the last ones of a picture
UNTIMED = 1 + STEPS_BEFORE_CAPTURE + 1
"""Tokens before these: the first takes in all that is given, and the next of a GPU end with the first replay."""
LEAST_TIMED = UNTIMED + 1  # image tokens
REPEATS = 3

Mark = float | torch.cuda.Event


class LayerClock:
    """Times the blocks of a prior wherever they are called while it is open (`with clock:`), any number of times.

    A block inside a compiled graph has no parts, and one that is captured does not run: of them nothing is seen.
    """

    def __init__(self, prior: Prior) -> None:
        self.prior = prior
        self.seconds: dict[tuple[int, str, tuple[int, int]], list[float]] = defaultdict(list)  # by layer, part, (B, N)
        self._marks: list[tuple[tuple[int, str, tuple[int, int]], Mark, Mark]] = []  # since it was opened
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._started: Mark = 0.0

    def __enter__(self) -> "LayerClock":
        for layer, block in enumerate(self.prior.blocks):
            for part in PARTS:
                self._hooks.append(block.get_submodule(f"{part}_norm").register_forward_pre_hook(self._start))
                self._hooks.append(block.get_submodule(part).register_forward_hook(self._stop(layer, part)))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for key, start, end in self._marks:
            self.seconds[key].append(_seconds_between(start, end))
        self._marks.clear()

    def _start(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not _is_captured(args[0]):
            self._started = _mark(args[0].device)

    def _stop(self, layer: int, part: str) -> Callable[..., None]:
        def stop(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if not _is_captured(output):
                key = layer, part, tuple(output.shape[:2])
                self._marks.append((key, self._started, _mark(output.device)))

        return stop

    def layers(self) -> list[dict[str, Any]]:
        """Mask and milliseconds of each layer, for the (B, N) that was seen most often; empty where none was."""
        seen = Counter({shape: len(seconds) for (_, _, shape), seconds in self.seconds.items()})
        if not seen:
            return []
        ((shape, _),) = seen.most_common(1)
        return [
            {"mask": pattern.kind}
            | {f"{part}_ms": 1000 * warm_median(self.seconds[layer, part, shape]) for part in PARTS}
            for layer, pattern in enumerate(self.prior.patterns)
        ]


def _is_captured(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _mark(device: torch.device) -> Mark:
    """This moment, on a GPU of the work that it has been given."""
    if device.type != "cuda":
        return now(device)
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds_between(start: Mark, end: Mark) -> float:
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000


def warm_median(values: list[float]) -> float:
    """Of all but the first; of that one where there is no other."""
    return median(values[1:] or values)


def forward_times(clock: LayerClock, seconds: list[tuple[int, float]]) -> dict[str, Any]:
    """Milliseconds of a pass, and of each of its layers; of the passes with as many pictures as most have.

    Args:
        clock: was open during the passes.
        seconds: pictures and seconds of each pass, at least one.
    """
    ((size, _),) = Counter(pictures for pictures, _ in seconds).most_common(1)
    taken = [each for pictures, each in seconds if pictures == size]
    return {"batch_size": size, "ms": 1000 * warm_median(taken), "layers": clock.layers()}


def decoding_times(prior: Prior, text_tokens: Tensor, image_tokens: Tensor) -> dict[str, Any]:
    """Milliseconds a token of sampling one picture, without and with guidance, and those of each layer without it.

    Args:
        text_tokens: int64 (1, text_len - 1).
        image_tokens: int64 (1, h, w), of at least LEAST_TIMED tokens; what precedes the last ones is given.
    """
    clock = LayerClock(prior)
    alone = [_seconds_a_token(prior, text_tokens, image_tokens, 1.0) for _ in range(1 + REPEATS)]
    guided = [_seconds_a_token(prior, text_tokens, image_tokens, 2.0) for _ in range(1 + REPEATS)]
    for _ in range(1 + REPEATS):  # of a captured step, the clock sees few
        with clock:
            _seconds_a_token(prior, text_tokens, image_tokens, 1.0)
    return {
        "tokens": _decoded(prior),
        "ms_per_token": 1000 * warm_median(alone),
        "guided_ms_per_token": 1000 * warm_median(guided),
        "layers": clock.layers(),
    }


def _decoded(prior: Prior) -> int:
    return min(DECODED, prior.config.image_len - UNTIMED)


def _seconds_a_token(prior: Prior, text_tokens: Tensor, image_tokens: Tensor, guidance_scale: float) -> float:
    given = prior.config.image_len - UNTIMED - _decoded(prior)
    known = torch.arange(prior.config.image_len, device=image_tokens.device).view(prior.config.grid_size) < given
    marks: list[float] = []

    def mark(done: int, total: int) -> None:
        if done in (given + UNTIMED, total):
            marks.append(now(text_tokens.device))

    generate(
        prior,
        text_tokens,
        seeds=torch.zeros(1, dtype=torch.int64),
        config=SamplingConfig(guidance_scale=guidance_scale),
        given=torch.where(known, image_tokens, UNKNOWN),
        progress=mark,
    )
    return (marks[-1] - marks[0]) / _decoded(prior)
