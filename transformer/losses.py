"""The prior's loss: two cross entropies, each over its own kind of token, weighted 1/8 and 7/8.

https://arxiv.org/abs/2102.12092, section 2.2: each is divided by the number of its tokens in the batch, and the picture
weighs more because pictures are the aim. Pads are no targets, which is this project's reading: the model is asked for a
caption's tokens, not where it ends.

In training, all logits are never there at once: of 32 captions of 255 tokens out of 16,384 and pictures of 1,024 out of
8192, they are 0.4 G numbers, which with softmax and gradients take 3.2 GB in bf16 (10 bytes a number of the picture's,
4 of the text's). `head_loss` takes some positions at a time and makes their gradients in the forward pass, while their
logits are there: no more arithmetic than one large product, and on a CPU no slower (docs/log.md).

Shapes: B batch, N positions, C n_embd, V entries of a vocabulary or codebook, K codebook, h w token grid.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from transformer.embeddings import PAD

TEXT_WEIGHT = 1 / 8
IMAGE_WEIGHT = 7 / 8
LOGITS_AT_A_TIME = 2**24
"""64 MB in float32: 2048 positions of 8192 codes, which is enough for matrix products to be at their best."""


class PriorLoss(NamedTuple):
    """Scalars, in nats a token."""

    total: Tensor
    text: Tensor
    image: Tensor


def text_loss(logits: Tensor, text_tokens: Tensor) -> Tensor:
    """Mean cross entropy over the tokens that are no pads; 0 where all are. (B, text_len - 1, V), (B, text_len - 1)."""
    total = F.cross_entropy(logits.flatten(0, 1).float(), text_tokens.flatten(), ignore_index=PAD, reduction="sum")
    return total / (text_tokens != PAD).sum().clamp_min(1)


def image_loss(logits: Tensor, image_tokens: Tensor) -> Tensor:
    """Mean cross entropy over all image tokens. (B, h * w, K), (B, h, w)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), image_tokens.flatten())


def prior_loss(text_logits: Tensor, image_logits: Tensor, text_tokens: Tensor, image_tokens: Tensor) -> PriorLoss:
    """Losses of a prior's output on what it was given, see `Prior.forward`."""
    return weigh(text_loss(text_logits, text_tokens), image_loss(image_logits, image_tokens))


def weigh(text: Tensor, image: Tensor) -> PriorLoss:
    return PriorLoss(TEXT_WEIGHT * text + IMAGE_WEIGHT * image, text, image)


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of the logits hidden @ weight.T over the targets that are no pads; 0 where all are.

    Once differentiable. Under autocast the products are in its dtype, the rest in float32.

    Args:
        hidden: (B, N, C), after the last norm.
        weight: (V, C), of a head without bias.
        targets: int64, B * N of them in order, in 0 .. V - 1 or PAD.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    count = (targets != PAD).sum().clamp_min(1)
    if hidden.device.type == "cpu" and not torch.compiler.is_compiling():
        # Elsewhere, how many there are would have to be waited for, or be compiled for.
        used = targets != PAD
        hidden, targets = hidden[used], targets[used]
    return summed_loss(hidden, weight, targets) / count


def summed_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The sum that `head_loss` takes the mean of, pads computed like the rest: (N, C), (V, C), (N,)."""
    autocast = torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64
    dtype = torch.get_autocast_dtype(hidden.device.type) if autocast else hidden.dtype
    return _HeadLoss.apply(hidden, weight, targets, dtype, torch.is_grad_enabled())


class _HeadLoss(torch.autograd.Function):
    """(N, C), (V, C), (N,) -> the sum. The gradients are there after the forward pass, up to a factor."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, learning: bool
    ) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        narrow_weight = weight.to(dtype)
        total = hidden.new_zeros((), dtype=wide)
        dhidden = torch.empty_like(hidden, dtype=dtype)
        dweight = torch.zeros_like(weight, dtype=wide) if learning else None
        rows = max(1, LOGITS_AT_A_TIME // len(weight))
        for start in range(0, len(hidden), rows):
            span = slice(start, start + rows)
            x, used = hidden[span].to(dtype), (targets[span] != PAD)[:, None]
            target = targets[span, None].clamp_min(0)  # of a pad: any, as `used` takes it out
            log_p = torch.log_softmax((x @ narrow_weight.T).to(wide), dim=-1)  # (rows, V)
            total -= torch.where(used, log_p.gather(1, target), 0).sum()
            if dweight is not None:
                dlogits = log_p.exp_().scatter_add_(1, target, log_p.new_full(target.shape, -1)).to(dtype)
                dhidden[span] = (dlogits @ narrow_weight) * used
                dweight += dlogits.T @ (x * used)
        ctx.save_for_backward(dhidden, dweight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        return (dhidden * dtotal).to(hidden_dtype), (dweight * dtotal).to(weight_dtype), None, None, None
