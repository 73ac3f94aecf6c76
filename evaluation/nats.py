"""How well a prior predicts captions and pictures: nats a token, with the caption and without any.

Each token is predicted given all before it (transformer/likelihood.py). Without a caption means with the null caption
of guidance; what it costs more is what the captions tell about the pictures, as far as the prior has learnt it. A prior
that was trained without dropping captions has never seen the null caption: its difference means nothing.

Legend: B batch, N pictures, h w token grid.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evaluation.shared import now
from evaluation.timing import LayerClock
from metrics import Interval, mean_interval, ratio_interval
from transformer.embeddings import PAD
from transformer.likelihood import log_likelihood, null_image_log_likelihood
from transformer.model import Prior


class Measured(NamedTuple):
    """Of N pictures, in nats; float64."""

    text: Tensor  # (N,), all tokens of the caption
    text_tokens: Tensor  # (N,), how many these are; int64
    image: Tensor  # (N,), all tokens of the picture, given the caption
    null: Tensor  # (N,), the same given the null caption
    positions: Tensor  # (h, w), means over the pictures, given the caption
    seconds: list[tuple[int, float]]  # pictures of each batch, and what the pass with the captions took


def measure(prior: Prior, batches: Iterable[tuple[Tensor, Tensor]], clock: LayerClock) -> Measured:
    """Of batches (text_tokens, image_tokens) on the prior's device; the clock sees the passes with the captions."""
    parts: list[list[Tensor]] = [[], [], [], []]
    positions = torch.zeros(prior.config.image_len, dtype=torch.float64)
    seconds: list[tuple[int, float]] = []
    for text_tokens, image_tokens in batches:
        start = now(text_tokens.device)
        with clock:
            found = log_likelihood(prior, text_tokens, image_tokens)
        seconds.append((len(text_tokens), now(text_tokens.device) - start))
        text, image, null = (-each.cpu().double() for each in (*found, null_image_log_likelihood(prior, image_tokens)))
        positions += image.sum(dim=0)
        count = (text_tokens != PAD).sum(dim=1).cpu()
        for kept, of_batch in zip(parts, (text.sum(1), count, image.sum(1), null.sum(1)), strict=True):
            kept.append(of_batch)
    text, count, image, null = map(torch.cat, parts)
    return Measured(text, count, image, null, (positions / len(image)).view(prior.config.grid_size), seconds)


def summary(measured: Measured, pixels: int) -> dict[str, Any]:
    """The report's figures, with intervals over the pictures; NaN and inf where the nats are so.

    Args:
        pixels: of a picture.
    """
    tokens = measured.positions.numel()
    gain = measured.null - measured.image
    return {
        "not_finite": int((~(measured.text + measured.image + measured.null).isfinite()).sum()),  # pictures
        "image": _rates(mean_interval(measured.image / tokens), tokens, pixels),
        "null": _rates(mean_interval(measured.null / tokens), tokens, pixels),
        "gain": {
            "nats_per_token": mean_interval(gain / tokens)._asdict(),
            "nats_per_picture": mean_interval(gain)._asdict(),
            "bits_per_picture": scaled(mean_interval(gain), 1 / math.log(2))._asdict(),
            "pictures_with_gain": (gain > 0).double().mean().item(),
        },
        "text": _rates(ratio_interval(measured.text, measured.text_tokens))
        | {"tokens_per_caption": measured.text_tokens.double().mean().item()},
        "positions": [[round(value, 4) for value in row] for row in measured.positions.tolist()],
    }


def _rates(nats: Interval, tokens: int | None = None, pixels: int | None = None) -> dict[str, Any]:
    """Nats a token in the other units; of a picture too where its sizes are given."""
    bits = 1 / math.log(2)
    rates: dict[str, Any] = {
        "nats_per_token": nats._asdict(),
        "bits_per_token": scaled(nats, bits)._asdict(),
        "perplexity": torch.tensor(nats.value, dtype=torch.float64).exp().item(),  # inf where math.exp raises
    }
    if tokens is not None and pixels is not None:
        rates["bits_per_picture"] = scaled(nats, bits * tokens)._asdict()
        rates["bits_per_pixel"] = scaled(nats, bits * tokens / pixels)._asdict()
    return rates


def scaled(interval: Interval, factor: float) -> Interval:
    """The interval in another unit; the factor is positive."""
    return Interval(*(factor * value for value in interval))
