"""Pictures' tokens from captions, one after the other: pure functions around the prior and its cache.

Shapes: B batch, K codebook, h w token grid.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from transformer.attention import attend_cached
from transformer.cache import KVCache
from transformer.embeddings import PAD, null_captions
from transformer.model import Prior
from transformer.sampling import SamplingConfig, choose_token


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
