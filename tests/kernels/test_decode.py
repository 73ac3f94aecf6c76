"""Decoding by Triton kernels against the oracle's rows: here in Triton's interpreter, with `-m gpu` at full sizes.

Wherever a step may not look, keys and values are NaN: slots that were never filled, that another pattern would see, or
that hold text beyond a sample's prefix.
"""

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import scaled_dot_product_attention

pytest.importorskip("triton", reason="Triton is for Linux")

from kernels import attention, decode, decode_launch, jit, patterns
from kernels.attention import attention_step
from kernels.cache_layout import cached_positions
from kernels.launch import Launch
from kernels.limits import MAX_NEW
from kernels.patterns import Pattern, attention_mask
from kernels.reference import attention_reference
from tests.kernels.oracle import DEVICE, HAS_GPU, every_rule, on_a_gpu, packed, pattern_strategy, unpack

USERS_PARAMETERS, USERS_SLICE_KEYS = decode_launch.launch_parameters, decode_launch.SLICE_KEYS


@pytest.fixture(autouse=True)
def small_blocks(poisoned_memory) -> Iterator[None]:
    """Blocks and slices so short that a list takes several."""
    with (
        mock.patch.object(
            decode_launch, "launch_parameters", lambda q, _: Launch(1 if q.shape[2] == 1 else 16, 16, 4, 1)
        ),
        mock.patch.object(decode_launch, "SLICE_KEYS", 10),
    ):
        yield


@pytest.fixture
def users_blocks(small_blocks, monkeypatch) -> None:
    """The launch parameters and slices that a user gets."""
    monkeypatch.setattr(decode_launch, "launch_parameters", USERS_PARAMETERS)
    monkeypatch.setattr(decode_launch, "SLICE_KEYS", USERS_SLICE_KEYS)


def inputs(pattern: Pattern, batch: int = 2, heads: int = 1, head_dim: int = 16, dtype=torch.float32) -> Tensor:
    return packed(pattern, batch, heads, head_dim).to(DEVICE, dtype)


def shortest(pattern: Pattern, new: int = 1) -> int:
    """The length of a cache that can take `new` queries at once."""
    return min(pattern.seq_len, pattern.cache_len + new - 1)


def step(qkv: Tensor, pattern: Pattern, position: int, new: int, slots: int, prefix_lengths=None, **options) -> Tensor:
    """`attention_step` by Triton against a cache that holds NaN wherever none of the queries sees a key."""
    q, k, v = unpack(qkv)
    last = position + new - 1
    held = cached_positions(pattern, slots, last, qkv.device)
    q_pos = torch.arange(position, last + 1, device=qkv.device)
    seen = attention_mask(pattern, q_pos, held, prefix_lengths).any(dim=2)[..., None]  # (B or 1, 1, S, 1)
    k, v = (torch.where(seen, x[:, :, held.clamp(max=last)], torch.nan) for x in (k, v))
    options = {"prefix_lengths": prefix_lengths, "impl": "triton"} | options
    return attention_step(q[:, :, position : last + 1], k, v, pattern, position, **options)


def assert_rows(
    qkv: Tensor, pattern: Pattern, steps: list[tuple[int, int]], slots=shortest, prefix_lengths=None
) -> None:
    """The steps (position, N) against the rows of the oracle, and in short types, of what plain torch is off by."""
    exact = attention_reference(*unpack(qkv.double()), pattern, prefix_lengths=prefix_lengths)
    positions = torch.arange(pattern.seq_len, device=qkv.device)
    plain = scaled_dot_product_attention(*unpack(qkv), attention_mask(pattern, positions, positions, prefix_lengths))
    for position, new in steps:
        rows = slice(position, position + new)
        o = step(qkv, pattern, position, new, slots(pattern, new), prefix_lengths)
        assert (o.dtype, o.shape) == (qkv.dtype, exact[:, :, rows].shape)
        if qkv.dtype == torch.float32:
            torch.testing.assert_close(o.double(), exact[:, :, rows], atol=1e-5, rtol=1e-5)
            continue
        spacing = torch.finfo(qkv.dtype).eps * exact.abs().max()
        error = (o.double() - exact[:, :, rows]).abs().max()
        assert error <= 2 * (plain.double() - exact).abs().max() + spacing, (position, new)


def some_steps(pattern: Pattern) -> list[tuple[int, int]]:
    """Single queries and a few: in the text, across its end, at the image's first, a middle and its last position."""
    text_len, seq_len = pattern.text_len, pattern.seq_len
    middle = text_len + pattern.image_len // 2
    return [(0, 1), (text_len, 1), (middle, 1), (seq_len - 1, 1), (text_len - 1, 3), (seq_len - 3, 3)]


def test_unwritten_memory_is_poisoned():
    assert torch.empty(3, device=DEVICE).isnan().all()


@every_rule
def test_every_position_of_one_query(kind, wrap, monkeypatch):
    """Against rings that are as short as the mask allows and are overwritten again and again."""
    monkeypatch.setattr(decode_launch, "split_count", lambda *_: 1)
    pattern = Pattern(kind, 4, 5, 3, 3, wrap)
    prefix_lengths = torch.tensor([0, 3], device=DEVICE)
    steps = [(position, 1) for position in range(pattern.seq_len)]
    assert_rows(inputs(pattern), pattern, steps, prefix_lengths=prefix_lengths)


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(kind, wrap, dtype):
    pattern = Pattern(kind, 9, 7, 5, 3, wrap)
    assert_rows(inputs(pattern, 1, 2, dtype=dtype), pattern, some_steps(pattern))


@every_rule
@pytest.mark.parametrize("grid", [(1, 19), (19, 1)])
def test_single_rows_and_columns(kind, wrap, grid):
    pattern = Pattern(kind, 5, *grid, 5, wrap)
    assert_rows(inputs(pattern, 1), pattern, [(15, 1), (20, 3)])


@every_rule
def test_33x31(users_blocks, kind, wrap):
    pattern = Pattern(kind, 70, 33, 31, 11, wrap)
    assert_rows(inputs(pattern, 1), pattern, [(500, 1), (1092, 1), (800, 5)])


@every_rule
def test_caches_of_any_length(kind, wrap):
    """As long as the sequence, and somewhere between that and the shortest."""
    pattern = Pattern(kind, 5, 7, 5, 3, wrap)
    qkv = inputs(pattern, 1)
    for slots in (lambda pattern, _: pattern.seq_len, lambda pattern, new: (shortest(pattern, new) + 41) // 2):
        assert_rows(qkv, pattern, [(30, 1), (29, 4)], slots)


@pytest.mark.parametrize("kind", ["row", "column"])
@pytest.mark.parametrize("lengths", [(0, 0), (9, 9), (1, 8)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_prefixes(kind, lengths, dtype):
    pattern = Pattern(kind, 9, 4, 4)
    prefix_lengths = torch.tensor([lengths, lengths], dtype=dtype, device=DEVICE)[:, 0]  # not contiguous, equal
    assert_rows(inputs(pattern), pattern, [(8, 1), (9, 1), (20, 1), (7, 4)], prefix_lengths=prefix_lengths)
    prefix_lengths = torch.tensor([lengths, lengths], dtype=dtype, device=DEVICE).T.contiguous()[:, 0]
    assert_rows(inputs(pattern), pattern, [(20, 1), (7, 4)], prefix_lengths=prefix_lengths)


@pytest.mark.parametrize("head_dim", [1, 8, 33, 80, 256])
def test_head_dims(head_dim):
    pattern = Pattern("conv", 5, 4, 4, 3)
    assert_rows(inputs(pattern, 1, head_dim=head_dim), pattern, [(15, 1), (13, 2)])


@pytest.mark.parametrize("new", [1, 3])
def test_strides(new):
    """Every other slot, value and head of larger tensors, batch innermost."""
    pattern = Pattern("row", 5, 4, 4)
    q, k, v = (x.contiguous() for x in unpack(inputs(pattern, 2, 2)))
    expected = attention_reference(q, k, v, pattern)[:, :, 15 : 15 + new]

    def strided(x: Tensor) -> Tensor:
        batch, heads, rows, head_dim = x.shape
        large = torch.full((2 * head_dim, 2 * rows, 2 * heads, batch), torch.nan, device=x.device)
        view = large.permute(3, 2, 1, 0)[:, ::2, ::2, ::2]
        view.copy_(x)
        return view

    q, k, v = strided(q[:, :, 15 : 15 + new]), strided(k), v.contiguous()
    assert k.stride(3) != 1
    assert k.stride() != v.stride()
    found = attention_step(q, k, v, pattern, 15, impl="triton")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.is_contiguous()


def test_the_scale():
    pattern = Pattern("row", 5, 4, 4)
    qkv = inputs(pattern)
    expected = attention_reference(*unpack(qkv), pattern, scale=2.0)[:, :, 12:13]
    torch.testing.assert_close(step(qkv, pattern, 12, 1, 10, scale=2.0), expected, atol=1e-5, rtol=1e-5)


def test_large_scores_do_not_overflow():
    pattern = Pattern("causal", 5, 4, 4)
    assert_rows(200 * inputs(pattern), pattern, [(20, 1), (17, 4)])


@pytest.mark.parametrize("splits", [1, 3, 9])
@pytest.mark.parametrize("new", [1, 3])
def test_any_number_of_slices(splits, new, monkeypatch):
    """More slices than blocks of keys leave some of them empty; a sample without text leaves more."""
    monkeypatch.setattr(decode_launch, "split_count", lambda *_: splits)
    pattern = Pattern("causal", 40, 5, 5)
    prefix_lengths = torch.tensor([0, 33], device=DEVICE)
    assert_rows(inputs(pattern), pattern, [(0, new), (61, new)], prefix_lengths=prefix_lengths)


def test_slices_depend_on_shapes_alone(users_blocks):
    row, column, causal = (Pattern(kind, 256, 32, 32) for kind in ("row", "column", "causal"))
    assert decode_launch.split_count(row, 1, row.cache_len) == 1  # 289 keys
    assert decode_launch.split_count(column, 1, 1280) == 1  # 288 keys
    assert decode_launch.split_count(column, 4, 1280) == 5
    assert decode_launch.split_count(causal, 1, 1280) == 5
    assert decode_launch.split_count(Pattern("causal", 256, 256, 256), 1, 256 + 256 * 256) == decode_launch.MAX_SPLITS


@settings(max_examples=25, deadline=None, derandomize=True)
@given(pattern=pattern_strategy, data=st.data())
def test_random_shapes_and_positions(pattern, data):
    new = data.draw(st.sampled_from([1, 1, 2, 5, MAX_NEW]))
    new = min(new, pattern.seq_len)
    position = data.draw(st.integers(0, pattern.seq_len - new))
    slots = data.draw(st.integers(shortest(pattern, new), pattern.seq_len))
    prefix_lengths = torch.tensor([data.draw(st.integers(0, pattern.text_len))], device=DEVICE)
    qkv = inputs(pattern, 1, head_dim=data.draw(st.sampled_from([16, 20])))
    assert_rows(qkv, pattern, [(position, new)], lambda *_: slots, data.draw(st.sampled_from([None, prefix_lengths])))


def wrong_row_rule(q, k, width, half):
    return (k <= q) & (q - k < width)


def test_a_wrong_rule_is_caught(monkeypatch):
    monkeypatch.setattr(decode_launch, "device_function", lambda _: jit.device_function(wrong_row_rule))
    pattern = Pattern("row", 5, 4, 4)
    assert_rows(inputs(pattern), pattern, [(8, 1)])  # nothing lies that far back yet
    with pytest.raises(AssertionError):
        assert_rows(inputs(pattern), pattern, [(15, 1)])


def test_a_ring_one_slot_too_short_is_caught(monkeypatch):
    pattern = Pattern("row", 5, 4, 4)
    qkv = inputs(pattern)
    with pytest.raises(ValueError, match="against 9 cached keys: with 5 of the text they need 10"):
        assert_rows(qkv, pattern, [(15, 1)], lambda *_: 9)
    monkeypatch.setattr(attention, "check_cached", lambda *_: None)
    with pytest.raises(AssertionError):
        assert_rows(qkv, pattern, [(15, 1)], lambda *_: 9)


def test_a_kernel_that_reads_too_much_is_caught(monkeypatch):
    """Here one that takes the rule for granted: its output is NaN, as the reading test's poison is."""
    monkeypatch.setattr(decode_launch, "device_function", lambda _: jit.device_function(patterns.causal_rule))
    pattern = Pattern("conv", 5, 4, 8, 3)
    assert step(inputs(pattern), pattern, 30, 1, shortest(pattern)).isnan().any()


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
    pattern = Pattern("row", 5, 4, 5)
    sizes = {"dtype": torch.float32, "head_dim": 16, "requires_grad": False}
    new = changes.get("new", 1)
    sizes |= {name: value for name, value in changes.items() if name != "new"}
    x = torch.zeros(1, 1, 25, sizes.pop("head_dim"), device=DEVICE, **sizes)
    with pytest.raises(ValueError, match=message):
        attention_step(x[:, :, :new], x, x, pattern, 0, impl="triton")
    with torch.no_grad():
        attention_step(x[:, :, :new], x, x, pattern, 0, impl="auto" if HAS_GPU else "structured")


def test_a_device_without_triton_is_refused(monkeypatch):
    monkeypatch.setattr(jit, "INTERPRETED", False)
    x = torch.zeros(1, 1, 25, 16)
    with pytest.raises(ValueError, match="Triton kernels run on CUDA devices, these tensors are on cpu"):
        attention_step(x[:, :, :1], x, x, Pattern("row", 5, 4, 5), 0, impl="triton")


def test_an_unknown_impl_lists_the_known():
    x = torch.zeros(1, 1, 25, 16)
    with pytest.raises(ValueError, match="unknown impl 'reference', expected one of auto, triton, structured"):
        attention_step(x[:, :, :1], x, x, Pattern("row", 5, 4, 5), 0, impl="reference")


def test_auto_takes_it_where_it_can(monkeypatch):
    monkeypatch.setattr(attention, "suits_triton", lambda q: True)
    calls = []
    monkeypatch.setattr(decode, "decode_step", lambda q, *_, **__: calls.append(q.shape[2]) or q)
    x = torch.zeros(1, 1, 25, 16, device=DEVICE)
    for new in (1, MAX_NEW, MAX_NEW + 1):
        attention_step(x[:, :, :new], x, x, Pattern("row", 5, 4, 5), 0)
    weighted = x.clone().requires_grad_()
    assert attention_step(weighted[:, :, :1], x, x, Pattern("row", 5, 4, 5), 0).requires_grad
    with torch.no_grad():
        attention_step(weighted[:, :, :1], x, x, Pattern("row", 5, 4, 5), 0)
    assert calls == [1, MAX_NEW, 1]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_position_on_the_device(dtype):
    pattern = Pattern("column", 5, 4, 4)
    q, k, v = unpack(inputs(pattern))
    position = torch.tensor(13, dtype=dtype, device=DEVICE)
    expected = attention_step(q[:, :, 13:14], k, v, pattern, 13, impl="triton")
    assert torch.equal(attention_step(q[:, :, 13:14], k, v, pattern, position, impl="triton"), expected)


@pytest.mark.parametrize("impl", ["triton", "structured"])
def test_one_graph_serves_every_position(impl):
    """Compiled without a break and without compiling again as the position moves on."""
    pattern = Pattern("conv", 5, 4, 4, 3)
    q, k, v = unpack(inputs(pattern))
    lengths = torch.tensor([2, 5], device=DEVICE)
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def compiled(q: Tensor, position: Tensor) -> Tensor:
        return 2 * attention_step(q * 1, k, v, pattern, position, prefix_lengths=lengths, impl=impl)

    expected = attention_reference(q, k, v, pattern, prefix_lengths=lengths)
    for position in (9, 14, 20):
        rows = slice(position, position + 1)
        found = compiled(q[:, :, rows], torch.tensor(position, device=DEVICE))
        torch.testing.assert_close(found, 2 * expected[:, :, rows], atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize("new", [1, 2])
def test_the_operator_passes_opcheck(new):
    q, k, v = unpack(inputs(Pattern("row", 5, 4, 4)))
    lengths, position = torch.tensor([2, 5], device=DEVICE), torch.tensor(12, device=DEVICE)
    settings = (0.25, "row", 5, 4, 4, 11, "linear")
    torch.library.opcheck(decode._attention_step, (q[:, :, 12 : 12 + new], k, v, position, lengths, *settings))


def test_autocast_decides_the_dtype():
    pattern = Pattern("row", 5, 4, 4)
    q, k, v = unpack(inputs(pattern))
    with torch.autocast(DEVICE, torch.bfloat16):
        assert attention_step(q[:, :, 9:10], k.bfloat16(), v, pattern, 9, impl="triton").dtype == torch.bfloat16


# --- full sizes ------------------------------------------------------------------------------------------------------


@on_a_gpu
@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 128, 256])
def test_at_32x32_on_a_gpu(users_blocks, kind, wrap, dtype, head_dim):
    pattern = Pattern(kind, 256, 32, 32, 11, wrap)
    lengths = torch.tensor([0, 77], device=DEVICE)
    qkv = inputs(pattern, 2, 4, head_dim, dtype)
    assert_rows(qkv, pattern, [*some_steps(pattern), (700, 1), (800, MAX_NEW)], prefix_lengths=lengths)
    assert_rows(qkv, pattern, [(1000, 1), (255, 1)])


@on_a_gpu
def test_offsets_beyond_32_bits_on_a_gpu(users_blocks):
    pattern = Pattern("row", 256, 32, 32)
    q = torch.randn(2048, 64, 1, 64, device=DEVICE, dtype=torch.bfloat16)
    k = torch.randn(2048, 64, pattern.cache_len, 64, device=DEVICE, dtype=torch.bfloat16)
    assert k.numel() > 2**31
    found = attention_step(q, k, k, pattern, 1000, impl="triton")
    expected = attention_step(q[-1:], k[-1:], k[-1:], pattern, 1000, impl="structured")
    torch.testing.assert_close(found[-1:], expected, atol=2e-2, rtol=2e-2)


@on_a_gpu
@pytest.mark.parametrize("kind", ["row", "column", "conv", "causal"])
def test_a_captured_step_moves_on_by_its_position_on_a_gpu(users_blocks, kind):
    """One CUDA graph, replayed at other positions, on caches that are overwritten in place."""
    pattern = Pattern(kind, 256, 32, 32)
    q, k, v = unpack(inputs(pattern, 2, 4, 64, torch.bfloat16))
    expected = attention_reference(q, k, v, pattern)
    row, position = q[:, :, :1].clone(), torch.tensor(256, device=DEVICE)
    keys, values = (x[:, :, : pattern.cache_len].clone() for x in (k, v))
    attention_step(row, keys, values, pattern, position, impl="triton")  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = attention_step(row, keys, values, pattern, position, impl="triton")
    for at in (256, 300, 777, 1279):
        held = cached_positions(pattern, pattern.cache_len, at, DEVICE).clamp(max=at)
        keys.copy_(k[:, :, held])
        values.copy_(v[:, :, held])
        row.copy_(q[:, :, at : at + 1])
        position.fill_(at)
        graph.replay()
        torch.testing.assert_close(o, expected[:, :, at : at + 1], atol=2e-2, rtol=2e-2)


@on_a_gpu
def test_a_compiled_step_on_a_gpu(users_blocks):
    pattern = Pattern("conv", 256, 32, 32)
    q, k, v = unpack(inputs(pattern, 2, 4, 64, torch.bfloat16))
    compiled = torch.compile(lambda q, position: attention_step(q, k, v, pattern, position) * 2, fullgraph=True)
    for at in (256, 1000):
        position = torch.tensor(at, device=DEVICE)
        expected = attention_step(q[:, :, at : at + 1], k, v, pattern, at, impl="structured") * 2
        torch.testing.assert_close(compiled(q[:, :, at : at + 1], position), expected, atol=4e-2, rtol=4e-2)
