"""A prior's weights for decoding: exact in float32, near in bfloat16 and int8, and saved by nobody."""

import pytest
import torch
from torch import nn

from transformer import serving
from transformer.config import PriorConfig
from transformer.decoding import generate
from transformer.model import Prior
from transformer.sampling import SamplingConfig
from transformer.serving import FEW_ROWS, GROUPED_ROWS, WEIGHTS, ServingLinear, cache_dtype, for_decoding

NUMBERS = (1, 2, 3, FEW_ROWS, FEW_ROWS + 1, 2 * FEW_ROWS, GROUPED_ROWS, GROUPED_ROWS + 1)
ROWS = pytest.mark.parametrize("shape", [*((rows, 1) for rows in NUMBERS), (1, 3), (2, 7)])
COMPILED = pytest.mark.parametrize("compiled", [False, True])


def linear(bias: bool) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 33, bias=bias)


@ROWS
@pytest.mark.parametrize("bias", [True, False])
def test_float32_is_the_layer(shape, bias):
    layer, x = linear(bias), torch.randn(*shape, 48)
    torch.testing.assert_close(ServingLinear(layer, "float32")(x), layer(x), atol=1e-6, rtol=1e-5)


@pytest.fixture
def serve():
    """A layer, run as it is or as a compiler is given it."""

    def serve(layer: nn.Linear, weights: str, compiled: bool = False):
        served = ServingLinear(layer, weights)
        return torch.compile(served, backend="aot_eager", fullgraph=True, dynamic=False) if compiled else served

    torch._dynamo.reset()
    return serve


@ROWS
@COMPILED
def test_int8_is_the_layer_of_rounded_weights(serve, shape, compiled):
    """Each weight is off by at most half of 1/127 of its row's largest."""
    layer, x = linear(True), torch.randn(*shape, 48)
    served = serve(layer, "int8", compiled)
    rounded = served.weight * served.scale[:, None]
    assert ((rounded - layer.weight).abs() <= layer.weight.abs().amax(dim=1, keepdim=True) / 253).all()
    assert served.weight.abs().max() == 127
    torch.testing.assert_close(served(x), x @ rounded.T + layer.bias, atol=1e-5, rtol=1e-5)


@ROWS
@COMPILED
def test_bfloat16_is_the_layer_of_rounded_weights(serve, shape, compiled):
    """Activations are not rounded."""
    layer, x = linear(False), torch.randn(*shape, 48)
    found = serve(layer, "bfloat16", compiled)(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, x @ layer.weight.bfloat16().float().T, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_a_gpus_products_of_16_bits_add_up_to_those_of_32(monkeypatch, weights):
    """By a CPU, whose products of bfloat16 with float32 sums have to be made up."""
    size = torch.logspace(-6, 6, 5)[:, None]
    layer, x = linear(True), size * torch.randn(5, 48)
    served, asked = ServingLinear(layer, weights), []

    def mm(a, b, out_dtype):
        asked.append((a.dtype, b.dtype, out_dtype, len(a)))
        return a.float() @ b.float()

    monkeypatch.setattr(torch, "mm", mm)
    found = serving._by_tensor_cores(x, served.weight.bfloat16())
    assert asked == [(torch.bfloat16, torch.bfloat16, torch.float32, 15)]
    expected = x.double() @ served.weight.double().T
    error = (found - expected).abs() / (size * served.weight.float().abs().max())
    assert error.max() < 5e-6  # three parts come to 1e-6, two to 3e-5 and one to 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@ROWS
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_gpus_layer_is_a_cpus(shape, weights):
    layer, x = linear(True), torch.randn(*shape, 48)
    served = ServingLinear(layer, weights)
    expected = served(x)
    torch.testing.assert_close(served.cuda()(x.cuda()).cpu(), expected, atol=1e-6, rtol=1e-5)


def test_a_row_of_zeros_stays_zero():
    layer = linear(False)
    layer.weight.data[5] = 0
    found = ServingLinear(layer, "int8")(torch.randn(1, 48))
    assert found[0, 5] == 0
    assert found.isfinite().all()


@pytest.mark.parametrize("block", ["paper", "modern"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_served_priors_logits(make_prior, make_batch, block, weights):
    """Of the whole sequence; which layers are replaced shows in the number of bytes."""
    prior = make_prior(block=block)
    batch = make_batch(3)
    exact = prior(*batch).image_logits
    served = for_decoding(prior, weights)
    assert served is prior
    linears = [module for module in prior.modules() if isinstance(module, nn.Linear)]
    assert linears == [prior.text_head]
    error = (prior(*batch).image_logits - exact).std() / exact.std()
    assert error <= {"float32": 1e-6, "bfloat16": 0.05, "int8": 0.1}[weights]
    assert (error > 1e-4) == (weights != "float32")


def test_greedy_tokens_of_float32_weights_are_the_priors(make_prior, make_batch):
    text_tokens, _ = make_batch(3)
    config = SamplingConfig(temperature=0, guidance_scale=2.0)
    plain, served = make_prior(), for_decoding(make_prior())
    tokens = [generate(prior, text_tokens, seeds=torch.arange(3), config=config) for prior in (plain, served)]
    assert torch.equal(*tokens)


@pytest.mark.parametrize(
    ("weights", "dtype"), [("float32", None), ("bfloat16", torch.bfloat16), ("int8", torch.bfloat16)]
)
def test_narrow_weights_have_a_narrow_cache(make_prior, make_batch, weights, dtype):
    prior = for_decoding(make_prior(), weights)
    assert cache_dtype(prior) == dtype
    tokens = generate(prior, make_batch(3)[0], seeds=torch.arange(3), config=SamplingConfig(guidance_scale=2.0))
    assert tokens.shape == (3, 4, 3)


def test_rounded_weights_are_not_saved(make_prior, tmp_path):
    with pytest.raises(ValueError, match=r"whose weights were rounded to torch\.int8 is not saved"):
        for_decoding(make_prior(), "int8").save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_exact_ones_are(make_prior, tmp_path):
    for_decoding(make_prior()).save_pretrained(tmp_path / "model")
    again, trained = Prior.from_pretrained(tmp_path / "model").state_dict(), make_prior().state_dict()
    assert again.keys() == trained.keys()
    assert all(torch.equal(again[name], trained[name]) for name in trained)


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="weights are 'int4', expected one of float32, bfloat16, int8"):
        for_decoding(Prior(PriorConfig(preset="tiny", grid_size=(2, 2), codebook_size=4, text_vocab_size=4)), "int4")
