"""A decoding step in plain torch against the oracle's rows, and what a step refuses; on CPUs."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code
from torch.nn.functional import scaled_dot_product_attention

from kernels import step as step_module
from kernels.cache_layout import KeysValues
from kernels.limits import MAX_NEW
from kernels.patterns import Pattern, attention_mask
from kernels.reference import attention_reference
from kernels.step import attention_step
from tests.kernels import step_cases
from tests.kernels.oracle import every_rule, unpack
from tests.kernels.step_cases import Step, rows_of, shortest, step_of

TOY = Pattern("row", 6, 4, 4)
inputs = partial(step_cases.inputs, heads=2, head_dim=4, dtype=torch.float64, device="cpu")
zeros = partial(step_cases.zeros, device="cpu")


def assert_rows(qkv: Tensor, pattern: Pattern, steps: list[tuple[int, int]], slots=shortest, samples=1, **options):
    """The steps (index, N) against the oracle's rows, whether the index is known or on the device.

    What no query sees is 100, which would show.
    """
    expected = attention_reference(*unpack(qkv), pattern, **options)
    for index, new in steps:
        prefix_lengths = options.get("prefix_lengths")
        step = step_of(qkv, pattern, index, new, slots(pattern, new), prefix_lengths, samples, unseen=100.0)
        for start in (index, torch.tensor(index), torch.tensor(index, dtype=torch.int32)):
            o = attention_step(*step._replace(index=start), **options)
            torch.testing.assert_close(o, rows_of(expected, pattern, index, new))


def every_step(pattern: Pattern, new: int) -> list[tuple[int, int]]:
    return [(index, new) for index in range(pattern.image_len - new + 1)]


@every_rule
@pytest.mark.parametrize("grid", [(7, 5), (1, 6), (6, 1), (9, 3)])
@pytest.mark.parametrize("new", [1, 3, MAX_NEW + 1])
def test_every_position_against_the_shortest_ring(kind, wrap, grid, new):
    """With two samples a text, whose prefixes differ."""
    pattern = Pattern(kind, 4, *grid, 3, wrap)
    lengths = torch.tensor([0, 3, 4, 2])
    assert_rows(inputs(pattern, 4, samples=2), pattern, every_step(pattern, new), samples=2, prefix_lengths=lengths)


@every_rule
@pytest.mark.parametrize("new", [1, 4, MAX_NEW + 1])
def test_rings_of_any_length(kind, wrap, new):
    pattern = Pattern(kind, 4, 7, 5, 3, wrap)
    qkv = inputs(pattern)
    for slots in (lambda pattern, _: pattern.image_len, lambda pattern, new: (shortest(pattern, new) + 36) // 2):
        assert_rows(qkv, pattern, [(0, new), (18, new)], slots)


@every_rule
@pytest.mark.parametrize("prefix_lengths", [None, torch.tensor([0, 4], dtype=torch.int32)])
def test_step_by_step_against_the_keys_so_far(kind, wrap, prefix_lengths):
    pattern = Pattern(kind, 6, 3, 5, 3, wrap)
    qkv = unpack(inputs(pattern))
    (_, *text), (q, *image) = ([x[:, :, where] for x in qkv] for where in (slice(0, 6), slice(6, None)))

    def rows(index: int, new: int) -> Tensor:
        keys = KeysValues(*(x[:, :, : index + new] for x in image))
        queries = q[:, :, index : index + new]
        return attention_step(queries, KeysValues(*text), keys, pattern, index, prefix_lengths=prefix_lengths)

    found = [rows(0, 4), *(rows(index, 1) for index in range(4, pattern.image_len))]
    expected = attention_reference(*qkv, pattern, prefix_lengths=prefix_lengths)
    torch.testing.assert_close(torch.cat(found, dim=2), expected[:, :, 6:])


@pytest.mark.parametrize("new", [1, MAX_NEW + 1])
@pytest.mark.parametrize("samples", [1, 3, 6])
def test_samples_of_one_text(new, samples):
    pattern = Pattern("conv", 5, 5, 4, 3)
    for lengths in (None, torch.tensor([0, 5, 2, 3, 3, 0])):
        assert_rows(inputs(pattern, 6, samples=samples), pattern, [(2, new)], samples=samples, prefix_lengths=lengths)


def test_another_sample_s_text_is_caught():
    qkv = inputs(TOY, 4, samples=2)
    q, text, *rest = step_of(qkv, TOY, 7, 1, 16, samples=2, unseen=0.0)
    expected = rows_of(attention_reference(*unpack(qkv), TOY), TOY, 7, 1)
    swapped = attention_step(q, KeysValues(*(x.flip(0) for x in text)), *rest)
    assert ((swapped - expected).abs().amax(dim=(1, 2, 3)) > 0.01).all()


@pytest.mark.parametrize("new", [1, 3, MAX_NEW + 1])
def test_the_scale(new):
    assert_rows(inputs(Pattern("row", 6, 5, 4)), Pattern("row", 6, 5, 4), [(2, new)], scale=2.0)


@pytest.mark.parametrize("new", [1, 3])
def test_large_scores_do_not_overflow(new):
    assert_rows(200 * inputs(TOY), TOY, [(9, new)])


@every_rule
@pytest.mark.parametrize("new", [1, 3, MAX_NEW + 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_error_is_at_most_twice_that_of_masked_sdpa_in_the_same_dtype(kind, wrap, new, dtype):
    pattern = Pattern(kind, 20, 9, 12, 5, wrap)
    qkv = inputs(pattern, 4, head_dim=20, dtype=dtype, samples=2)
    positions = torch.arange(pattern.seq_len)
    exact = attention_reference(*unpack(qkv.double()), pattern)
    plain = scaled_dot_product_attention(*unpack(qkv), attention_mask(pattern, positions, positions))
    o = attention_step(*step_of(qkv, pattern, 71, new, shortest(pattern, new), samples=2, unseen=0.0))
    assert o.dtype == dtype
    found, allowed = ((x - rows_of(exact, pattern, 71, new)).abs().max() for x in (o, rows_of(plain, pattern, 71, new)))
    assert found <= 2 * allowed + torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("new", [1, 3, MAX_NEW + 1])
@pytest.mark.parametrize("kind", ["conv", "column"])
def test_gradients(kind, new):
    """Of all that a step sees: those of the samples of a text are added up."""
    pattern = Pattern(kind, 4, 5, 5, 3)
    qkv = inputs(pattern, 4, samples=2).requires_grad_()
    weight = torch.linspace(-1, 1, 4 * 2 * new * 4, dtype=torch.float64).view(4, 2, new, 4)
    step = step_of(qkv, pattern, 7, new, pattern.image_len, samples=2, unseen=0.0)
    (found,) = torch.autograd.grad((attention_step(*step) * weight).sum(), qkv)
    rows = rows_of(attention_reference(*unpack(qkv), pattern), pattern, 7, new)
    (expected,) = torch.autograd.grad((rows * weight).sum(), qkv)
    text = slice(0, pattern.text_len)
    expected[::2, text, 1:] += expected[1::2, text, 1:]
    expected[1::2, text, 1:] = 0
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("samples", [2, MAX_NEW + 1])
def test_compiled_by_inductor(samples):
    """One graph for all positions; for one query a loop over keys, and a matrix product of text and many samples."""
    pattern = Pattern("conv", 5, 4, 4, 3)
    qkv = inputs(pattern, 2 * samples, dtype=torch.float32, samples=samples)
    lengths = torch.arange(2 * samples) % 6
    counter = CompileCounterWithBackend("inductor")

    @torch.compile(backend=counter, fullgraph=True)
    def compiled(q: Tensor, text: KeysValues, image: KeysValues, index: Tensor) -> Tensor:
        return 2 * attention_step(q * 1, text, image, pattern, index, prefix_lengths=lengths)

    def check(index: int) -> None:
        *cache, _, _ = step_of(qkv, pattern, index, 1, shortest(pattern), lengths, samples, unseen=100.0)
        found = compiled(*cache, torch.tensor(index))
        expected = 2 * attention_step(*cache, pattern, index, prefix_lengths=lengths)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    _, (code,) = run_and_get_code(check, 4)
    assert ("bmm(" in code) == (samples > MAX_NEW)
    for index in (9, 15):
        check(index)
    assert counter.frame_count == 1


def test_a_ring_one_slot_too_short_is_caught(monkeypatch):
    qkv = inputs(TOY)
    with pytest.raises(ValueError, match=r"positions 9..10 against 5 image keys, expected at least 6"):
        assert_rows(qkv, TOY, [(9, 2)], lambda *_: 5)
    monkeypatch.setattr(step_module, "check_ring", lambda *_: None)
    with pytest.raises(AssertionError):
        assert_rows(qkv, TOY, [(9, 2)], lambda *_: 5)


def test_a_wrong_rule_is_caught(monkeypatch):
    monkeypatch.setattr(step_module, "attends_image", lambda pattern, q, k: (k <= q) & (q - k < pattern.width))
    assert_rows(inputs(TOY), TOY, [(3, 1)])  # nothing lies that far back yet
    with pytest.raises(AssertionError):
        assert_rows(inputs(TOY), TOY, [(10, 1)])


def test_autocast_decides_the_dtype():
    q, text, image, *rest = step_of(inputs(TOY, dtype=torch.float32), TOY, 4, 1, 5)
    with torch.autocast("cpu", torch.bfloat16):
        o = attention_step(q, text, KeysValues(image.k.bfloat16(), image.v), *rest)
    assert o.dtype == torch.bfloat16


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-46, math.inf, math.nan, "0.1"])
def test_scales_that_are_not_positive_are_refused(scale):
    with pytest.raises(ValueError, match=f"scale is {scale!r}, expected a positive number"):
        attention_step(*zeros(TOY), scale=scale)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([1.0, 2.0]), "prefix_lengths is torch.float32, expected int32 or int64"),
        (torch.tensor([1, 2, 3]), r"prefix_lengths has shape \(3,\), expected \(2,\)"),
        (torch.tensor([3, 7]), r"prefix_lengths holds \[3, 7\], expected 0..6"),
        (torch.tensor([-1, 2]), r"prefix_lengths holds \[-1, 2\], expected 0..6"),
        (torch.tensor([1, 2], device="meta"), "prefix_lengths is on meta, q on cpu"),
        ([1, 2], r"prefix_lengths is \[1, 2\], expected a tensor"),
    ],
)
def test_bad_prefix_lengths(lengths, message):
    with pytest.raises(ValueError, match=message):
        attention_step(*zeros(TOY, batch=2, texts=1), prefix_lengths=lengths)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (16, "positions 16..16 against 16 image keys"),
        (-1, "positions -1..-1 against 16 image keys"),
        (1.5, r"index is 1.5, expected an int or a tensor \(0-d\)"),
        (torch.tensor([3]), r"index is a tensor of shape \(1,\), torch.int64, on cpu"),
        (torch.tensor(3.0), r"index is a tensor of shape \(\), torch.float32"),
        (torch.tensor(3, device="meta"), r"torch.int64, on meta, expected a 0-d int32 or int64 tensor on cpu"),
    ],
)
def test_an_index_that_is_none_is_refused(index, message):
    with pytest.raises(ValueError, match=message):
        attention_step(*zeros(TOY)._replace(index=index))


def changed(step: Step, **keys: Tensor) -> Step:
    """With other keys, named as in text_k."""
    for name, x in keys.items():
        kind, field = name.split("_")
        step = step._replace(**{kind: getattr(step, kind)._replace(**{field: x})})
    return step


def test_samples_that_texts_do_not_divide_are_refused():
    said = "4 samples against {} images and {} texts, expected as many images, and texts that divide them"
    with pytest.raises(ValueError, match=said.format(4, 3)):
        attention_step(*zeros(TOY, batch=4, texts=3))
    with pytest.raises(ValueError, match=said.format(4, 8)):
        attention_step(*zeros(TOY, batch=4, texts=8))
    with pytest.raises(ValueError, match=said.format(2, 2)):
        attention_step(*zeros(TOY, batch=4, texts=2)._replace(image=zeros(TOY, batch=2).image))


def test_a_text_of_another_length_is_refused():
    step = zeros(TOY)._replace(text=zeros(Pattern("row", 5, 4, 4)).text)
    with pytest.raises(ValueError, match="text keys of 5 positions, the pattern's text has 6"):
        attention_step(*step)


@pytest.mark.parametrize("name", ["text_k", "text_v", "image_k", "image_v"])
def test_keys_that_do_not_fit_are_refused(name):
    step = zeros(TOY, batch=2, texts=2)
    kind, field = name.split("_")
    x = getattr(getattr(step, kind), field)
    wrongs = (x.repeat(1, 2, 1, 1), x[..., :8], x[:, :, :3], x[:1])  # heads, head dim, positions, batch
    for wrong in wrongs:
        with pytest.raises(ValueError, match=f"q and the keys and values of the {kind} do not fit: .*{wrong.shape[0]}"):
            attention_step(*changed(step, **{name: wrong}))
    for wrong, message in (
        (x[0], rf"{field} has shape .*, expected \(B, H, T, D\)"),
        (x[:, :0], "expected at least 1 everywhere"),
        (x.half(), "differ in dtype"),
        (x.to("meta"), "on different devices"),
    ):
        with pytest.raises(ValueError, match=message):
            attention_step(*changed(step, **{name: wrong}))


def test_no_queries_are_refused():
    step = zeros(TOY)
    with pytest.raises(ValueError, match=r"q has shape \(1, 1, 0, 16\), expected at least 1 everywhere"):
        attention_step(*step._replace(q=step.q[:, :, :0]))
    with pytest.raises(ValueError, match="do not fit"):
        attention_step(*step._replace(q=step.q[..., :8]))


def test_an_unknown_impl_lists_the_known():
    with pytest.raises(ValueError, match="unknown impl 'reference', expected one of auto, triton, structured"):
        attention_step(*zeros(TOY), impl="reference")
