"""What is trained of ours and of others, and how its products are counted."""

import importlib.util

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.prior_contestants import QUICK
from benchmarks.trainers import TRAINERS, Case, DallePytorch, Llama, Ours

CASE = Case(sizes=QUICK, batch=2, dtype="float32", device="cpu")
needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
needs_dalle = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("dalle_pytorch", "rotary_embedding_torch")),
    reason="dalle-pytorch or rotary-embedding-torch is not installed",
)


def losses(name: str, dtype: str) -> list[float]:
    trainer = TRAINERS[name](Case(sizes=QUICK, batch=2, dtype=dtype, device="cpu"))
    return [trainer.step().item() for _ in range(4)]


@pytest.mark.parametrize(
    "name",
    [
        "ours",
        pytest.param("Llama", marks=needs_llama),
        pytest.param("Llama, codes alone", marks=needs_llama),
        pytest.param("DALLE-pytorch", marks=needs_dalle),
    ],
)
def test_every_step_lowers_the_loss(name):
    wide, narrow = losses(name, "float32"), losses(name, "bfloat16")
    assert wide == sorted(wide, reverse=True) and narrow == sorted(narrow, reverse=True)
    assert narrow == pytest.approx(wide, rel=1e-2)
    assert narrow != wide  # autocast did something


def counted(trainer) -> int:
    with FlopCounterMode(display=False) as counter:
        trainer.loss().backward()
    return counter.get_total_flops()


def test_our_flops_are_those_of_the_products_less_masked_pairs():
    ours = Ours(CASE, compiled=False)
    assert 0.7 < ours.flops() / counted(ours) < 1


@needs_llama
def test_a_llamas_flops_by_hand():
    """A block has 4 matrices of 64 x 64 and 3 of 64 x 192; half of the pairs are masked."""
    llama = Llama(CASE, joint=False)
    forward = 2 * 80 * 5 * (4 * 64**2 + 3 * 64 * 192) + 4 * 64 * 5 * 80 * 81 / 2 + 2 * 79 * 64 * 128
    assert llama.flops() == 3 * 2 * forward
    assert 0.8 < llama.flops() / counted(llama) < 1


@needs_llama
def test_a_llama_sees_captions_and_pictures():
    joint, alone = Llama(CASE, joint=True), Llama(CASE, joint=False)
    assert joint.ids.shape == alone.ids.shape == (2, 80)
    assert torch.equal(joint.ids[:, 16:] - 500, joint.batch.image_tokens.flatten(1))
    assert torch.equal(joint.ids[:, 1:16], joint.batch.text_tokens)
    assert alone.ids.max() < 128


@needs_dalle
def test_a_dalle_sees_as_many_positions():
    dalle = DallePytorch(CASE)
    seen = []
    dalle.model.transformer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    before = [p.clone() for p in dalle.model.parameters()]
    assert dalle.flops() > 0
    assert seen == [(2, 80, 64)]
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(dalle.model.parameters(), before, strict=True))
