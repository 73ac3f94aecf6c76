"""argmax_linear as an operator: compilers, autocast, memory, refusals; with `-m gpu` at full size."""

from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is for Linux")

from kernels import jit, nearest, nearest_blocked, nearest_triton
from kernels.nearest import argmax_linear, nearest_code
from tests.kernels.nearest_oracle import (
    DTYPES,
    check,
    every_way,
    found,
    near_ties,
    normal,
    small_blocks,
)
from tests.kernels.oracle import DEVICE, HAS_GPU

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("impl", ["blocked", "triton", "reference"])
def test_opcheck(impl):
    for bias in (None, normal(40, seed=2).to(DEVICE)):
        arguments = (normal(2, 8, 3, 5).to(DEVICE).movedim(1, -1), normal(40, 8, seed=1).to(DEVICE), bias, impl)
        torch.library.opcheck(nearest._argmax_linear, arguments)


@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_compiles_without_a_break(impl):
    linear = nn.Linear(8, 40).to(DEVICE)

    def function(x: Tensor) -> Tensor:
        indices = argmax_linear(2 * x, linear.weight, linear.bias, impl=impl)
        return linear.weight[indices] + nearest_code(x, linear.weight, impl=impl)[..., None]

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((5, 8), (9, 8), (2, 3, 8)):
        x = normal(*shape).to(DEVICE)
        assert torch.equal(compiled(x), function(x))
    gradient = torch.autograd.grad(compiled(x).sum(), linear.weight)[0]
    assert gradient.count_nonzero() > 0  # of the codes that were looked up


@pytest.mark.parametrize(
    ("dtype", "capability", "impl"),
    [
        (torch.float32, (8, 0), "triton"),
        (torch.bfloat16, (9, 0), "triton"),
        (torch.float32, (7, 5), "blocked"),
        (torch.float64, (9, 0), "blocked"),
    ],
)
def test_auto_chooses_by_device_and_dtype(monkeypatch, dtype, capability, impl):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    chosen = []
    monkeypatch.setattr(nearest, "_argmax_linear", lambda x, weight, bias, impl: chosen.append(impl))
    with FakeTensorMode():  # of a device that need not be there
        for device in ("cuda", "cpu"):
            argmax_linear(torch.empty(3, 4, dtype=dtype, device=device), torch.empty(5, 4, dtype=dtype, device=device))
    assert chosen == [impl, "blocked"]


@every_way
def test_autocast_has_no_say(way):
    x, weight, expected = near_ties()
    device = DEVICE if way == "triton" else "cpu"
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(found(way, x, weight), expected)
        with small_blocks(way) as impl:
            indices = nearest_code(x.to(device), weight.to(device), impl=impl).cpu()
        assert not torch.equal((x.to(device) @ weight.to(device).t()).max(dim=1).indices.cpu(), expected)
    check(indices, x, weight, -0.5 * weight.square().sum(dim=1))


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("way", ["blocked", "narrowed"])
def test_precision_of_products_has_no_say(way, precision, precision_restored):
    x, weight, expected = near_ties()
    torch.set_float32_matmul_precision(precision)
    assert torch.equal(found(way, x, weight), expected)
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize("impl", ["auto", "blocked", "triton"])
def test_inputs_that_want_gradients(impl):
    x = normal(5, 8).to(DEVICE).requires_grad_()
    layer = nn.Linear(8, 40).to(DEVICE)
    indices = argmax_linear(x, layer.weight, layer.bias, impl=impl)
    assert not indices.requires_grad
    with torch.inference_mode():
        assert torch.equal(argmax_linear(x, layer.weight, layer.bias, impl=impl), indices)


def test_the_same_twice_and_in_parts():
    x, weight = normal(34, 8), normal(100, 8, seed=1)
    indices = found("triton", x, weight)
    assert torch.equal(found("triton", x, weight), indices)
    assert torch.equal(torch.cat([found("triton", part, weight) for part in x.split(13)]), indices)


# --- memory -----------------------------------------------------------------------------------------------------------


class Sizes(TorchDispatchMode):
    """Bytes of the largest tensor that an operator returned."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = result if isinstance(result, tuple | list) else (result,)
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("pays", [False, True])
def test_no_matrix_of_all_scores(pays):
    """As argmax_blocked says: 2^18 products of 4 bytes, or 2^22 of 2, where all of them would be 2^24."""
    x, weight = normal(4096, 32), normal(4096, 32, seed=1)
    with mock.patch.object(nearest_blocked, "_narrowing_pays", lambda weight: pays), Sizes() as sizes:
        indices = nearest_blocked.argmax_blocked(x, weight, None)
    check(indices[::64], x[::64], weight)
    assert sizes.largest <= (2 * 2**22 if pays else 4 * 2**18)
    with Sizes() as sizes:
        nearest.argmax_reference(x, weight, None)
    assert sizes.largest == 8 * 2**24


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 4), torch.zeros(5, 6)), r"x has shape \(3, 4\), the codes \(5, 6\), expected \(\.\.\., D\)"),
        ((torch.zeros(()), torch.zeros(5, 6)), r"x has shape \(\), the codes \(5, 6\)"),
        ((torch.zeros(3, 4), torch.zeros(4)), r"x has shape \(3, 4\), the codes \(4,\)"),
        ((torch.zeros(3, 4), torch.zeros(0, 4)), r"codes have shape \(0, 4\), expected at least 1 of at least 1 value"),
        ((torch.zeros(3, 0), torch.zeros(5, 0)), r"codes have shape \(5, 0\), expected at least 1"),
        ((torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(4)), r"bias has shape \(4,\), expected \(5,\), one a code"),
        ((torch.zeros(3, 4).int(), torch.zeros(5, 4)), r"x: dtype torch.int32, expected one of torch.float32"),
        ((torch.zeros(3, 4), torch.zeros(5, 4).long()), r"the codes: dtype torch.int64, expected one of"),
        ((torch.zeros(3, 4), torch.zeros(5, 4).double()), r"the codes: torch.float64, x: torch.float32; float64 goes"),
        ((torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(5).double()), r"bias: torch.float64, x: torch.float32"),
        ((torch.zeros(3, 4), torch.zeros(5, 4, device="meta")), "the codes on meta, x on cpu"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        argmax_linear(*arguments)
    if len(arguments) == 2:
        with pytest.raises(ValueError, match=message):
            nearest_code(*arguments)
    if {tensor.device.type for tensor in arguments} == {"cpu"}:  # beside a meta tensor PyTorch calls the fake operator
        for impl in ("triton", "blocked", "reference"):
            with pytest.raises(ValueError, match=message):
                torch.ops.imagewords.argmax_linear(*arguments, *[None] * (3 - len(arguments)), impl)


def test_unknown_names_are_refused():
    x, weight = torch.zeros(3, 4), torch.zeros(5, 4)
    with pytest.raises(ValueError, match="unknown impl 'cuda', expected one of auto, triton, blocked, reference"):
        argmax_linear(x, weight, impl="cuda")
    with pytest.raises(ValueError, match="unknown metric 'l1', expected one of euclidean, cosine"):
        nearest_code(x, weight, metric="l1")
    for impl in ("cuda", "auto"):
        with pytest.raises(ValueError, match=f"unknown impl '{impl}', the operator expects one of triton, blocked, re"):
            torch.ops.imagewords.argmax_linear(x, weight, None, impl)


@pytest.mark.parametrize("rows", [0, 3])
def test_what_triton_does_not_take_is_refused(rows):
    x, weight = torch.zeros(rows, 4).double(), torch.zeros(5, 4).double()

    def function(x: Tensor) -> Tensor:
        return argmax_linear(x, weight, impl="triton")

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    operator = torch.ops.imagewords.argmax_linear
    for refusing in (function, compiled, lambda x: operator(x, weight, None, "triton")):
        with pytest.raises(ValueError, match=r"impl='triton' knows .* these tensors are torch.float64"):
            refusing(x)


def test_tensors_on_a_cpu_are_refused_without_the_interpreter(monkeypatch):
    monkeypatch.setattr(jit, "INTERPRETED", False)
    with pytest.raises(ValueError, match="Triton kernels run on CUDA devices, these tensors are on cpu"):
        torch.ops.imagewords.argmax_linear(torch.zeros(3, 4), torch.zeros(5, 4), None, "triton")


# --- on a GPU, with the launch parameters of the table ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtypes", "dim", "key", "block_d"),
    [
        ((torch.float32, torch.float32), 3, (32, 16), 16),
        ((torch.float32, torch.float32), 32, (32, 32), 32),
        ((torch.float32, torch.float32), 33, (32, None), 16),
        ((torch.bfloat16, torch.float32), 17, (32, 32), 32),
        ((torch.bfloat16, torch.float16), 16, (32, 16), 16),
        ((torch.bfloat16, torch.bfloat16), 33, (16, 64), 64),
        ((torch.float16, torch.float16), 2048, (16, None), 64),
    ],
)
def test_which_launch_of_the_table(dtypes, dim, key, block_d):
    x, weight = torch.zeros(3, dim, dtype=dtypes[0]), torch.zeros(5, dim, dtype=dtypes[1])
    assert nearest_triton.launch_parameters(x, weight) == (nearest_triton.LAUNCHES[key], block_d)


def on_a_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")(test))


@on_a_gpu
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: f"{pair[0]}-{pair[1]}".replace("torch.", ""))
@pytest.mark.parametrize(
    "shape", [(32768, 8192, 8), (32768, 8192, 32), (5000, 16384, 256), (1024, 8192, 2048)], ids=str
)
def test_full_size(shape, dtypes):
    n_rows, n_codes, dim = shape
    x, weight = normal(n_rows, dim, dtype=dtypes[0]), normal(n_codes, dim, seed=1, dtype=dtypes[1])
    bias = -0.5 * weight.float().square().sum(dim=1)
    indices = argmax_linear(x.cuda(), weight.cuda(), bias.cuda(), impl="triton").cpu()
    check(indices[:512], x[:512], weight, bias)
    expected = argmax_linear(x.cuda(), weight.cuda(), bias.cuda(), impl="reference").cpu()
    assert (indices == expected).float().mean() > 0.999


@on_a_gpu
def test_feature_maps_at_full_size_take_no_memory_for_scores():
    features, weight = torch.randn(8, 256, 32, 32, device="cuda"), torch.randn(8192, 256, device="cuda")
    argmax_linear(features.movedim(1, -1), weight)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    indices = argmax_linear(features.movedim(1, -1), weight)
    assert torch.cuda.max_memory_allocated() - before < 2**22  # all scores would be 2^28 bytes
    check(indices[0].cpu(), features[0].movedim(0, -1).cpu(), weight.cpu())


@on_a_gpu
def test_more_values_than_32_bits_count():
    x, weight = torch.randn(2**21 + 5, 1024 + 8, dtype=torch.bfloat16, device="cuda"), torch.randn(16, 1032).cuda()
    indices = argmax_linear(x, weight)
    check(indices[-512:].cpu(), x[-512:].cpu(), weight.cpu())
