import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from transformer import losses
from transformer.losses import head_loss, prior_loss


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


def head_case(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """hidden (2, 9, 4), weight (7, 4), targets with pads; logits that differ much."""
    random = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=random, dtype=dtype) for shape in ((2, 9, 4), (7, 4)))
    targets = torch.randint(7, (2, 9), generator=random)
    targets[0, 5:] = targets[1, 2:4] = -1
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def plain_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), ignore_index=-1)


def value_and_gradients(loss: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    hidden, weight, targets = head_case(dtype)
    value = loss(hidden, weight, targets)
    (3 * value).backward()
    return [value.detach(), hidden.grad, weight.grad]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-6) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.fixture(params=[7, 28, 10_000], ids=["one at a time", "four at a time", "all at once"])
def at_a_time(request, monkeypatch) -> int:
    monkeypatch.setattr(losses, "LOGITS_AT_A_TIME", request.param)
    return request.param


def compiled(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """In one graph, and with the pads among the rest, as on a GPU."""
    return torch.compile(head_loss, fullgraph=True, backend="aot_eager")(hidden, weight, targets)


@pytest.mark.parametrize("loss", [head_loss, compiled])
def test_equals_the_loss_of_all_logits(at_a_time, loss):
    assert_close(value_and_gradients(loss), value_and_gradients(plain_loss))


def test_equals_it_in_double_precision(at_a_time):
    found, expected = (value_and_gradients(loss, torch.float64) for loss in (head_loss, plain_loss))
    assert found[0].dtype == torch.float64
    assert_close(found, expected, 1e-12)


def swapped(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Two targets in each other's place, which the mean of random ones would hardly show."""
    order = torch.arange(targets.numel())
    order[[6, 10]] = order[[10, 6]]
    return head_loss(hidden, weight, targets.flatten()[order].view(targets.shape))


def no_factor(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    value = head_loss(hidden, weight, targets)
    return value / 3 + (value * 2 / 3).detach()


@pytest.mark.parametrize("fault", [swapped, no_factor])
def test_faults_are_seen(fault):
    with pytest.raises(AssertionError):
        assert_close(value_and_gradients(fault), value_and_gradients(plain_loss), 1e-3)


def test_under_autocast_it_is_as_near_as_the_loss_of_all_logits(at_a_time):
    def rough(loss: Callable[..., Tensor]) -> list[Tensor]:
        def of(*case: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return loss(*case).float()

        return value_and_gradients(of)

    exact = value_and_gradients(plain_loss)
    ours, theirs = (rough(loss) for loss in (head_loss, lambda *case: plain_loss(*case).float()))
    assert [x.dtype for x in ours] == [torch.float32] * 3
    for found, peer, expected in zip(ours, theirs, exact, strict=True):
        assert (found - expected).norm() <= 2 * (peer - expected).norm() + 1e-3 * expected.norm()


def test_a_frozen_head_and_no_gradients(at_a_time):
    hidden, weight, targets = head_case()
    expected = plain_loss(hidden, weight, targets)
    with torch.no_grad():
        torch.testing.assert_close(head_loss(hidden, weight, targets), expected)
    head_loss(hidden, weight.detach(), targets).backward()
    (gradient,) = torch.autograd.grad(expected, hidden)
    torch.testing.assert_close(hidden.grad, gradient)


@pytest.mark.parametrize("loss", [head_loss, compiled])
def test_without_targets_nothing_is_lost_or_learnt(loss):
    hidden, weight, targets = head_case()
    value = loss(hidden, weight, torch.full_like(targets, -1))
    value.backward()
    assert value == 0
    assert hidden.grad.abs().max() == weight.grad.abs().max() == 0


class Largest(TorchDispatchMode):
    """The most numbers that any result has."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.seen = max(self.seen, result.numel())
        return result


def test_all_logits_are_never_there(monkeypatch):
    """64 positions of 128 entries, 4 at a time; the weight's gradient has 1024 numbers."""
    monkeypatch.setattr(losses, "LOGITS_AT_A_TIME", 512)
    hidden, weight = torch.randn(64, 8, requires_grad=True), torch.randn(128, 8, requires_grad=True)
    for loss, most in ((head_loss, 1024), (lambda x, w, t: F.cross_entropy(x @ w.T, t), 64 * 128)):
        with Largest() as largest:
            loss(hidden, weight, torch.zeros(64).long()).backward()
        assert largest.seen == most


@pytest.mark.parametrize("settings", [{}, {"block": "paper"}, {"attend_pads": False}])
def test_a_priors_loss_is_that_of_its_logits(make_prior, make_batch, at_a_time, settings):
    prior = make_prior(**settings)
    found = {}
    for name in ("loss", "logits"):
        prior.zero_grad()
        text_tokens, image_tokens = make_batch(3)
        if name == "loss":
            loss = prior.loss(text_tokens, image_tokens)
        else:
            loss = prior_loss(*prior(text_tokens, image_tokens), text_tokens, image_tokens)
        loss.total.backward()
        found[name] = [torch.stack(loss).detach(), *(parameter.grad for parameter in prior.parameters())]
    assert_close(found["loss"], found["logits"])
