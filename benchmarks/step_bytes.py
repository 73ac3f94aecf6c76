"""What drawing one token must read: every weight of the blocks, the last norm and the image head, and the keys and
values that the masks let through. What the caption's pass, the embeddings' rows and the activations take is left out.
"""

from collections.abc import Sequence

import torch
from torch import nn

from kernels.patterns import Pattern, attends
from transformer.model import Prior


def weight_bytes(*modules: nn.Module) -> int:
    """Of all parameters and buffers that come with the weights, in the dtypes that they have."""
    return sum(x.numel() * x.element_size() for module in modules for x in module.state_dict().values())


def image_keys(patterns: Sequence[Pattern]) -> float:
    """How many of the picture's keys the token just drawn sees, itself included: summed over layers, averaged over the
    picture's tokens but the last, after which nothing is drawn."""
    return sum(_mean_keys(pattern) for pattern in patterns)


def _mean_keys(pattern: Pattern) -> float:
    queries = torch.arange(pattern.text_len, pattern.seq_len - 1)
    keys = torch.arange(pattern.text_len, pattern.seq_len)
    return attends(pattern, queries[:, None], keys[None, :]).sum().item() / len(queries)


def prior_bytes(prior: Prior, rows: int, texts: int, cache_itemsize: int) -> float:
    """A step of `rows` sequences, guidance's own among them, over the keys of `texts`, which rows may share."""
    config = prior.config
    keys = rows * image_keys(prior.patterns) + texts * config.text_len * config.n_layer
    return weight_bytes(prior.blocks, prior.norm, prior.image_head) + 2 * config.n_embd * cache_itemsize * keys


def llama_bytes(model: nn.Module, text_len: int, image_len: int, rows: int) -> float:
    """The same for a causal Llama: all earlier keys of each layer; no embeddings but the head."""
    config = model.config
    keys = config.num_hidden_layers * (text_len + image_len / 2)  # the mean of text_len + 1 .. text_len + image_len - 1
    weights = weight_bytes(model.model.layers, model.model.norm, model.lm_head)
    return weights + rows * 2 * config.hidden_size * model.dtype.itemsize * keys
