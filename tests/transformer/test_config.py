import dataclasses

import pytest
import torch

from transformer.config import PRESETS, PriorConfig, sparse_schedule
from transformer.model import Prior


def test_schedule_of_the_papers_64_layers():
    """Appendix B.1: layer i of 1..63 is column where (i - 2) mod 4 = 0, else row; layer 64 is conv."""
    kinds = sparse_schedule(64)
    columns = [2, 6, 10, 14, 18, 22, 26, 30, 34, 38, 42, 46, 50, 54, 58, 62]
    assert [i for i, kind in enumerate(kinds, start=1) if kind == "column"] == columns
    assert [i for i, kind in enumerate(kinds, start=1) if kind == "conv"] == [64]
    assert kinds.count("row") == 47


@pytest.mark.parametrize(
    ("n_layer", "expected"),
    [
        (1, ["conv"]),
        (2, ["row", "conv"]),
        (3, ["row", "column", "conv"]),
        (6, ["row", "column", "row", "row", "row", "conv"]),
        (8, ["row", "column", "row", "row", "row", "column", "row", "conv"]),
    ],
)
def test_schedule_of_small_models(n_layer, expected):
    assert sparse_schedule(n_layer) == expected
    assert PriorConfig(n_layer=n_layer).layer_kinds == expected


def test_causal_masks_everywhere(make_config, make_prior):
    assert make_config(masks="causal").layer_kinds == ["causal"] * 6
    sparse, causal = (make_prior(masks=masks, n_layer=1).patterns for masks in ("sparse", "causal"))
    assert [pattern.kind for pattern in (*sparse, *causal)] == ["conv", "causal"]


def test_settings_written_before_there_was_a_choice_of_masks(make_config):
    settings = dataclasses.asdict(make_config())
    del settings["masks"]
    assert PriorConfig(**settings) == make_config(masks="sparse")


def parameters(config: PriorConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Prior(config).parameters())


def test_dalle_12b_has_twelve_billion_parameters():
    width, layers = 3968, 64
    linear = 12 * width * width + (3 + 1 + 4 + 1) * width  # qkv, proj, up and down, with biases
    norms = 2 * 2 * width
    tables = (1 + 255 + 16_384 + 256 + 8192 + 32 + 32) * width  # BOS, pads, text, its positions, codes, rows, columns
    heads = (16_384 + 8192) * width
    assert parameters(PriorConfig(preset="dalle-12b")) == layers * (linear + norms) + tables + heads + 2 * width
    assert parameters(PriorConfig(preset="dalle-12b")) == 12_292_808_448


def test_presets_grow():
    counts = [parameters(PriorConfig(preset=name)) for name in ("tiny", "small", "base", "large", "dalle-12b")]
    assert counts == sorted(counts)
    assert set(PRESETS) == {"tiny", "small", "base", "large", "dalle-12b"}


def test_both_blocks_have_as_many_weights():
    paper, modern = (parameters(PriorConfig(preset="base", block=block)) for block in ("paper", "modern"))
    assert abs(paper - modern) < 0.01 * paper


def test_preset_fills_what_is_not_given():
    config = PriorConfig(preset="small", n_layer=6)
    assert (config.n_layer, config.n_head, config.n_embd, config.block) == (6, 6, 384, "modern")
    assert (config.head_dim, config.image_len, config.seq_len) == (64, 1024, 1280)


def test_config_survives_json_types(make_config):
    config = make_config()
    settings = dataclasses.asdict(config) | {"grid_size": list(config.grid_size)}
    assert PriorConfig(**settings) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"preset": "huge"}, "'huge', expected one of dalle-12b, large, base, small, tiny"),
        ({"block": "new"}, "'new', expected one of paper, modern"),
        ({"masks": "dense"}, "'dense', expected one of sparse, causal"),
        ({"n_embd": 20, "n_head": 3}, "n_embd 20 is not a multiple of n_head 3"),
        ({"n_embd": 12, "n_head": 2}, "12 / n_head 2 = 6, expected a multiple of 4"),
        ({"n_layer": 0}, "n_layer is 0, expected a whole number of at least 1"),
        ({"codebook_size": 0}, "codebook_size is 0"),
        ({"grid_size": (4, 0)}, r"grid_size\[1\] is 0"),
        ({"grid_size": (4,)}, "grid_size has 1 numbers, expected 2"),
        ({"text_len": 1}, "text_len is 1, expected a whole number of at least 2"),
        ({"conv_wrap": "round"}, "'round', expected one of linear"),
        ({"conv_kernel": 4}, "conv_kernel is 4"),
    ],
)
def test_impossible_sizes_are_refused(make_config, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_config(**overrides)
