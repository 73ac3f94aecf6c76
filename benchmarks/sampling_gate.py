"""No speed on wrong tokens: what is timed draws what whole forward passes would have drawn.

One pass over the drawn pictures tells: each token has to win the race that sampling.py runs, of the logits given the
tokens before it and of the numbers that its seed makes; without a temperature, of the logits alone. The pass is that of
the same weights in float32, narrow ones multiplied out, by the model that is trained. Two roundings of the same numbers
may choose differently where two codes nearly tie, so what counts is how far the drawn one lies behind the winner, over
the standard deviation of the logits.

Shapes: B batch, h w token grid, K codebook.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.prior_contestants import Batch
from transformer.embeddings import null_captions
from transformer.model import Prior
from transformer.noise import exponential_noise
from transformer.sampling import SamplingConfig, guide
from transformer.serving import ServingLinear

# Two to three times what 8 layers of the weights that are sampled from show. One wrong key of the text or a wrong mask
# of a few layers costs 2 and more. In bfloat16 the text's pass rounds activations too, with int8 weights it does not.
TOLERANCES = {"float32": 1e-3, "bfloat16": 1.5, "int8": 0.3}


class Agreement(NamedTuple):
    equal: float
    """Share of the tokens that win."""
    gap: float
    """The most by which one lies behind, in standard deviations of the logits."""


def in_float32(prior: Prior) -> Prior:
    """As it is trained, with the weights of one that is prepared for decoding."""
    weights = prior.state_dict()
    for name, module in prior.named_modules():
        if isinstance(module, ServingLinear):
            scale = weights.pop(f"{name}.scale", None)
            weight = weights[f"{name}.weight"].float()
            weights[f"{name}.weight"] = weight if scale is None else weight * scale[:, None]
    wide = Prior(prior.config).to(prior.cos.device).eval()
    wide.load_state_dict(weights)
    return wide


@torch.no_grad()
def agreement(prior: Prior, batch: Batch, drawn: Tensor, config: SamplingConfig) -> Agreement:
    """Of tokens (B, h, w) drawn after the captions of `batch`, with its seeds, by `config`, which cuts nothing off and
    whose temperature is 1 or 0."""
    logits = guided_logits(prior, batch, drawn, config)  # (B, h * w, K)
    scores = logits
    if config.temperature != 0:
        noise = (exponential_noise(batch.seeds, i, logits.shape[-1]) for i in range(logits.shape[1]))
        scores = logits - torch.stack([each.log().float() for each in noise], dim=1)
    best, chosen = scores.amax(dim=-1), scores.gather(-1, drawn.flatten(1)[..., None])[..., 0]
    return Agreement((chosen == best).double().mean().item(), ((best - chosen).max() / logits.std()).item())


def guided_logits(prior: Prior, batch: Batch, drawn: Tensor, config: SamplingConfig) -> Tensor:
    logits = prior(batch.text_tokens, drawn).image_logits
    if not config.guided:
        return logits
    null = null_captions(len(drawn), prior.config.text_len, drawn.device)
    return guide(logits, prior(null, drawn).image_logits, config.guidance_scale)


def check(found: Agreement, what: str, dtype: str) -> None:
    """Raises ValueError for a gap beyond what the weights' dtype explains."""
    if not found.gap <= TOLERANCES[dtype]:  # NaN is no less than anything
        raise ValueError(
            f"{what} in {dtype}: the tokens differ from those of whole passes: {found.equal:.2%} are equal, the worst "
            f"lies {found.gap:.2g} standard deviations behind, allowed {TOLERANCES[dtype]:g}; nothing is reported"
        )
