"""The models that benchmarks/sampling.py and training.py compare, all as deep and wide, for equally long sequences.

Ours, a Llama of Hugging Face's transformers and DALLE-pytorch's DALLE, which is given our order of masks. Packages of
others are no dependencies: they take part where they are installed (`pip install --no-deps transformers regex
dalle-pytorch rotary-embedding-torch`).

Shapes: B batch, h w token grid.
"""

import math
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.peers import import_peer
from transformer.blocks import swiglu_width
from transformer.config import PriorConfig
from transformer.model import INIT_STD, Prior

NOT_OF_DALLE = (  # what DALLE-pytorch imports beside it
    *("axial_positional_embedding", "omegaconf", "taming", "taming.models", "taming.models.vqgan", "pkg_resources"),
    *("requests", "g_mlp_pytorch", "regex", "ftfy", "youtokentome", "transformers", "webdataset"),
)
MASKS = {"row": "axial_row", "column": "axial_col", "conv": "conv_like"}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A prior of 8 layers of 512, of 50 M weights, 29 M of which each drawn token needs."""

    n_layer: int = 8
    n_embd: int = 512
    n_head: int = 8
    text_vocab_size: int = 16_384
    text_len: int = 256
    side: int = 32
    """Of the token grid."""
    codebook_size: int = 8192

    def config(self) -> PriorConfig:
        sizes = asdict(self)
        side = sizes.pop("side")
        return PriorConfig(**sizes, grid_size=(side, side), block="modern")

    @property
    def image_len(self) -> int:
        return self.side**2


QUICK = Sizes(n_layer=5, n_embd=64, n_head=2, text_vocab_size=500, text_len=16, side=8, codebook_size=128)


class Batch(NamedTuple):
    text_tokens: Tensor
    """(B, text_len - 1), captions that fill it."""
    image_tokens: Tensor
    """(B, h, w)."""

    @classmethod
    def random(cls, sizes: Sizes, size: int, device: str) -> "Batch":
        generator = torch.Generator().manual_seed(1)
        shapes = (size, sizes.text_len - 1), (size, sizes.side, sizes.side)
        # No 0 in the text: it is DALLE-pytorch's pad.
        text = torch.randint(1, sizes.text_vocab_size, shapes[0], generator=generator)
        return cls(text.to(device), torch.randint(sizes.codebook_size, shapes[1], generator=generator).to(device))

    @property
    def seeds(self) -> Tensor:
        """int64 (B,), one a picture."""
        return torch.arange(len(self.text_tokens), device=self.text_tokens.device)


def make_ours(sizes: Sizes) -> Prior:
    """With starting values."""
    torch.manual_seed(0)
    return Prior(sizes.config())


@torch.no_grad()
def make_selective(prior: Prior) -> Prior:
    """Has each layer attend to few keys and count for as much as what it is added to, and logits vary by 4.

    With starting values alone, attention is an average of all keys, small beside the embeddings, and chance decides
    more than logits do: one key more or less would not show in the tokens that are drawn.
    """
    prior.image_head.weight.mul_(4 / (INIT_STD * math.sqrt(prior.config.n_embd)))
    for block in prior.blocks:
        block.attention.rotary_norm.q_gain.fill_(4)
        block.attention.proj.weight.mul_(4 * math.sqrt(2 * prior.config.n_layer))
        block.mlp.proj.weight.mul_(math.sqrt(2 * prior.config.n_layer))
    return prior


def make_llama(sizes: Sizes, vocab_size: int) -> nn.Module:
    """As deep and wide, causal, with one vocabulary for all positions; its eager blocks call PyTorch's attention."""
    transformers = import_peer("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=sizes.n_embd,
        intermediate_size=swiglu_width(sizes.config()),
        num_hidden_layers=sizes.n_layer,
        num_attention_heads=sizes.n_head,
        num_key_value_heads=sizes.n_head,
        vocab_size=vocab_size,
        max_position_embeddings=sizes.text_len + sizes.image_len,
        tie_word_embeddings=False,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    )
    return transformers.LlamaForCausalLM(config)


def make_dalle(sizes: Sizes, *, with_cache: bool = False) -> nn.Module:
    """DALLE-pytorch's own defaults beside the sizes. Its feed-forward layers and its joint head make it larger.

    Args:
        with_cache: attention that can be cached, their `optimize_for_inference`: masked where it is sparse.
    """
    dalle_pytorch = import_peer("dalle_pytorch", NOT_OF_DALLE)
    torch.manual_seed(0)
    # Never called: image tokens are handed over as they are.
    vae = dalle_pytorch.DiscreteVAE(
        image_size=8 * sizes.side, num_layers=3, num_tokens=sizes.codebook_size, codebook_dim=8, hidden_dim=8
    )
    return dalle_pytorch.DALLE(
        dim=sizes.n_embd,
        vae=vae,
        num_text_tokens=sizes.text_vocab_size,
        text_seq_len=sizes.text_len,
        depth=sizes.n_layer,
        heads=sizes.n_head,
        dim_head=sizes.n_embd // sizes.n_head,
        attn_types=tuple(MASKS[kind] for kind in sizes.config().layer_kinds),
        optimize_for_inference=with_cache,
    )


def dalle_text(batch: Batch) -> Tensor:
    """(B, text_len): DALLE-pytorch puts BOS before it and leaves the last image token out."""
    return torch.cat([batch.text_tokens, batch.text_tokens[:, :1]], dim=1)


def n_parameters(model: nn.Module) -> int:
    """Without the tokenizer that a DALLE holds."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("vae."))
