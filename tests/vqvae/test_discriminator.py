import pytest
import torch
from torch import Tensor, nn

from vqvae.discriminator import PatchDiscriminator, adaptive_weight, generator_loss, hinge_loss, lecam_penalty


@pytest.mark.parametrize(("n_layers", "side", "places"), [(3, 64, 6), (2, 32, 6), (1, 32, 14)])
def test_one_logit_a_patch(n_layers, side, places):
    assert PatchDiscriminator(8, n_layers)(torch.rand(2, 3, side, side)).shape == (2, 1, places, places)


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4])
def test_the_smallest_pictures(n_layers):
    discriminator = PatchDiscriminator(8, n_layers)
    least = discriminator.smallest_side
    assert discriminator(torch.rand(1, 3, least, least)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        discriminator(torch.rand(1, 3, least - 1, least - 1))


def test_a_patch_is_70_pixels_wide():
    torch.manual_seed(0)
    # Without the normalisation, which looks at the whole picture.
    layers = [layer for layer in PatchDiscriminator(8).layers if not isinstance(layer, nn.GroupNorm)]
    images = torch.rand(1, 3, 160, 160, requires_grad=True)
    logits = nn.Sequential(*layers)(images)
    logits[0, 0, 9, 9].backward()
    seen = images.grad.abs().sum(dim=(0, 1, 2)).nonzero().flatten()
    assert seen.max() - seen.min() + 1 == 70


def test_a_pictures_logits_do_not_depend_on_the_batch():
    discriminator, images = PatchDiscriminator(8).train(), torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(discriminator(images)[1:2], discriminator(images[1:2]))


@pytest.mark.parametrize(("settings", "said"), [({"width": 12}, "multiple of 8"), ({"n_layers": 0}, "at least 1")])
def test_sizes_that_cannot_be(settings, said):
    with pytest.raises(ValueError, match=said):
        PatchDiscriminator(**settings)


def test_losses_by_hand():
    real, fake = torch.tensor([[2.0, 0.5]]), torch.tensor([[-3.0, 1.0]])
    assert hinge_loss(real, fake) == (0 + 0.5) / 2 + (0 + 2) / 2
    assert generator_loss(fake) == 1.0
    assert hinge_loss(torch.zeros(3), torch.zeros(3)) == 2.0
    # Means a picture: real 1.25, fake -1; only what lies beyond the other's average counts.
    averages = torch.tensor(0.25), torch.tensor(0.75)
    assert lecam_penalty(real, fake, *averages) == (1.25 - 0.75) ** 2 + (0.25 + 1) ** 2
    assert lecam_penalty(real - 9, fake + 9, *averages) == 0


def test_losses_of_bf16_are_float32():
    logits = torch.randn(2, 1, 4, 4).bfloat16()
    assert hinge_loss(logits, logits).dtype == generator_loss(logits).dtype == torch.float32


@pytest.mark.parametrize("largest", [1e4, 0.5])
def test_the_adaptive_weight_makes_both_gradients_equally_strong(largest):
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 4), torch.randn(3, 5)

    def losses(weight: Tensor) -> tuple[Tensor, Tensor]:
        out = x @ weight.T
        return 3 * out.square().mean(), (0.1 * out).sin().mean()

    norms = []
    for i in range(2):  # by differences, in float64
        weight = layer.weight.detach().double()
        gradient = torch.zeros_like(weight)
        for index in range(weight.numel()):
            step = torch.zeros_like(weight).flatten()
            step[index] = 1e-5
            step = step.view_as(weight)
            x = x.double()
            gradient.view(-1)[index] = (losses(weight + step)[i] - losses(weight - step)[i]) / 2e-5
        norms.append(gradient.norm())
    x = x.float()
    reconstruction, adversarial = losses(layer.weight)
    found = adaptive_weight(reconstruction, adversarial, layer.weight, largest)
    assert not found.requires_grad
    assert found.item() == pytest.approx(min((norms[0] / (norms[1] + 1e-4)).item(), largest), rel=1e-4)
    (reconstruction + found * adversarial).backward()  # the graphs are still there
