import pytest
import torch

from transformer.noise import exponential_noise, splitmix64, uniform_noise
from transformer.sampling import sample_token


def splitmix64_of_integers(seed: int, count: int) -> list[int]:
    """The published generator, step by step, in whole numbers modulo 2^64."""
    outputs, state = [], seed % 2**64
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        outputs.append(z ^ (z >> 31))
    return outputs


def unsigned(values: torch.Tensor) -> list[int]:
    return [value % 2**64 for value in values.tolist()]


def test_known_outputs():
    """The first five for seed 1234567, as commonly published for checking implementations."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64_of_integers(1234567, 5) == expected
    assert unsigned(splitmix64(torch.tensor(1234567), torch.arange(5))) == expected


def test_equals_the_generator_for_any_seed():
    for seed in (0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF):
        assert unsigned(splitmix64(torch.tensor(seed), torch.arange(50))) == splitmix64_of_integers(seed, 50)


def test_noise_of_a_seed_ignores_its_company():
    together = exponential_noise(torch.tensor([5, 9, -3]), 7, 11)
    torch.testing.assert_close(exponential_noise(torch.tensor([9]), 7, 11)[0], together[1], atol=0, rtol=0)


def test_noise_differs_by_seed_position_and_code():
    seeds = torch.arange(20)
    noise = torch.cat([exponential_noise(seeds, position, 30) for position in range(20)])
    assert noise.unique().numel() == noise.numel()


def test_noise_is_exponential():
    """Mean, variance and tail of Exp(1), over neighbouring seeds and over positions of one seed."""
    by_seed = exponential_noise(torch.arange(1000), 3, 200).flatten()
    by_position = torch.cat([exponential_noise(torch.tensor([0]), position, 200) for position in range(1000)]).flatten()
    for sample in (by_seed, by_position):
        assert sample.min() > 0
        assert abs(sample.mean() - 1) < 0.01
        assert abs(sample.var() - 1) < 0.03
        assert abs((sample > 3).double().mean() - torch.tensor(-3.0).exp()) < 0.002


def seed_that_gives(output: int, index: int) -> int:
    """Whose generator's output number `index` this is: each of its operations backwards, modulo 2^64."""

    def unshifted(z: int, bits: int) -> int:
        x = z
        for _ in range(64 // bits):
            x = z ^ (x >> bits)
        return x

    z = unshifted(output, 31) * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    z = unshifted(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    seed = (unshifted(z, 30) - (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    return seed - 2**64 if seed >= 2**63 else seed


@pytest.mark.parametrize("bits", [0, 2**64 - 1])
def test_the_extremes_of_the_bits_are_inside(bits):
    """Those of code 3: neither 0 nor infinite, and a code that was cut is not drawn for it."""
    seed = seed_that_gives(seed_that_gives(bits, 3) % 2**64, 0)
    noise = exponential_noise(torch.tensor([seed]), 0, 5)
    assert noise[0, 3] == (noise.max() if bits == 0 else noise.min())
    assert noise.log().isfinite().all()
    logits = torch.tensor([[0.0, 0.0, 0.0, -torch.inf, 0.0]])
    assert sample_token(logits, noise) != 3
    seed = seed_that_gives(seed_that_gives(bits, 3) % 2**64, 1)
    assert 0 < uniform_noise(torch.tensor([seed]), 5)[0, 3] < 1


def test_uniform_noise_is_uniform_and_its_seeds_own():
    noise = uniform_noise(torch.arange(1000), 200)
    assert noise.shape == (1000, 200) and noise.unique().numel() == noise.numel()
    assert noise.min() > 0 and noise.max() < 1
    assert abs(noise.mean() - 1 / 2) < 0.005 and abs(noise.var() - 1 / 12) < 0.002
    assert torch.equal(uniform_noise(torch.tensor([7]), 30)[0], noise[7, :30])


def test_uniform_noise_is_another_stream():
    """Of the same seed: no number is the one that an exponential variate comes from, and they are not correlated."""
    seeds = torch.arange(1000)
    uniform, other = uniform_noise(seeds, 200), (-exponential_noise(seeds, 0, 200)).exp()
    assert (uniform - other).abs().min() > 1e-12
    assert abs(torch.corrcoef(torch.stack([uniform.flatten(), other.flatten()]))[0, 1]) < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_the_same_noise():
    """The bits are the same; of the logarithm, all but the last."""
    seeds, index = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 7919])[:, None], torch.arange(10_000)
    assert torch.equal(splitmix64(seeds.cuda(), index.cuda()).cpu(), splitmix64(seeds, index))
    here = exponential_noise(seeds[:, 0], torch.tensor(1023), 8192)
    there = exponential_noise(seeds[:, 0].cuda(), torch.tensor(1023).cuda(), 8192).cpu()
    torch.testing.assert_close(there, here, atol=0, rtol=2.0**-51)
