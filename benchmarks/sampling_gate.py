"""No speed on wrong tokens: what greedy decoding draws is what whole forward passes find most likely.

One pass over the drawn picture tells: each token has to have the largest logit given those before it. Two roundings of
the same numbers may choose differently where two logits nearly tie, so what counts is how far the drawn token's logit
lies below the largest, over the logits' standard deviation.

Shapes: B batch, h w token grid, K codebook.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.prior_contestants import Batch
from transformer.model import Prior

# Some three times what 8 layers of the weights that are sampled from show in bfloat16; one wrong key in the text or a
# wrong mask in a few layers costs 2 and more, a token drawn at random 4.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.6, "int8": 0.6}


class Agreement(NamedTuple):
    equal: float
    """Share of the tokens that have the largest logit."""
    gap: float
    """The most by which one lies below, in standard deviations of the logits."""


@torch.no_grad()
def agreement(prior: Prior, batch: Batch, drawn: Tensor) -> Agreement:
    """Of the tokens (B, h, w) that greedy decoding drew after the captions of `batch`."""
    logits = prior(batch.text_tokens, drawn).image_logits.float()  # (B, h * w, K)
    best, chosen = logits.amax(dim=-1), logits.gather(-1, drawn.flatten(1)[..., None])[..., 0]
    return Agreement((chosen == best).double().mean().item(), ((best - chosen).max() / logits.std()).item())


def check(found: Agreement, dtype: str) -> None:
    """Raises ValueError for a gap beyond what the dtype explains."""
    if not found.gap <= TOLERANCES[dtype]:  # NaN is no less than anything
        raise ValueError(
            f"greedy tokens in {dtype} differ from those of whole passes: {found.equal:.2%} are equal, the worst lies "
            f"{found.gap:.2g} standard deviations below, allowed {TOLERANCES[dtype]:g}; nothing is timed"
        )
