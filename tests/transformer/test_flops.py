import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kernels.patterns import Pattern, dense_mask
from kernels.reference import attention_reference
from transformer import attention as layer
from transformer.embeddings import null_captions
from transformer.flops import attended_pairs, forward_flops, training_flops

SMALL = {"text_len": 6, "height": 4, "width": 3, "conv_kernel": 3}


@pytest.fixture
def counted(make_prior, make_batch, monkeypatch):
    """From settings to the products that PyTorch counts in a step, attention written out densely."""

    def dense(q, k, v, pattern, *, prefix_lengths):
        return attention_reference(q, k, v, pattern, prefix_lengths=prefix_lengths)

    monkeypatch.setattr(layer, "attention", dense)

    def count(text_tokens=None, **settings) -> int:
        prior = make_prior(**settings)
        text, image = make_batch(2)
        full = torch.ones_like(text) if text_tokens is None else text_tokens.expand_as(text)
        with FlopCounterMode(display=False) as counter:
            prior.loss(full, image).total.backward()
        return counter.get_total_flops() // 2

    return count


@pytest.mark.parametrize("settings", [{"block": "paper"}, {"block": "modern", "n_layer": 3, "n_embd": 24}])
def test_equals_what_pytorch_counts(make_config, counted, settings):
    """But for the attention, of which PyTorch counts all pairs."""
    config = make_config(**settings)
    forward = forward_flops(config)
    attention = 2 * config.n_layer * config.seq_len**2 * 2 * config.n_embd
    assert counted(**settings) == 3 * (sum(forward) - forward.attention + attention)


def test_without_a_caption_the_text_head_has_nothing_to_do(make_config, counted):
    config = make_config()
    null = null_captions(2, config.text_len)
    full, none = forward_flops(config), forward_flops(config, text_tokens=0)
    assert none.text_head == 0
    assert counted() - counted(null) == 3 * full.text_head
    assert full._replace(text_head=0) == none


def test_training_is_three_forward_passes(make_config):
    flops = training_flops(config := make_config(attend_pads=False))
    for text_tokens in (0, 3, 5):
        assert flops.picture + text_tokens * flops.text_token == 3 * sum(forward_flops(config, text_tokens))


@pytest.mark.parametrize("kind", ["causal", "row", "column", "conv"])
def test_pairs_are_those_of_the_mask(kind, monkeypatch):
    monkeypatch.setattr("transformer.flops.ROWS", 7)
    pattern = Pattern(kind, **SMALL)
    attended_pairs.cache_clear()
    assert attended_pairs(pattern) == dense_mask(pattern).sum()


def test_pairs_by_hand():
    """Text 6 * 7 / 2 and 12 image queries that see it; of the image, all before, or the column's."""
    assert attended_pairs(Pattern("causal", **SMALL)) == 21 + 12 * 6 + 12 * 13 // 2
    assert attended_pairs(Pattern("column", **SMALL)) == 21 + 12 * 6 + 3 * (4 * 5 // 2)


def test_attention_counts_each_layers_pairs(make_config):
    config = make_config(n_layer=3)  # row, column, conv
    pairs = sum(int(dense_mask(config.pattern(kind)).sum()) for kind in ("row", "column", "conv"))
    assert forward_flops(config).attention == 4 * config.n_embd * pairs


def test_pads_that_are_not_attended_to_do_not_count(make_config, make_prior):
    config = make_config(n_layer=2, attend_pads=False)
    full, three = forward_flops(config).attention, forward_flops(config, text_tokens=3).attention
    masks = [dense_mask(config.pattern(kind)) for kind in ("row", "conv")]
    unseen = sum(int(mask[6:, 4:6].sum()) for mask in masks)  # BOS and three tokens are seen
    assert full - three == 4 * config.n_embd * unseen


def test_the_papers_prior(make_config):
    """By its weights alone: 2 operations a weight and position, for all but what is looked up."""
    config = make_config(
        preset="dalle-12b",
        n_layer=None,
        n_head=None,
        n_embd=None,
        text_len=256,
        grid_size=(32, 32),
        codebook_size=8192,
        text_vocab_size=16384,
        conv_kernel=11,
    )
    flops = forward_flops(config)
    assert flops.projections + flops.mlp == 2 * 1280 * 64 * 12 * 3968**2
    assert flops.attention < 0.02 * sum(flops)
