"""argmax_linear and nearest_code against float64: in blocks, with the narrowing pass, and in Triton's interpreter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is for Linux")

import triton
import triton.language as tl

from kernels import nearest_triton
from kernels.nearest import METRICS, argmax_linear, nearest_code
from tests.kernels.nearest_oracle import (
    DTYPES,
    SHAPES,
    check,
    every_way,
    exact,
    found,
    near_ties,
    normal,
    small_blocks,
    whole,
)
from tests.kernels.oracle import DEVICE

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# --- the right index --------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: f"{pair[0]}-{pair[1]}".replace("torch.", ""))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(way, shape, dtypes):
    n_rows, n_codes, dim = shape
    x, weight = normal(n_rows, dim, dtype=dtypes[0]), normal(n_codes, dim, seed=1, dtype=dtypes[1])
    for bias in (None, 9 * normal(n_codes, seed=2, dtype=dtypes[1])):
        check(found(way, x, weight, bias), x, weight, bias)


@every_way
@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 80), st.integers(1, 40)),
    exponents=st.tuples(st.integers(-8, 8), st.integers(-8, 8)),
    integers=st.booleans(),
    with_bias=st.booleans(),
    seed=st.integers(0, 2**30),
)
def test_any_shape(way, shape, exponents, integers, with_bias, seed):
    n_rows, n_codes, dim = shape
    make = whole if integers else normal
    x, weight = make(n_rows, dim, seed=seed), make(n_codes, dim, seed=seed + 1)
    bias = make(n_codes, seed=seed + 2) if with_bias else None
    if not integers:
        x, weight = x * 10.0 ** exponents[0], weight * 10.0 ** exponents[1]
    check(found(way, x, weight, bias), x, weight, bias, ties=integers)


@every_way
@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("dim", [3, 48])
def test_the_first_of_equal_codes(way, rows, dim):
    """Whatever a product's rounding is, it is the same in all copies of a code."""
    copies = torch.cat([torch.randperm(23, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    weight, bias = normal(23, dim)[copies], normal(23, seed=1)[copies]
    x = normal(rows, dim, seed=2)
    indices = found(way, x, weight, bias)
    check(indices, x, weight, bias)
    firsts = (copies[:, None] == torch.arange(23)).int().argmax(dim=0)
    assert torch.equal(indices, firsts[copies[indices]])


@triton.jit
def split_kernel(values, high, low, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    value = tl.load(values + offs)
    hi = nearest_triton.tf32_round(value)
    tl.store(high + offs, hi)
    tl.store(low + offs, nearest_triton.tf32_round(value - hi))


def test_two_numbers_of_the_matrix_units_make_a_float32():
    """Which drop what is below 10 bits behind the point; the interpreter would not."""
    values = (normal(1024) * 10.0 ** normal(1024, seed=1)).to(DEVICE)
    values[:3] = torch.tensor([1 + 2.0**-11, -1 - 2.0**-11 + 2.0**-23, 2 - 2.0**-23])
    high, low = torch.empty_like(values), torch.empty_like(values)
    split_kernel[1,](values, high, low, BLOCK=1024)
    for part in (high, low):
        assert (part.view(torch.int32) & 0x1FFF == 0).all()
    assert ((values - high).abs() <= 2.0**-11 * values.abs()).all()
    assert ((values.double() - high.double() - low.double()).abs() <= 2.0**-22 * values.double().abs()).all()


def test_the_largest_numbers_are_split_into_finite_ones():
    largest = torch.tensor([0x7F7FFFFF, 0x7F7FF000, 0x7F7FEFFF, 0x7F7FE000], dtype=torch.int32).view(torch.float32)
    values = torch.cat([largest, -largest]).to(DEVICE)
    high, low = torch.empty_like(values), torch.empty_like(values)
    split_kernel[1,](values, high, low, BLOCK=8)
    assert high.isfinite().all()
    assert ((values.double() - high.double() - low.double()).abs() <= 2.0**-21 * values.double().abs()).all()


@every_way
def test_near_ties_that_bfloat16_would_flip(way):
    x, weight, expected = near_ties()
    assert torch.equal(found(way, x, weight), expected)
    coarse = (x.bfloat16().float() @ weight.bfloat16().float().t()).max(dim=1).indices
    assert (coarse != expected).float().mean() > 0.4


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_way
@pytest.mark.parametrize("metric", METRICS)
def test_nearest_code(way, metric, shape):
    n_rows, n_codes, dim = shape
    x, codebook = 3 * normal(n_rows, dim), normal(n_codes, dim, seed=1) * (1 + torch.arange(n_codes)[:, None] % 3)
    if metric == "euclidean":
        distances = torch.cdist(x.double(), codebook.double()).square()
    else:
        distances = -torch.cosine_similarity(x.double()[:, None], codebook.double(), dim=2)
    device = DEVICE if way == "triton" else "cpu"
    with small_blocks(way) as impl:
        indices = nearest_code(x.to(device), codebook.to(device), metric=metric, impl=impl).cpu()
    chosen = distances.gather(1, indices[:, None])
    assert (chosen <= distances.amin(dim=1, keepdim=True) + 2.0**-20 * distances.abs().amax()).all()


def test_nearest_code_by_hand():
    codebook = torch.tensor([[10.0, 0.0], [0.0, 1.0], [1.0, 0.2], [0.0, 0.0]])
    x = torch.tensor([[1.0, 0.05], [0.0, 0.0], [0.0, -1.0]])
    assert nearest_code(x, codebook).tolist() == [2, 3, 3]
    assert nearest_code(x, codebook, metric="cosine").tolist() == [0, 0, 0]
    assert nearest_code(-x[:1], codebook, metric="cosine").tolist() == [3]  # at right angles, all others behind


@pytest.mark.parametrize("way", ["blocked", "narrowed"])
def test_float64_inputs_are_compared_in_float64(way):
    x, weight = normal(9, 40).double(), normal(30, 40, seed=1).double()
    weight = torch.cat([weight, weight * (1 + 1e-12)])
    assert torch.equal(found(way, x, weight), exact(x, weight)[0].max(dim=1).indices)


# --- layouts ----------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "channels first": lambda: normal(3, 20, 5, 7).movedim(1, -1),
    "channels last": lambda: normal(3, 20, 5, 7).to(memory_format=torch.channels_last).movedim(1, -1),
    "every other row": lambda: normal(50, 20)[::2],
    "every other value": lambda: normal(9, 40)[:, ::2],
    "columns": lambda: normal(20, 31).t(),
    "one for all": lambda: normal(20).expand(18, 20),
    "cropped maps": lambda: normal(3, 20, 8, 8)[:, :, 1:6, 2:7].movedim(1, -1),
    "any order": lambda: normal(4, 20, 3, 2).permute(3, 0, 2, 1),
    "one vector": lambda: normal(20),
}


@every_way
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(way, layout):
    x = LAYOUTS[layout]()
    weight, bias = normal(20, 66, seed=1).t()[::2], normal(66, seed=2)[::2]
    check(found(way, x, weight, bias), x, weight, bias)


@pytest.mark.parametrize("layout", ["channels first", "channels last", "every other row", "every other value"])
def test_no_copy_is_made_for_the_kernel(layout):
    x = LAYOUTS[layout]()
    slabs = nearest_triton._as_slabs(x)
    assert slabs.data_ptr() == x.data_ptr()
    assert slabs.shape[0] * slabs.shape[1] == x[..., 0].numel()


@pytest.mark.parametrize("impl", ["auto", "blocked", "triton", "reference"])
@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 3, 4)])
def test_no_vectors_at_all(impl, shape):
    x, weight = torch.zeros(shape, device=DEVICE), torch.zeros(5, 4, device=DEVICE)
    indices = argmax_linear(x, weight, impl=impl)
    assert indices.shape == shape[:-1]
    assert indices.dtype == torch.int64


# --- values that are no ordinary numbers ------------------------------------------------------------------------------


@every_way
def test_nan_is_found_at_its_first_position(way):
    x, weight, bias = normal(10, 20), normal(33, 20, seed=1), normal(33, seed=2)
    clean = found(way, x, weight, bias)
    x[3, 4] = torch.nan
    assert found(way, x, weight, bias).tolist() == [*clean[:3].tolist(), 0, *clean[4:].tolist()]
    weight[[30, 17], 2] = torch.nan
    assert found(way, x, weight, bias).tolist() == [17, 17, 17, 0, *[17] * 6]
    bias[9] = torch.inf
    assert found(way, x, weight, bias).tolist() == [9, 9, 9, 0, *[9] * 6]
    bias[5] = torch.nan
    assert found(way, x, weight, bias).tolist() == [5, 5, 5, 0, *[5] * 6]
    assert torch.equal(argmax_linear(x, weight, bias, impl="reference"), found(way, x, weight, bias))


# All ones, as a GPU makes it; as a CPU does; signalling, one bit from infinity. Each of both signs.
NANS = (0x7FFFFFFF, -1, 0x7FC00000, -0x400000, 0x7F800001, -0x7FFFFF)


@every_way
@pytest.mark.parametrize("bits", NANS, ids=lambda bits: f"{bits & 0xFFFFFFFF:#x}")
@pytest.mark.parametrize("dim", [20, 48])
@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter's
def test_every_nan_is_one(way, bits, dim):
    x, weight = normal(10, dim), normal(33, dim, seed=1)
    clean = found(way, x, weight)
    nan = torch.tensor(bits, dtype=torch.int32)
    x.view(torch.int32)[3, 4] = nan
    assert found(way, x, weight).tolist() == [*clean[:3].tolist(), 0, *clean[4:].tolist()]
    x[3, 4] = 1
    weight.view(torch.int32)[17, 2] = nan
    assert found(way, x, weight).tolist() == [17] * 10
    if way == "triton":
        assert found(way, x.bfloat16(), weight).tolist() == [17] * 10


@every_way
def test_codes_ruled_out(way):
    x, weight = normal(10, 20), normal(33, 20, seed=1)
    for low in (-torch.inf, -1e30):
        bias = torch.where(torch.arange(33) % 3 == 1, 0.0, low)
        indices = found(way, x, weight, bias)
        check(indices, x, weight, bias, ties=True)
        assert (indices % 3 == 1).all()
    assert found(way, x, weight, torch.full((33,), -torch.inf)).tolist() == [0] * 10


@every_way
@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter's
def test_infinities_give_an_index_in_range(way):
    x, weight = normal(10, 20), normal(33, 20, seed=1)
    x[2, 3], x[4, 5], weight[7, 1] = torch.inf, -torch.inf, torch.inf
    indices = found(way, x, weight)
    assert ((indices >= 0) & (indices < 33)).all()


@every_way
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-18, 1e17])
def test_near_the_ends_of_the_range(way, scale):
    x, weight = normal(20, 24) * scale, normal(30, 24, seed=1)
    x[1] = normal(24, seed=2)
    check(found(way, x, weight), x, weight, ties=scale == 0)


@every_way
@pytest.mark.parametrize("large", [3.4e38, torch.finfo(torch.float32).max])
def test_the_largest_finite_numbers(way, large):
    x, weight = normal(20, 24), normal(30, 24, seed=1) * 1e-3
    x[3, 4], x[5, 6] = large, -large
    check(found(way, x, weight), x, weight)
    x, weight = x.clamp(-3, 3) * 1e-3, weight * 1e3
    weight[7, 3], weight[9, 4] = large, -large
    check(found(way, x, weight), x, weight)


# --- planted faults ---------------------------------------------------------------------------------------------------


@every_way
def test_the_last_of_equal_codes_would_be_caught(way):
    x, weight = whole(30, 6), whole(40, 6, seed=1)
    check(found(way, x, weight), x, weight, ties=True)
    with pytest.raises(AssertionError):
        check(39 - found(way, x, weight.flip(0)), x, weight, ties=True)


@every_way
@pytest.mark.parametrize("shape", [(30, 33, 6), (30, 32, 40)], ids=str)
def test_a_code_left_out_or_added_would_be_caught(way, shape):
    n_rows, n_codes, dim = shape
    x, weight = normal(n_rows, dim), normal(n_codes, dim, seed=1)
    weight[-1] *= 10
    x[:5] = weight[-1]
    check(found(way, x, weight), x, weight)
    for wrong in (weight[:-1], torch.cat([weight, x[6:7] * 9])):
        with pytest.raises(AssertionError):
            check(found(way, x, wrong), x, weight)
