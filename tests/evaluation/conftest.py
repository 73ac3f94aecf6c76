"""Priors of tests/transformer's sizes: 12 codes out of 13 on 4x3, captions of 5 tokens out of 11."""

from tests.transformer.conftest import make_batch, make_config, make_prior

__all__ = ["make_batch", "make_config", "make_prior"]
