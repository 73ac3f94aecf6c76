"""The Triton kernels against the oracle: here in Triton's interpreter at small sizes, with `-m gpu` at full ones."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton", reason="Triton is for Linux")

from kernels import flash, flash_launch, patterns
from kernels.attention import attention
from kernels.flash import attention_flash
from kernels.launch import Launch
from kernels.patterns import Pattern, dense_mask
from kernels.reference import attention_reference
from kernels.tiles import image_tiling
from tests.kernels import oracle
from tests.kernels.oracle import every_rule, output_and_gradient, packed, unpack

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
SMALL = Launch(16, 16, 4, 1)
# Odd grids: 7x5, a single row, a single column.
SHAPES = [(5, 7, 5, 3), (3, 1, 19, 3), (2, 19, 1, 3)]


@pytest.fixture(autouse=True)
def small_blocks() -> Iterator[None]:
    """Blocks so small that short sequences take several, and memory full of NaN where nothing was written yet."""
    torch.use_deterministic_algorithms(True)  # then PyTorch fills what torch.empty gives, unless told not to
    with mock.patch.object(flash_launch, "launch_parameters", return_value=SMALL):
        yield
    torch.use_deterministic_algorithms(False)


def blocks(block_m: int, block_n: int):
    return mock.patch.object(flash_launch, "launch_parameters", return_value=Launch(block_m, block_n, 4, 1))


def inputs(pattern: Pattern, batch: int = 1, heads: int = 2, head_dim: int = 16, seed: int = 0, dtype=torch.float32):
    return packed(pattern, batch, heads, head_dim, seed).to(DEVICE, dtype)


def assert_matches_reference(qkv: Tensor, pattern: Pattern, **options) -> None:
    oracle.assert_matches_reference(attention_flash, qkv, pattern, atol=1e-5, **options)


def test_unwritten_memory_is_poisoned():
    assert torch.empty(3, device=DEVICE).isnan().all()
    assert flash_launch.empty_rows(torch.zeros(1, 1, 2, 3, device=DEVICE)).isnan().all()


@every_rule
@pytest.mark.parametrize("shape", SHAPES)
def test_odd_grids(kind, wrap, shape):
    pattern = Pattern(kind, *shape, wrap)
    assert_matches_reference(inputs(pattern, heads=1), pattern)


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [24, 64])
def test_error_is_at_most_twice_that_of_masked_sdpa_in_the_same_dtype(kind, wrap, dtype, head_dim):
    pattern = Pattern(kind, 18, 4, 9, 5, wrap)
    qkv = inputs(pattern, heads=1, head_dim=head_dim, dtype=dtype)
    oracle.assert_as_exact_as_masked_sdpa(attention_flash, qkv, pattern)


@pytest.mark.parametrize("head_dim", [1, 16, 32, 80, 128, 256])
def test_head_dims(head_dim):
    pattern = Pattern("row", 17, 3, 6)
    assert_matches_reference(inputs(pattern, heads=1, head_dim=head_dim), pattern)


@every_rule
@pytest.mark.parametrize(("block_m", "block_n"), [(16, 64), (64, 16), (64, 64)])
def test_33x31_in_large_blocks_and_blocks_of_unequal_sides(kind, wrap, block_m, block_n):
    pattern = Pattern(kind, 35, *((33, 31) if block_m == block_n else (7, 9)), 5, wrap)
    with blocks(block_m, block_n):
        oracle.assert_as_exact_as_masked_sdpa(attention_flash, inputs(pattern, heads=1), pattern)


@every_rule
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_prefix_lengths_from_none_to_all(kind, wrap, dtype):
    pattern = Pattern(kind, 20, 3, 6, 3, wrap)
    prefix_lengths = torch.tensor([[0, 9], [7, 9], [16, 9], [20, 9]], dtype=dtype, device=DEVICE)[:, 0]
    assert_matches_reference(inputs(pattern, batch=4, heads=1), pattern, prefix_lengths=prefix_lengths)


@every_rule
@pytest.mark.parametrize("prefix", [None, 17])
def test_text_keys_gather_from_several_splits(kind, wrap, prefix):
    pattern = Pattern(kind, 20, 7, 9, 3, wrap)
    lengths = None if prefix is None else torch.tensor([prefix], device=DEVICE)
    with mock.patch.object(flash_launch, "LEAST_BLOCKS_A_SPLIT", 1):
        if (kind, prefix) != ("causal", None):  # which is all text
            assert flash_launch.text_splits(flash_launch.Layer.of(pattern, 0.25, lengths), SMALL.block_m) == 4
        assert_matches_reference(inputs(pattern, heads=1), pattern, prefix_lengths=lengths)


@pytest.mark.parametrize("wrap", patterns.CONV_WRAPS)
@pytest.mark.parametrize(("height", "width", "kernel"), [(9, 16, 3), (6, 22, 5), (6, 13, 11), (3, 30, 11)])
def test_windows_on_wide_grids(wrap, height, width, kernel):
    """Two-dimensional tiles with their halo; at 13 columns a halo of 11 + 4 - 1 would wrap onto itself."""
    pattern = Pattern("conv", 5, height, width, kernel, wrap)
    order = image_tiling(pattern, SMALL.block_m, SMALL.block_n).ORDER
    assert order == ("raster" if (width, kernel) == (13, 11) else "window")
    assert_matches_reference(inputs(pattern, heads=1), pattern)


@pytest.mark.parametrize(
    ("pattern", "block", "order", "tile_w"),
    [
        (Pattern("row", 256, 32, 32), 64, "raster", 0),
        (Pattern("row", 256, 128, 128), 64, "raster", 0),
        (Pattern("causal", 256, 32, 32), 64, "raster", 0),
        (Pattern("column", 256, 64, 64), 64, "column", 0),
        (Pattern("conv", 256, 32, 32), 64, "raster", 0),
        (Pattern("conv", 256, 64, 64), 64, "window", 16),
        (Pattern("conv", 256, 128, 128), 64, "window", 16),
        (Pattern("conv", 256, 128, 128), 128, "window", 32),
    ],
)
def test_order_of_tiles(pattern, block, order, tile_w):
    tiling = image_tiling(pattern, block, 64)
    assert (order, tile_w) == (tiling.ORDER, tiling.TILE_W)


@every_rule
def test_strides(kind, wrap):
    pattern = Pattern(kind, 5, 4, 5, 3, wrap)
    q, k, v = unpack(inputs(pattern, batch=2))
    scattered = q.transpose(-1, -2).contiguous().transpose(-1, -2)  # last stride is not 1
    doubled = torch.stack([k, k], dim=-1)[..., 0]
    shared = v[:1, :1].expand(2, 2, -1, -1)  # one head of values for all
    tensors = [x.detach().requires_grad_() for x in (scattered, doubled, shared)]
    found, expected = attention_flash(*tensors, pattern), attention_reference(*tensors, pattern)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    do = torch.randn(2, 2, 16, pattern.seq_len, device=DEVICE).transpose(-1, -2)
    gradients = [torch.autograd.grad(o, tensors, do) for o in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)
    one = torch.ones((), device=DEVICE)
    gradients = [torch.autograd.grad(attend(*tensors, pattern), tensors, one.expand_as(do))
                 for attend in (attention_flash, attention_reference)]  # fmt: skip
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_output_is_laid_out_for_merging_heads():
    pattern = Pattern("row", 5, 2, 3)
    o = attention_flash(*unpack(inputs(pattern, batch=2)), pattern)
    assert o.transpose(1, 2).flatten(2).data_ptr() == o.data_ptr()


@pytest.mark.parametrize("scale", [0.05, 3.0])
def test_scale(scale):
    pattern = Pattern("row", 5, 3, 5)
    assert_matches_reference(inputs(pattern, heads=1), pattern, scale=scale)


def test_scores_beyond_the_range_of_exp():
    pattern = Pattern("row", 5, 3, 5)
    qkv = inputs(pattern, heads=1) * 40
    found, expected = (attend(*unpack(qkv), pattern) for attend in (attention_flash, attention_reference))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


small_pattern_strategy = st.builds(
    lambda rule, text_len, height, width, kernel: Pattern(rule[0], text_len, height, width, kernel, rule[1]),
    st.sampled_from(oracle.ALL_RULES),
    text_len=st.integers(1, 40),
    height=st.integers(1, 6),
    width=st.integers(1, 24),
    kernel=st.sampled_from([1, 3, 5, 11]),
)


@given(small_pattern_strategy, st.integers(1, 2), st.data())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_random_shapes(pattern, batch, data):
    lengths = data.draw(st.none() | st.lists(st.integers(0, pattern.text_len), min_size=batch, max_size=batch))
    qkv = inputs(pattern, batch, heads=3 - batch, seed=data.draw(st.integers(0, 99)))
    prefix_lengths = None if lengths is None else torch.tensor(lengths, device=DEVICE)
    with blocks(*data.draw(st.sampled_from([(16, 16), (32, 16), (16, 32), (64, 64)]))):
        assert_matches_reference(qkv, pattern, prefix_lengths=prefix_lengths)


@every_rule
@pytest.mark.parametrize("position", [0, 4, 5, 22])
def test_no_output_before_a_changed_key_changes(kind, wrap, position):
    pattern = Pattern(kind, 5, 5, 7, 3, wrap)
    q, k, v = unpack(inputs(pattern, heads=1))
    before = attention_flash(q, k, v, pattern)
    k, v = k.clone(), v.clone()
    k[:, :, position] += 3
    v[:, :, position] -= 3
    changed = (attention_flash(q, k, v, pattern) != before).any(dim=-1).any(dim=1)[0]  # (T,)
    assert torch.equal(changed, dense_mask(pattern, DEVICE)[:, position])


def row_without_the_token_above(q, k, width: int, half: int):
    return (k <= q) & (q - k < width)


def conv_without_the_last_column(q, k, width: int, half: int):
    offset = q - k
    rows_above = (offset >= width - half) & (offset <= half * width + half) & ((offset + half) % width < 2 * half)
    return (offset >= 0) & ((offset <= half) | rows_above)


@pytest.mark.parametrize(
    ("kind", "wrap", "allows"),
    [("row", None, row_without_the_token_above), ("conv", "linear", conv_without_the_last_column)],
)
def test_a_rule_that_is_off_by_one_is_caught(kind, wrap, allows):
    pattern = Pattern(kind, 5, 5, 7, 3)
    qkv = inputs(pattern, heads=1)
    expected = output_and_gradient(attention_reference, qkv, pattern)
    wrong = patterns.RULES[kind, wrap]._replace(allows=allows)
    with mock.patch.dict(patterns.RULES, {(kind, wrap): wrong}):
        found = output_and_gradient(attention_flash, qkv, pattern)
    assert all((x - y).abs().max() > 1e-3 for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("kernel", ["forward", "query_gradient", "key_gradient"])
def test_a_span_that_is_one_too_short_is_caught(kernel):
    """Of one kernel alone, so that no other hides it."""
    pattern = Pattern("row", 5, 8, 7)
    qkv = inputs(pattern, heads=1)
    expected = output_and_gradient(attention_reference, qkv, pattern)
    short = image_tiling(pattern, 16, 16)._replace(REACH=pattern.width - 1)
    correct = getattr(flash_launch, f"{kernel}_call")

    def with_short_span(*arguments):
        call = correct(*arguments)
        return call._replace(arguments=call.arguments | {"IMAGE": short})

    with mock.patch.object(flash_launch, f"{kernel}_call", with_short_span):
        found = output_and_gradient(attention_flash, qkv, pattern)
    assert max((x - y).abs().max() for x, y in zip(found, expected, strict=True)) > 1e-3


def test_a_rule_without_a_reach():
    with mock.patch.dict(patterns.RULES, {("row", None): oracle.OTHER_RULE}):
        assert_matches_reference(inputs(Pattern("row", 5, 5, 7), heads=1), Pattern("row", 5, 5, 7))


# --- as an operator ---------------------------------------------------------------------------------------------------

TOY = Pattern("row", 5, 3, 4)


def toy(batch: int = 1) -> tuple[Tensor, ...]:
    return tuple(x.detach().requires_grad_() for x in unpack(inputs(TOY, batch)))


@pytest.mark.parametrize("lengths", [None, [3]])
@pytest.mark.parametrize("kind", ["row", "causal"])
def test_opcheck(kind, lengths):
    prefix_lengths = None if lengths is None else torch.tensor(lengths, device=DEVICE)
    arguments = (*toy(), prefix_lengths, 0.25, kind, 5, 3, 4, 11, "linear")
    torch.library.opcheck(torch.ops.imagewords.attention.default, arguments)


def test_opcheck_of_the_backward_pass():
    q, k, v = (x.detach() for x in toy())
    settings = (None, 0.25, "row", 5, 3, 4, 11, "linear")
    o, lse = torch.ops.imagewords.attention(q, k, v, *settings)
    torch.library.opcheck(
        torch.ops.imagewords.attention_backward.default, (torch.ones_like(o), q, k, v, o, lse, *settings)
    )


@pytest.mark.parametrize("allow", ["set_float32_matmul_precision", "fp32_precision"])
def test_tf32_where_pytorch_is_told_so(allow, monkeypatch):
    assert flash_launch._precision() == "tf32x3"
    try:
        if allow == "fp32_precision":
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        else:
            torch.set_float32_matmul_precision("high")
        assert flash_launch._precision() == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none" if allow == "fp32_precision" else "ieee"
        torch.set_float32_matmul_precision("highest")


def test_launched_on_the_device_of_the_tensors():
    q, k, v = toy()
    with mock.patch.object(torch.cuda, "device_of", wraps=torch.cuda.device_of) as device_of:
        attention(q, k, v, TOY, impl="triton").sum().backward()
    assert len(device_of.mock_calls) == 3


def test_compiled_without_a_graph_break():
    q, k, v = toy()

    def loss(q: Tensor, k: Tensor, v: Tensor, impl: str) -> Tensor:
        return attention(2 * q, k, v, TOY, impl=impl).square().sum()

    found = torch.compile(loss, fullgraph=True)(q, k, v, "triton")
    expected = loss(q, k, v, "reference")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    gradients = [torch.autograd.grad(x, (q, k, v)) for x in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    q, k, v = toy()
    with torch.autocast(DEVICE, dtype):
        o = attention(q, k, v, TOY, impl="triton")
    assert o.dtype == dtype
    expected = attention_reference(q.to(dtype), k.to(dtype), v.to(dtype), TOY)
    torch.testing.assert_close(o, expected, atol=2e-2, rtol=2e-2)
    assert all(x.dtype == torch.float32 for x in torch.autograd.grad(o.sum(), (q, k, v)))


def test_activation_checkpointing():
    q, k, v = toy()
    plain = attention(q, k, v, TOY, impl="triton")
    kept = checkpoint(lambda q: attention(q, k, v, TOY, impl="triton"), q, use_reentrant=False)
    gradients = [torch.autograd.grad(o.square().sum(), (q, k, v)) for o in (plain, kept)]
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


def test_gradients_of_some_inputs_only():
    q, k, v = toy()
    o = attention(q.detach(), k.detach(), v, TOY, impl="triton")
    expected = attention_reference(q.detach(), k.detach(), v, TOY)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), v) for x in (o, expected)), atol=1e-5, rtol=1e-5)


def test_second_derivatives_are_refused():
    q, k, v = toy()
    (gradient,) = torch.autograd.grad(attention(q, k, v, TOY, impl="triton").sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives; impl='reference' has"):
        gradient.sum().backward()


def test_forward_mode_is_refused():
    q, k, v = toy()
    with pytest.raises(RuntimeError, match="no forward-mode derivatives; impl='reference' has"):
        torch.func.jvp(lambda q: attention(q, k, v, TOY, impl="triton"), (q,), (q,))


def test_vmap_is_refused():
    q, _, _ = toy(3)
    with pytest.raises(RuntimeError, match=r"torch.func.vmap: make that dimension part of B"):
        torch.func.vmap(lambda x: attention(x, x, x, TOY, impl="triton"))(q[:, None])


def test_what_the_kernels_do_not_take_is_refused():
    q, k, v = toy()
    with pytest.raises(ValueError, match="takes float32, float16 and bfloat16, not float64"):
        attention(q.double(), k.double(), v.double(), TOY, impl="triton")
    wide = torch.zeros(1, 1, TOY.seq_len, 257, device=DEVICE)
    with pytest.raises(ValueError, match="head dim of at most 256, not 257"):
        attention(wide, wide, wide, TOY, impl="triton")


def test_tensors_on_a_cpu_are_refused_without_the_interpreter():
    source = """
import torch
from kernels.attention import attention
from kernels.patterns import Pattern
x = torch.zeros(1, 1, 17, 16)
attention(x, x, x, Pattern("row", 5, 3, 4), impl="triton")
"""
    root = Path(__file__).parents[2]
    environment = {"PATH": "", "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", source], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ValueError: Triton kernels run on CUDA devices, these tensors are on cpu" in done.stderr


# --- on a GPU, with the launch parameters of the tables ---------------------------------------------------------------


def on_a_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")(test))


@pytest.fixture
def table_launches(small_blocks) -> Iterator[None]:
    """What users get, tuned or not."""
    with mock.patch.object(flash_launch, "launch_parameters", LAUNCH_PARAMETERS):
        yield


LAUNCH_PARAMETERS = flash_launch.launch_parameters


@on_a_gpu
@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 128, 256])
def test_full_size(table_launches, kind, wrap, dtype, head_dim):
    pattern = Pattern(kind, 256, 32, 32, 11, wrap)
    oracle.assert_as_exact_as_masked_sdpa(attention_flash, inputs(pattern, 2, 2, head_dim, dtype=dtype), pattern)


@on_a_gpu
@every_rule
@pytest.mark.parametrize("lengths", [[0, 256], [1, 64], [77, 255]])
@pytest.mark.parametrize("shape", [(256, 32, 32, 11), (256, 64, 64, 11), (250, 33, 31, 5), (300, 7, 200, 3)])
def test_full_size_with_prefixes(table_launches, kind, wrap, lengths, shape):
    pattern = Pattern(kind, *shape, wrap)
    qkv = inputs(pattern, 2, 1, 64, dtype=torch.bfloat16)
    oracle.assert_as_exact_as_masked_sdpa(attention_flash, qkv, pattern, torch.tensor(lengths, device=DEVICE))


@on_a_gpu
@every_rule
def test_more_than_65536_positions(table_launches, kind, wrap):
    """The last rows and the text keys' gradients against the same computed from their own keys alone."""
    pattern = Pattern(kind, 256, 256, 257, 11, wrap)
    q, k, v = (x.requires_grad_() for x in unpack(inputs(pattern, 1, 1, 64, dtype=torch.bfloat16)))
    o = attention_flash(q, k, v, pattern)
    rows = torch.tensor([0, 255, 256, 300, 40_000, 65_535, 65_537, pattern.seq_len - 1], device=DEVICE)
    expected = rows_of_reference(q, k, v, pattern, rows)
    torch.testing.assert_close(o[:, :, rows].double(), expected, atol=2e-2, rtol=2e-2)
    do = torch.zeros_like(o)
    do[:, :, rows] = torch.randn_like(do[:, :, rows])
    found = torch.autograd.grad(o, (q, k, v), do)
    exact = torch.autograd.grad(expected, (q, k, v), do[:, :, rows].double())
    torch.testing.assert_close(found, exact, atol=2e-2, rtol=2e-2)


def rows_of_reference(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, rows: Tensor) -> Tensor:
    mask = patterns.attention_mask(pattern, rows, torch.arange(pattern.seq_len, device=q.device))
    scores = q[:, :, rows].double() @ k.double().transpose(-2, -1) / q.shape[-1] ** 0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ v.double()


@on_a_gpu
def test_offsets_beyond_32_bits(table_launches):
    pattern = Pattern("row", 256, 32, 32)
    heads = 2**31 // (pattern.seq_len * 64) + 2
    q, k, v = torch.randn(3, 1, heads, pattern.seq_len, 64, device=DEVICE, dtype=torch.bfloat16)
    last = slice(heads - 1, heads)
    tensors, of_last = ([x[:, heads].detach().requires_grad_() for x in (q, k, v)] for heads in (slice(None), last))
    o, expected = attention_flash(*tensors, pattern), attention_flash(*of_last, pattern)
    torch.testing.assert_close(o[:, last], expected)
    gradients = torch.autograd.grad(o, tensors, torch.ones_like(o))
    exact = torch.autograd.grad(expected, of_last, torch.ones_like(expected))
    torch.testing.assert_close([x[:, last] for x in gradients], list(exact))


@on_a_gpu
@every_rule
def test_same_bits_twice(table_launches, kind, wrap):
    pattern = Pattern(kind, 256, 64, 64, 11, wrap)
    qkv = inputs(pattern, 2, 4, 64, dtype=torch.bfloat16)
    first, second = (output_and_gradient(attention_flash, qkv, pattern) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@on_a_gpu
def test_auto_means_triton():
    q, k, v = toy()
    with mock.patch.object(flash, "run_forward", wraps=flash.run_forward) as run_forward:
        attention(q, k, v, TOY)
    assert run_forward.called
