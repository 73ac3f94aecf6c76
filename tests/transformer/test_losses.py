import math

import torch

from transformer.losses import prior_loss


def test_by_hand():
    text_logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]], [[math.log(7.0), 0.0], [9.0, -9.0]]])
    text_tokens = torch.tensor([[1, 0], [1, -1]])  # probabilities 3/4, 1/2, 1/8 and a pad
    image_logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.0, math.log(2.0), 0.0, 0.0]]] * 2)
    image_tokens = torch.tensor([[[2, 1]], [[0, 3]]])  # probabilities 1/4, 2/5, 1/4, 1/5
    loss = prior_loss(text_logits, image_logits, text_tokens, image_tokens)
    text = -(math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 8)) / 3
    image = -(math.log(1 / 4) + math.log(2 / 5) + math.log(1 / 4) + math.log(1 / 5)) / 4
    torch.testing.assert_close(torch.stack(loss), torch.tensor([text / 8 + 7 * image / 8, text, image]))


def test_without_any_caption_text_costs_nothing():
    loss = prior_loss(torch.randn(2, 3, 5), torch.zeros(2, 4, 8), torch.full((2, 3), -1), torch.zeros(2, 2, 2).long())
    assert loss.text == 0
    torch.testing.assert_close(loss.total, torch.tensor(7 / 8 * math.log(8)))


def test_pads_have_no_gradient():
    text_logits = torch.randn(1, 3, 5, requires_grad=True)
    loss = prior_loss(text_logits, torch.zeros(1, 1, 2), torch.tensor([[2, -1, 4]]), torch.zeros(1, 1, 1).long())
    loss.total.backward()
    assert text_logits.grad.abs().sum(dim=-1)[0].gt(0).tolist() == [True, False, True]
