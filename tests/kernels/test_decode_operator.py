"""A decoding step by Triton as PyTorch's operator: when it is taken, compilers, CUDA graphs, and what it refuses."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

pytest.importorskip("triton", reason="Triton is for Linux")

from kernels import decode, jit
from kernels import step as step_module
from kernels.cache_layout import KeysValues, ring_positions
from kernels.limits import MAX_NEW
from kernels.patterns import Pattern
from kernels.reference import attention_reference
from kernels.step import attention_step
from tests.kernels.oracle import DEVICE, HAS_GPU, on_a_gpu, unpack
from tests.kernels.step_cases import Step, inputs, rows_of, step_of, zeros

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": torch.float64}, "takes float32, float16 and bfloat16, not float64"),
        ({"head_dim": 257}, "takes a head dim of at most 256, not 257"),
        ({"new": 17}, "takes at most 16 queries, not 17"),
        ({"requires_grad": True}, r"has no gradients: use torch.no_grad\(\) or impl='structured'"),
    ],
)
def test_what_it_does_not_take_is_refused(changes, message):
    step = zeros(Pattern("row", 5, 4, 5), **changes)
    with pytest.raises(ValueError, match=message):
        attention_step(*step, impl="triton")
    with torch.no_grad():
        attention_step(*step, impl="auto" if HAS_GPU else "structured")


def test_a_device_without_triton_is_refused(monkeypatch):
    monkeypatch.setattr(jit, "INTERPRETED", False)
    q, text, image, *rest = zeros(Pattern("row", 5, 4, 5))
    text, image = (KeysValues(*(x.cpu() for x in keys)) for keys in (text, image))
    with pytest.raises(ValueError, match="Triton kernels run on CUDA devices, these tensors are on cpu"):
        attention_step(q.cpu(), text, image, *rest, impl="triton")


def test_auto_takes_it_where_it_can(monkeypatch):
    monkeypatch.setattr(step_module, "suits_triton", lambda q: True)
    calls = []
    monkeypatch.setattr(decode, "decode_step", lambda q, *_, **__: calls.append(q.shape[2]) or q)
    pattern = Pattern("row", 5, 4, 5)
    for new in (1, MAX_NEW, MAX_NEW + 1):
        attention_step(*zeros(pattern, new))
    weighted = zeros(pattern, requires_grad=True)
    assert attention_step(*weighted).requires_grad
    with torch.no_grad():
        attention_step(*weighted)
    assert calls == [1, MAX_NEW, 1]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_an_index_on_the_device(dtype):
    pattern = Pattern("column", 5, 4, 4)
    *cache, index = step_of(inputs(pattern), pattern, 8, 1, 16)
    expected = attention_step(*cache, index, impl="triton")
    on_device = torch.tensor(index, dtype=dtype, device=DEVICE)
    assert torch.equal(attention_step(*cache, on_device, impl="triton"), expected)


def test_one_graph_serves_every_position():
    """Compiled without a break and without compiling again as the position moves on."""
    pattern = Pattern("conv", 5, 4, 4, 3)
    qkv = inputs(pattern, samples=2)
    lengths = torch.tensor([2, 5], device=DEVICE)
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def compiled(step: Step, index: Tensor) -> Tensor:
        q, *cache = step[:4]
        return 2 * attention_step(q * 1, *cache, index, prefix_lengths=lengths, impl="triton")

    expected = attention_reference(*unpack(qkv), pattern, prefix_lengths=lengths)
    for index in (4, 9, 15):
        step = step_of(qkv, pattern, index, 1, 16, lengths, 2)._replace(index=0)
        found = compiled(step, torch.tensor(index, device=DEVICE))
        torch.testing.assert_close(found, 2 * rows_of(expected, pattern, index, 1), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize("new", [1, 2])
@pytest.mark.parametrize("samples", [1, 2])
def test_the_operator_passes_opcheck(new, samples):
    pattern = Pattern("row", 5, 4, 4)
    q, text, image, *_ = step_of(inputs(pattern, samples=samples), pattern, 7, new, 16, None, samples, unseen=0.0)
    lengths, index = torch.tensor([2, 5], device=DEVICE), torch.tensor(7, device=DEVICE)
    torch.library.opcheck(
        decode._attention_step, (q, *text, *image, index, lengths, 0.25, "row", 5, 4, 4, 11, "linear")
    )


def test_the_operator_refuses_tensors_that_do_not_fit():
    pattern = Pattern("row", 5, 4, 5)
    q, text, image, *_ = zeros(pattern, batch=4, texts=2)
    settings = (torch.zeros((), dtype=torch.int32, device=DEVICE), None, 1.0, *pattern.settings)
    operator = torch.ops.imagewords.attention_step
    operator(q, *text, *image, *settings)
    for keys, kept in ((text, lambda wrong: (*wrong, *image)), (image, lambda wrong: (*text, *wrong))):
        for wrong in (keys.v[:, :, :3], keys.v[..., :8], keys.v[:1]):
            with pytest.raises(ValueError, match="do not fit"):
                operator(q, *kept((keys.k, wrong)), *settings)
        with pytest.raises(ValueError, match="differ in dtype"):
            operator(q, *kept((keys.k, keys.v.half())), *settings)
    with pytest.raises(ValueError, match="text keys of 4 positions, the pattern's text has 5"):
        operator(q, *(x[:, :, :4] for x in text), *image, *settings)
    with pytest.raises(ValueError, match="4 samples against 4 images and 3 texts"):
        operator(q, *(x[:1].expand(3, -1, -1, -1) for x in text), *image, *settings)
    with pytest.raises(ValueError, match="4 samples against 2 images and 2 texts"):
        operator(q, *text, *(x[:2] for x in image), *settings)
    with pytest.raises(ValueError, match="at most 16 queries, not 17"):
        operator(q.expand(-1, -1, 17, -1), *text, *image, *settings)


def test_autocast_decides_the_dtype():
    pattern = Pattern("row", 5, 4, 4)
    q, text, image, *rest = step_of(inputs(pattern), pattern, 4, 1, 5)
    with torch.autocast(DEVICE, torch.bfloat16):
        o = attention_step(q, text, KeysValues(image.k.bfloat16(), image.v), *rest, impl="triton")
    assert o.dtype == torch.bfloat16


@on_a_gpu
@pytest.mark.parametrize("kind", ["row", "column", "conv", "causal"])
def test_a_captured_step_moves_on_by_its_index_on_a_gpu(kind):
    """One CUDA graph, replayed at other positions, on a ring that is overwritten in place."""
    pattern = Pattern(kind, 256, 32, 32)
    qkv = inputs(pattern, 2, 4, 64, torch.bfloat16, samples=2)
    q, k, v = unpack(qkv)
    expected = attention_reference(q, k, v, pattern)
    step = step_of(qkv, pattern, 0, 1, pattern.ring_len, samples=2)
    index = torch.tensor(0, device=DEVICE)
    arguments = step._replace(index=index)
    attention_step(*arguments, impl="triton")  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = attention_step(*arguments, impl="triton")
    for at in (0, 44, 521, 1023):
        held = 256 + ring_positions(pattern.ring_len, at, DEVICE).clamp(min=0)
        for ring, x in zip(step.image, (k, v), strict=True):
            ring.copy_(x[:, :, held])
        step.q.copy_(rows_of(q, pattern, at, 1))
        index.fill_(at)
        graph.replay()
        torch.testing.assert_close(o, rows_of(expected, pattern, at, 1), atol=2e-2, rtol=2e-2)


@on_a_gpu
def test_a_compiled_step_on_a_gpu():
    pattern = Pattern("conv", 256, 32, 32)
    qkv = inputs(pattern, 2, 4, 64, torch.bfloat16)
    compiled = torch.compile(lambda *step: attention_step(*step) * 2, fullgraph=True)
    for at in (0, 744):
        step = step_of(qkv, pattern, at, 1, 1024, unseen=0.0)
        found = compiled(*step._replace(index=torch.tensor(at, device=DEVICE)))
        torch.testing.assert_close(found, attention_step(*step, impl="structured") * 2, atol=4e-2, rtol=4e-2)
