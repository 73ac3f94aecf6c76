import copy

import pytest
import torch
import torch.nn.functional as F

from kernels import attention
from transformer.losses import prior_loss
from transformer.model import Prior

BLOCKS = pytest.mark.parametrize("block", ["paper", "modern"])
PADS = pytest.mark.parametrize("attend_pads", [True, False])


def sequence_logits(prior: Prior, text_tokens, image_tokens):
    output = prior(text_tokens, image_tokens)
    return torch.cat([output.text_logits.flatten(2), F.pad(output.image_logits, (0, -2))], dim=1)


@BLOCKS
def test_shapes(make_prior, make_batch, block):
    output = make_prior(block=block)(*make_batch())
    assert output.text_logits.shape == (3, 5, 11)
    assert output.image_logits.shape == (3, 12, 13)


@BLOCKS
@PADS
def test_no_output_sees_its_target_or_later(make_prior, make_batch, block, attend_pads):
    """Replacing the token at sequence position p moves outputs from p on and none before, which predict it at most."""
    prior = make_prior(block=block, attend_pads=attend_pads)
    text_tokens, image_tokens = make_batch(1)
    before = sequence_logits(prior, text_tokens, image_tokens)  # (1, 5 + 12, 11), entry i is the output at position i
    for position in range(1, 18):
        text, image = text_tokens.clone(), image_tokens.clone()
        if position < 6:
            text[:, position - 1] = (text[:, position - 1] + 1) % 11
        else:
            image.view(1, -1)[:, position - 6] = (image.view(1, -1)[:, position - 6] + 1) % 13
        moved = (sequence_logits(prior, text, image) - before).abs().amax(dim=-1)[0]
        assert moved[:position].max() == 0
        assert position == 17 or moved[position] > 1e-4


@BLOCKS
def test_pads_have_no_part_in_a_picture_unless_attended_to(make_prior, make_batch, block):
    text_tokens, image_tokens = make_batch()
    for attend_pads in (True, False):
        prior = make_prior(block=block, attend_pads=attend_pads)
        before = prior(text_tokens, image_tokens).image_logits
        with torch.no_grad():
            prior.embedding.pads.add_(torch.randn_like(prior.embedding.pads))
        moved = (prior(text_tokens, image_tokens).image_logits - before).abs().amax(dim=-1)  # (3, 12)
        assert moved[0].max() == 0  # a caption that fills all its positions has no pads
        assert (moved[1:] > 1e-4).all() if attend_pads else moved[1:].max() == 0


def test_captions_matter_without_pads(make_prior, make_batch):
    prior = make_prior(attend_pads=False)
    text_tokens, image_tokens = make_batch()
    before = prior(text_tokens, image_tokens).image_logits
    text_tokens[1, 2] = (text_tokens[1, 2] + 1) % 11  # the last token of the second caption
    moved = (prior(text_tokens, image_tokens).image_logits - before).abs().amax(dim=-1)
    assert (moved.amax(dim=1) > 1e-4).tolist() == [False, True, False]
    assert (moved[1] > 1e-4).all()


@BLOCKS
def test_checkpointing_changes_nothing_but_memory(make_prior, make_batch, block):
    plain = make_prior(block=block).train()
    recomputing = make_prior(block=block, checkpoint_activations=True).train()
    recomputing.load_state_dict(plain.state_dict())
    text_tokens, image_tokens = make_batch()
    losses = []
    for prior in (plain, recomputing):
        output = prior(text_tokens, image_tokens)
        loss = prior_loss(output.text_logits, output.image_logits, text_tokens, image_tokens).total
        loss.backward()
        losses.append(loss)
    assert losses[0] == losses[1]
    for (name, left), right in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        assert torch.equal(left.grad, right.grad), name


@BLOCKS
@PADS
def test_training_by_triton_follows_the_same_gradients(make_prior, make_batch, monkeypatch, block, attend_pads):
    """Loss and gradients as a GPU has them, in Triton's interpreter where there is none."""
    pytest.importorskip("triton", reason="Triton is for Linux")
    from kernels import flash, flash_launch
    from kernels.launch import Launch

    text_tokens, image_tokens = make_batch(2)
    prior = make_prior(block=block, attend_pads=attend_pads, checkpoint_activations=True).train()
    prior.patterns = [prior.config.pattern(kind) for kind in ("row", "column", "conv", "causal", "row", "column")]

    def gradients() -> dict[str, torch.Tensor]:
        prior.zero_grad()
        output = prior(text_tokens, image_tokens)
        prior_loss(output.text_logits, output.image_logits, text_tokens, image_tokens).total.backward()
        return {name: parameter.grad for name, parameter in prior.named_parameters()}

    expected, runs = gradients(), []
    monkeypatch.setattr(attention, "suits_triton", lambda q: True)
    monkeypatch.setattr(flash_launch, "launch_parameters", lambda *args: Launch(16, 16, 4, 1))
    monkeypatch.setattr(flash, "run_forward", lambda *args, run=flash.run_forward: runs.append(1) or run(*args))
    found = gradients()
    assert len(runs) == 2 * 6  # the checkpoints' second time included
    for name in expected:
        assert (found[name] - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


def test_checkpointing_recomputes(make_prior, make_batch, monkeypatch):
    calls = []
    monkeypatch.setattr("transformer.model.checkpoint", lambda block, *inputs, **_: calls.append(1) or block(*inputs))
    prior = make_prior(checkpoint_activations=True)
    prior.train()(*make_batch())
    assert len(calls) == 6
    with torch.no_grad():
        prior(*make_batch())
    prior.eval()(*make_batch())
    assert len(calls) == 6


@BLOCKS
def test_every_parameter_learns(make_prior, make_batch, block):
    prior = make_prior(block=block)
    text_tokens, image_tokens = make_batch(5)
    output = prior(text_tokens, image_tokens)
    prior_loss(output.text_logits, output.image_logits, text_tokens, image_tokens).total.backward()
    assert [name for name, parameter in prior.named_parameters() if not parameter.grad.abs().sum() > 0] == []


@BLOCKS
def test_overfits_one_batch(make_config, make_batch, block):
    torch.manual_seed(0)
    prior = Prior(make_config(block=block, n_embd=32, n_layer=3))
    text_tokens, image_tokens = make_batch()
    text_tokens[:, 0] = torch.tensor([1, 2, 3])  # what tells the three pictures apart
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2)
    for _ in range(150):
        output = prior(text_tokens, image_tokens)
        loss = prior_loss(output.text_logits, output.image_logits, text_tokens, image_tokens)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert loss.image < 0.05
    # The first token is a guess between the three captions; the rest of the text is known.
    assert loss.text < 0.6


@BLOCKS
def test_starts_near_a_uniform_guess(make_config, make_batch, block):
    torch.manual_seed(0)
    text_tokens, image_tokens = make_batch()
    output = Prior(make_config(block=block))(text_tokens, image_tokens)
    loss = prior_loss(output.text_logits, output.image_logits, text_tokens, image_tokens)
    expected = torch.tensor([11.0, 13.0]).log()
    torch.testing.assert_close(torch.stack([loss.text, loss.image]), expected, atol=0.05, rtol=0)


def test_starting_values(make_config):
    torch.manual_seed(0)
    prior = Prior(make_config(block="paper", n_embd=64, n_layer=8))
    block = prior.blocks[3]
    assert abs(block.attention.qkv.weight.detach().std() - 0.02) < 0.001
    assert abs(block.mlp.up.weight.detach().std() - 0.02) < 0.001
    assert abs(block.mlp.proj.weight.detach().std() - 0.02 / 4) < 0.0003
    assert abs(block.attention.proj.weight.detach().std() - 0.02 / 4) < 0.0003
    assert abs(prior.embedding.text_token.weight.detach().std() - 0.02) < 0.002
    assert (block.mlp_norm.weight == 1).all()
    assert (block.attention.qkv.bias == 0).all()


def test_modern_block_has_no_biases(make_prior):
    assert not [name for name, _ in make_prior(block="modern").named_parameters() if "bias" in name]


@BLOCKS
def test_bfloat16_autocast_is_close(make_prior, make_batch, block):
    prior = make_prior(block=block)
    exact = prior(*make_batch()).image_logits
    with torch.autocast("cpu", torch.bfloat16):
        rough = prior(*make_batch()).image_logits
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("text_shape", "image_shape", "message"),
    [
        ((2, 6), (2, 4, 3), r"text_tokens are \(2, 6\), expected \(B, 5\)"),
        ((5,), (2, 4, 3), r"text_tokens are \(5,\), expected \(B, 5\)"),
        ((2, 5), (2, 3, 4), r"image_tokens are \(2, 3, 4\), expected \(B, 4, 3\)"),
        ((2, 5), (2, 12), r"image_tokens are \(2, 12\), expected \(B, 4, 3\)"),
    ],
)
def test_wrong_shapes_are_refused(make_prior, text_shape, image_shape, message):
    with pytest.raises(ValueError, match=message):
        make_prior()(torch.zeros(text_shape).long(), torch.zeros(image_shape).long())


def test_copies_are_independent(make_prior, make_batch):
    """Lightning's weight averaging and others deep-copy a model."""
    prior = make_prior()
    twin = copy.deepcopy(prior)
    torch.testing.assert_close(twin(*make_batch()), prior(*make_batch()), atol=0, rtol=0)
