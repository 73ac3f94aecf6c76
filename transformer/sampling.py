"""Pictures' tokens from captions, one after the other: pure functions around the prior and its cache.

Randomness is a function of each sample's seed alone (noise.py). A token is drawn by an exponential race: the argmax of
logits - ln e with e ~ Exp(1) per code, which is Gumbel-max sampling (https://arxiv.org/abs/1611.01144) and draws from
softmax(logits) exactly. It is preferred to inverting the cumulated probabilities because the sums of a matrix product
may be rounded differently in batches of different sizes: an error of 1e-6 in the logits changes the winner of the race
with a probability of about 1e-6, but shifts each of thousands of borders of a cumulated sum.

Shapes: B batch, K codebook, h w token grid.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from transformer.attention import attend_cached
from transformer.cache import KVCache
from transformer.embeddings import PAD, null_captions
from transformer.model import Prior
from transformer.noise import exponential_noise

WITHOUT_FLOAT64 = ("mps",)  # types of devices


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn; the defaults are the paper's. Raises ValueError for values outside their ranges."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_k: int | None = None
    """Keep only this many of the most likely codes; at least 1."""
    top_p: float | None = None
    """Keep the fewest codes that together have this probability, in (0, 1]."""
    guidance_scale: float = 1.0
    """logits = null + scale * (cond - null): 1 is no guidance, 0 ignores the caption."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}, expected a finite number of at least 0")
        whole = isinstance(self.top_k, int) and not isinstance(self.top_k, bool)
        if self.top_k is not None and not (whole and self.top_k >= 1):
            raise ValueError(f"top_k is {self.top_k!r}, expected a whole number of at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected more than 0 and at most 1")
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise ValueError(f"guidance_scale is {self.guidance_scale}, expected a finite number of at least 0")

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0


def warp_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Temperature, then top-k, then top-p on (B, K); what falls out is -inf. The temperature must not be 0.

    Codes that tie with the last one kept by top-k stay as well.
    """
    logits = logits / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        least = logits.topk(config.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if config.top_p is not None and config.top_p < 1:
        logits = _keep_top_p(logits, config.top_p)
    return logits


def _keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    # What precedes a code decides: the code that crosses top_p stays, so that one always does.
    before = probabilities.cumsum(dim=-1) - probabilities
    return ordered.masked_fill(before >= top_p, -math.inf).gather(-1, order.argsort(dim=-1))


def guide(cond: Tensor, null: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (https://arxiv.org/abs/2207.12598) on the logits of the captions and of no caption."""
    return null + scale * (cond - null)


def sample_token(logits: Tensor, noise: Tensor) -> Tensor:
    """A draw from softmax(logits) (B, K) -> int64 (B,), given Exp(1) noise (B, K)."""
    return (logits.double() - noise.log()).argmax(dim=-1)


def prefill(prior: Prior, text_tokens: Tensor, image_tokens: Tensor, cache: KVCache) -> Tensor:
    """Fills the cache with the caption and the first n image tokens and predicts the next.

    Args:
        text_tokens: int64 (B, text_len - 1).
        image_tokens: int64 (B, n), the first n < h * w raster positions.

    Returns:
        Logits (B, K) of image token n.
    """
    prefix_lengths = prior.prefix_lengths(text_tokens)
    x = prior.embedding(text_tokens, image_tokens)
    x = prior.run_blocks(x, 0, attend_cached(prior.patterns, prefix_lengths, cache, 0))
    return prior.image_logits(x[:, -1] if image_tokens.shape[1] else prior.last_text(x, prefix_lengths))


def decode_one_token(
    prior: Prior, image_token: Tensor, index: int, cache: KVCache, prefix_lengths: Tensor | None
) -> Tensor:
    """Takes in the image token (B,) at raster position `index`; returns the logits (B, K) of the one after it."""
    position = prior.config.text_len + index
    x = prior.embedding.image(image_token[:, None], start=index)
    x = prior.run_blocks(x, position, attend_cached(prior.patterns, prefix_lengths, cache, position))
    return prior.image_logits(x[:, 0])


def choose_token(logits: Tensor, seeds: Tensor, index: int, config: SamplingConfig) -> Tensor:
    """The image token at raster position `index`, int64 (B,), from logits (B, K).

    Where guided, logits are (2B, K): the captions' rows, then those without a caption.
    """
    if config.guided:
        logits = guide(*logits.chunk(2), config.guidance_scale)
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    device = logits.device
    if device.type in WITHOUT_FLOAT64:  # in which the noise is made and the race is run
        logits, seeds = logits.cpu(), seeds.cpu()
    return sample_token(warp_logits(logits, config), exponential_noise(seeds, index, logits.shape[-1])).to(device)


@torch.no_grad()
def generate(
    prior: Prior,
    text_tokens: Tensor,
    *,
    seeds: Tensor,
    config: SamplingConfig,
    prefix_image_tokens: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Samples pictures' tokens. Each is a function of (weights, caption, seed, config, prefix), whatever its batch.

    Args:
        text_tokens: int64 (B, text_len - 1) on the prior's device, PAD (-1) where unused.
        seeds: int64 (B,), one a sample, any values.
        prefix_image_tokens: int64 (B, n), forced first n tokens in raster order (completion of a picture). None: none.
        progress: called with (tokens done, h * w) at the start and after each token.

    Returns:
        int64 (B, h, w).

    Raises:
        ValueError: shapes that do not fit each other or the prior, or ids outside the vocabularies.
    """
    prefix = text_tokens.new_empty(len(text_tokens), 0) if prefix_image_tokens is None else prefix_image_tokens
    _check_inputs(prior, text_tokens, seeds, prefix)
    seeds, image_len, done = seeds.to(text_tokens.device), prior.config.image_len, prefix.shape[1]
    picture = torch.cat([prefix, prefix.new_zeros(len(prefix), image_len - done)], dim=1)  # (B, h * w)
    rows = _rows(text_tokens, config)
    cache, prefix_lengths = KVCache(prior.patterns), prior.prefix_lengths(rows)
    report = progress or (lambda done, total: None)
    report(done, image_len)
    for index in range(done, image_len):
        if index == done:
            logits = prefill(prior, rows, _repeat(prefix, config), cache)
        else:
            logits = decode_one_token(prior, _repeat(picture[:, index - 1], config), index - 1, cache, prefix_lengths)
        picture[:, index] = choose_token(logits, seeds, index, config)
        report(index + 1, image_len)
    return picture.unflatten(1, prior.config.grid_size)


def _rows(text_tokens: Tensor, config: SamplingConfig) -> Tensor:
    """With guidance, the rows without a caption follow: both run in one batch, which reads the weights once."""
    if not config.guided:
        return text_tokens
    null = null_captions(len(text_tokens), text_tokens.shape[1] + 1, text_tokens.device)
    return torch.cat([text_tokens, null])


def _repeat(image_tokens: Tensor, config: SamplingConfig) -> Tensor:
    return torch.cat([image_tokens, image_tokens]) if config.guided else image_tokens


def _check_inputs(prior: Prior, text_tokens: Tensor, seeds: Tensor, prefix: Tensor) -> None:
    prior.check_text(text_tokens)
    batch, sizes = len(text_tokens), prior.config
    if seeds.shape != (batch,) or seeds.dtype != torch.long:
        raise ValueError(
            f"seeds are {tuple(seeds.shape)} {seeds.dtype}, expected ({batch},) torch.int64, one a caption"
        )
    if prefix.ndim != 2 or len(prefix) != batch or prefix.shape[1] > sizes.image_len:
        raise ValueError(
            f"prefix_image_tokens are {tuple(prefix.shape)}, expected ({batch}, n) with n at most {sizes.image_len}"
        )
    _check_ids("text_tokens", text_tokens, PAD, sizes.text_vocab_size)
    _check_ids("prefix_image_tokens", prefix, 0, sizes.codebook_size)


def _check_ids(name: str, ids: Tensor, least: int, count: int) -> None:
    if ids.numel() and not (least <= ids.min() and ids.max() < count):
        raise ValueError(f"{name} hold ids from {ids.min()} to {ids.max()}, expected {least} to {count - 1}")
