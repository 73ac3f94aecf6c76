"""Pictures' tokens from captions, one after the other: pure functions around the prior and its cache.

The text of a caption is computed once, whatever the number of its pictures, and with guidance that of no caption once
for all. Then a step takes in the last token of each picture and draws the next, everything it needs being tensors on
the device: it is captured, or compiled, once for all positions, and nothing waits for the device between two tokens.

Shapes: B batch, P texts, K codebook, h w token grid; rows are the B pictures and, where the prior is asked without a
caption too (paired), the same B again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from transformer.attention import attend_image, attend_text
from transformer.cache import KVCache
from transformer.embeddings import PAD, null_captions
from transformer.model import Prior
from transformer.sampling import SamplingConfig, SamplingTensors, choose_token
from transformer.serving import cache_dtype
from transformer.stepping import CapturedStep, CompiledStep

UNKNOWN = -1
"""Marks a token that is to be drawn; codes are never negative."""


@dataclass(frozen=True)
class Decoding:
    """Pictures in the making. Steps change the tensors in place."""

    tokens: Tensor
    """int64 (B, h * w), up to `index` drawn."""
    given: Tensor
    """int64 (B, h * w), UNKNOWN where a token is to be drawn."""
    index: Tensor
    """int64, 0-d: the raster position to be drawn next."""
    seeds: Tensor
    """int64 (B,)."""
    cache: KVCache
    prefix_lengths: Tensor | None
    """int32, one a row: see `Prior.prefix_lengths`."""
    likelihoods: Tensor | None
    """float32 (B, 3), see `generate`."""


def prefill_text(prior: Prior, texts: Tensor, cache: KVCache) -> Tensor:
    """Fills the cache with texts, int64 (rows, text_len - 1), and predicts the first image token: logits (P, K)."""
    x = prior.run_blocks(prior.embedding.text(texts), 0, attend_text(cache))
    return prior.image_logits(prior.last_text(x, prior.prefix_lengths(texts)).index_select(0, cache.owners))


def decode_tokens(
    prior: Prior, image_tokens: Tensor, index: int | Tensor, cache: KVCache, prefix_lengths: Tensor | None
) -> Tensor:
    """Takes in the image tokens (rows, N) from raster position `index` on; returns the logits (rows, K) of the next.

    `index` may be a 0-d tensor, but where it is 0.
    """
    x = prior.embedding.image(image_tokens, start=index)
    attend = attend_image(prior.patterns, prefix_lengths, cache, index)
    return prior.image_logits(prior.run_blocks(x, index + prior.config.text_len, attend)[:, -1])


def put_token(decoding: Decoding, logits: Tensor, settings: SamplingTensors) -> None:
    """Draws the token at `decoding.index` from logits (rows, K), or takes the one given there, and moves on."""
    index = decoding.index.view(1)
    given = decoding.given.index_select(1, index)  # (B, 1)
    choices = logits if settings.guided else logits[: len(given)]
    drawn = choose_token(choices, decoding.seeds, decoding.index, decoding.tokens.shape[1], settings)[:, None]
    decoding.tokens.index_copy_(1, index, torch.where(given == UNKNOWN, drawn, given))
    if decoding.likelihoods is not None:
        decoding.likelihoods.add_(_likelihoods(logits, drawn).where(given == UNKNOWN, 0.0))
    decoding.index.add_(1)


def _likelihoods(logits: Tensor, drawn: Tensor) -> Tensor:
    """Of one token, drawn (B, 1) from paired rows of logits (2B, K): (B, 3) as `generate` adds them up."""
    cond, null = logits.float().log_softmax(dim=-1).chunk(2)
    expected = (cond.exp() * cond).sum(dim=-1, keepdim=True)
    return torch.cat([cond.gather(1, drawn), null.gather(1, drawn), expected], dim=1)


def decode_step(prior: Prior, decoding: Decoding, settings: SamplingTensors) -> None:
    """Takes in the token before `decoding.index` and draws the one there."""
    last = decoding.index - 1
    tokens = decoding.tokens.index_select(1, last.view(1))
    tokens = tokens.repeat(1 + _paired(settings, decoding.likelihoods), 1)
    put_token(decoding, decode_tokens(prior, tokens, last, decoding.cache, decoding.prefix_lengths), settings)


@torch.no_grad()
def generate(
    prior: Prior,
    text_tokens: Tensor,
    *,
    seeds: Tensor,
    config: SamplingConfig,
    given: Tensor | None = None,
    likelihoods: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
    after_row: Callable[[Tensor], None] | None = None,
    compile: bool = False,
) -> Tensor:
    """Samples pictures' tokens. Each is a function of (weights, caption, seed, config, given), whatever its batch.

    Args:
        text_tokens: int64 (B, text_len - 1) on the prior's device, PAD (-1) where unused. Captions that repeat should
            follow one another, all equally often: they share their keys.
        seeds: int64 (B,), one a sample, any values.
        given: int64 (B, h, w), tokens to keep, and UNKNOWN (-1) where they are to be drawn. A token is drawn knowing
            those before it in raster order, given or not, and none behind it. None: all are drawn.
        likelihoods: float32 (B, 3) on the prior's device, to which is added, in nats, over the tokens that are drawn,
            each after those before it: log p given the caption, log p given none, and what the first was to be
            expected to be (minus the entropy). p is the prior's own: temperature, cuts and guidance do not count. This
            costs what guidance does, and beside it nothing. See `transformer.likelihood.prior_score`.
        progress: called with (tokens done, h * w) at the start and after each token.
        after_row: called after each row with all tokens, int64 (B, h, w), UNKNOWN where none has been drawn yet.
        compile: have the step compiled: by Inductor, which takes a minute once and some tokens to pay.

    Returns:
        int64 (B, h, w).

    Raises:
        ValueError: shapes that do not fit each other or the prior, no caption, ids outside the vocabularies, or a step
            that cannot be compiled here.
    """
    grid_size, image_len = prior.config.grid_size, prior.config.image_len
    given = text_tokens.new_full((len(text_tokens), *grid_size), UNKNOWN) if given is None else given
    _check_inputs(prior, text_tokens, seeds, given, likelihoods)
    seeds, settings = seeds.to(text_tokens.device), config.tensors(text_tokens.device)
    decoding, logits = _begin(prior, text_tokens, seeds, given.flatten(1), likelihoods, settings)
    done = int(decoding.index)
    report = _Reports(decoding.tokens, grid_size, progress, after_row)
    report(done)
    if done < image_len:
        put_token(decoding, logits, settings)
        report(done + 1)
    step = _step(prior, decoding, settings, compile)
    for count in range(done + 2, image_len + 1):
        step()
        report(count)
    return decoding.tokens.unflatten(1, grid_size)


def _begin(
    prior: Prior,
    text_tokens: Tensor,
    seeds: Tensor,
    given: Tensor,
    likelihoods: Tensor | None,
    settings: SamplingTensors,
) -> tuple[Decoding, Tensor]:
    """With the text and the tokens that all samples begin with in the cache; and the logits (rows, K) after them."""
    texts, samples = _shared_texts(text_tokens)
    owners = torch.arange(len(texts), device=texts.device)
    paired = _paired(settings, likelihoods)
    if paired:  # the rows without a caption follow: both run in one batch, which reads the weights once
        null = null_captions(1, texts.shape[1] + 1, texts.device)
        texts, owners = torch.cat([texts, null]), torch.cat([owners, torch.full_like(owners, len(texts))])
    cache = KVCache(prior.patterns, owners, len(owners) * samples, cache_dtype(prior))
    logits = prefill_text(prior, texts, cache).repeat_interleave(samples, dim=0)
    prefix_lengths = prior.prefix_lengths(texts)
    if prefix_lengths is not None:
        prefix_lengths = prefix_lengths[owners].repeat_interleave(samples)
    count = _known_beginning(given)
    if count > 0:
        beginning = given[:, :count].repeat(1 + paired, 1)
        logits = decode_tokens(prior, beginning, 0, cache, prefix_lengths)
    tokens = torch.where(torch.arange(given.shape[1], device=given.device) < count, given, UNKNOWN)
    index = torch.tensor(count, device=given.device)
    return Decoding(tokens, given, index, seeds, cache, prefix_lengths, likelihoods), logits


def _shared_texts(text_tokens: Tensor) -> tuple[Tensor, int]:
    """The texts (P, text_len - 1) of which each stands for as many samples in a row; and how many."""
    texts, counts = text_tokens.unique_consecutive(dim=0, return_counts=True)
    samples = math.gcd(*counts.tolist())
    return texts.repeat_interleave(counts // samples, dim=0), samples


def _known_beginning(given: Tensor) -> int:
    """How many tokens all samples (B, h * w) have given from the first on."""
    return int((given != UNKNOWN).all(dim=0).long().cumprod(dim=0).sum())


def _paired(settings: SamplingTensors, likelihoods: Tensor | None) -> bool:
    return settings.guided or likelihoods is not None


def _step(prior: Prior, decoding: Decoding, settings: SamplingTensors, compile: bool) -> Callable[[], None]:
    """The step in its quickest form, to be called for each token."""
    step: Callable[[], None] = partial(_compiled_step if compile else decode_step, prior, decoding, settings)
    if compile:
        step = CompiledStep(step)
    return CapturedStep(step, decoding.tokens.device) if decoding.tokens.is_cuda else step


_compiled_step = torch.compile(decode_step, fullgraph=True, dynamic=False)


class _Reports:
    """Calls whom it concerns after so many tokens."""

    def __init__(
        self,
        tokens: Tensor,
        grid_size: tuple[int, int],
        progress: Callable[[int, int], None] | None,
        after_row: Callable[[Tensor], None] | None,
    ) -> None:
        self.tokens, self.grid_size, self.progress, self.after_row = tokens, grid_size, progress, after_row

    def __call__(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, self.tokens.shape[1])
        if self.after_row is not None and done and done % self.grid_size[1] == 0:
            self.after_row(self.tokens.unflatten(1, self.grid_size))


def _check_inputs(prior: Prior, text_tokens: Tensor, seeds: Tensor, given: Tensor, likelihoods: Tensor | None) -> None:
    prior.check_text(text_tokens)
    if not len(text_tokens):
        raise ValueError(f"text_tokens are {tuple(text_tokens.shape)}, expected at least one caption")
    batch, sizes = len(text_tokens), prior.config
    if seeds.shape != (batch,) or seeds.dtype != torch.long:
        raise ValueError(
            f"seeds are {tuple(seeds.shape)} {seeds.dtype}, expected ({batch},) torch.int64, one a caption"
        )
    if given.shape != (batch, *sizes.grid_size):
        height, width = sizes.grid_size
        raise ValueError(f"given tokens are {tuple(given.shape)}, expected ({batch}, {height}, {width})")
    if likelihoods is not None and (likelihoods.shape != (batch, 3) or likelihoods.dtype != torch.float32):
        found = f"{tuple(likelihoods.shape)} {likelihoods.dtype}"
        raise ValueError(f"likelihoods are {found}, expected ({batch}, 3) torch.float32")
    _check_ids("text_tokens", text_tokens, PAD, sizes.text_vocab_size)
    _check_ids("given tokens", given, UNKNOWN, sizes.codebook_size)


def _check_ids(name: str, ids: Tensor, least: int, count: int) -> None:
    if ids.numel() and not (least <= ids.min() and ids.max() < count):
        raise ValueError(f"{name} hold ids from {ids.min()} to {ids.max()}, expected {least} to {count - 1}")
