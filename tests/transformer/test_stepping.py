"""Steps by a compiler and as a CUDA graph; without a GPU, the graph is a made-up one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Event, Thread
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo import eval_frame

from transformer import decoding, stepping
from transformer.decoding import generate
from transformer.sampling import SamplingConfig
from transformer.serving import WEIGHTS, for_decoding
from transformer.stepping import STEPS_BEFORE_CAPTURE, CapturedStep, CompiledStep


@pytest.fixture
def compile_by(monkeypatch) -> Callable:
    """Has steps compiled by another backend, from now on none of them yet."""

    def compile_by(backend) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(decoding.decode_step, backend=backend, fullgraph=True, dynamic=False)
        monkeypatch.setattr(decoding, "_compiled_step", compiled)

    return compile_by


def test_what_cannot_be_compiled_is_said(make_prior, make_batch, compile_by):
    def no_compiler(graph, inputs):
        raise OSError("no C++ compiler\nhere")

    compile_by(no_compiler)
    text_tokens, _ = make_batch(2)
    with pytest.raises(ValueError, match="decoding cannot be compiled here: "):
        generate(for_decoding(make_prior()), text_tokens, seeds=torch.arange(2), config=SamplingConfig(), compile=True)


def test_more_kinds_of_steps_than_are_kept(make_prior, make_batch, compile_by, monkeypatch):
    """Each of four draws as without a compiler, the last as the first one."""
    monkeypatch.setattr(stepping, "COMPILED_STEPS", 2)
    compile_by("aot_eager")
    prior, (text_tokens, _) = make_prior(n_layer=2), make_batch(2)
    for top_k in (3, 4, 5, 6, 3):
        options = {"seeds": torch.arange(2), "config": SamplingConfig(top_k=top_k)}
        plain = generate(prior, text_tokens, **options)
        assert torch.equal(generate(prior, text_tokens, compile=True, **options), plain)


def test_generations_within_a_generation(make_prior, make_batch, compile_by):
    """Whose steps are of other graphs, for which the outer one's have to make room each time."""
    compile_by("aot_eager")
    prior, (text_tokens, _) = make_prior(n_layer=2), make_batch(2)
    outer, inner = {"config": SamplingConfig(top_k=4)}, {"config": SamplingConfig(guidance_scale=2.0)}
    expected = [generate(prior, text_tokens, seeds=torch.arange(2), **options) for options in (outer, inner)]
    found = []

    def within(done: int, _: int) -> None:
        if done in (3, 7):
            found.append(generate(prior, text_tokens, seeds=torch.arange(2), compile=True, **inner))

    options = {"seeds": torch.arange(2), "compile": True, "progress": within}
    assert torch.equal(generate(prior, text_tokens, **options, **outer), expected[0])
    assert len(found) == 2
    assert all(torch.equal(each, expected[1]) for each in found)


def test_guards_are_left_out_of_calls_in_a_row_only():
    """They are what tells one graph from another, and to leave them out holds for all threads."""
    left_out: dict[str, list[bool]] = {"first": [], "second": [], "of another thread": []}
    inside, go_on = Event(), Event()

    def note(name: str) -> None:
        left_out[name].append(eval_frame._is_skip_guard_eval_unsafe_stance())

    def slow() -> None:
        note("first")
        if len(left_out["first"]) == 4:
            inside.set()
            go_on.wait(timeout=0.5)  # in vain: who would set it is to wait for this step

    def of_another_thread() -> None:
        note("of another thread")
        go_on.set()

    first, second, third = CompiledStep(slow), CompiledStep(partial(note, "second")), CompiledStep(of_another_thread)
    for step in (first, first, second, second, first):
        step()
    thread = Thread(target=lambda: inside.wait() and third())
    thread.start()
    first()
    assert not go_on.is_set()
    thread.join()
    assert left_out == {"first": [False, True, False, True], "second": [False, True], "of another thread": [False]}


class MadeUpCuda:
    """What is asked of torch.cuda, on two devices, cuda:0 the current one. A capture's step is run by replays alone."""

    class Stream:
        def __init__(self, made_up: "MadeUpCuda", device: torch.device | None) -> None:
            self.device, self.waited = device or torch.device("cuda", made_up.current), []

        def wait_stream(self, stream: "MadeUpCuda.Stream") -> None:
            assert stream.device == self.device
            self.waited.append(stream)

    class CUDAGraph:
        replays = 0

        def replay(self) -> None:
            self.replays += 1

    def __init__(self, monkeypatch) -> None:
        self.current = 0
        self.defaults = {index: self.Stream(self, torch.device("cuda", index)) for index in range(2)}
        self.stream_in_use: MadeUpCuda.Stream | None = None
        self.captures: list[MadeUpCuda.CUDAGraph] = []
        self.capturing = False
        monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: self.Stream(self, device))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", self.CUDAGraph)
        for name in ("current_stream", "device", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def current_stream(self, device: torch.device | None = None) -> Stream:
        return self.stream_in_use or self.defaults[self.current if device is None else device.index]

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        yield
        self.current = before

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.stream_in_use = stream
        yield
        self.stream_in_use = None

    @contextmanager
    def graph(self, graph: CUDAGraph, stream: Stream, capture_error_mode: str = "global") -> Iterator[None]:
        assert capture_error_mode == "thread_local", "another thread's work would end it"
        self.capturing = True
        with self.stream(stream):
            yield
        self.capturing = False
        self.captures.append(graph)


def test_a_capture_on_a_device_that_is_not_the_current_one(monkeypatch):
    cuda, seen = MadeUpCuda(monkeypatch), []
    device = torch.device("cuda", 1)

    def step() -> None:
        seen.append((cuda.capturing, cuda.current, cuda.current_stream(device)))

    captured = CapturedStep(step, device)
    for _ in range(STEPS_BEFORE_CAPTURE + 4):
        captured()
        assert cuda.current == 0
    (own,) = {stream for _, _, stream in seen}
    assert own.device == device and own is not cuda.defaults[1]
    assert seen == [(False, 1, own)] * STEPS_BEFORE_CAPTURE + [(True, 1, own)]
    assert own.waited == [cuda.defaults[1]] * STEPS_BEFORE_CAPTURE
    assert cuda.defaults[1].waited == [own] * STEPS_BEFORE_CAPTURE
    assert [graph.replays for graph in cuda.captures] == [4]


@pytest.mark.parametrize("compile", [False, True])
def test_a_gpus_step_is_captured_compiled_or_not(monkeypatch, compile):
    MadeUpCuda(monkeypatch)
    device = torch.device("cuda", 1)
    begun = SimpleNamespace(tokens=SimpleNamespace(is_cuda=True, device=device))
    step = decoding._step(None, begun, None, compile)
    assert isinstance(step, CapturedStep) and step.device == device
    assert isinstance(step.step, CompiledStep) == compile


SETTINGS = [
    SamplingConfig(),
    SamplingConfig(guidance_scale=2.0, top_k=9),
    SamplingConfig(temperature=0.7, guidance_scale=3.0, guidance_schedule="cosine", top_p=0.9, min_p=0.05),
    SamplingConfig(temperature=0),
]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("weighed", [False, True])
def test_a_graph_draws_what_plain_steps_draw(
    make_prior, make_batch, compile_by, monkeypatch, weights, compile, weighed
):
    """Of several settings one after another, on the last device, which need not be the current one."""
    compile_by("aot_eager")
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    prior, text_tokens = for_decoding(make_prior(), weights).to(device), make_batch(5)[0].to(device)
    for config in SETTINGS * 2:
        drawn, likelihoods = [], []
        for plain in (False, True):
            with monkeypatch.context() as patch:
                if plain:
                    patch.setattr(decoding, "CapturedStep", lambda step, device: step)
                likelihoods.append(torch.zeros(5, 3, device=device) if weighed else None)
                options = {"seeds": torch.arange(5), "config": config, "likelihoods": likelihoods[-1]}
                drawn.append(generate(prior, text_tokens, compile=compile, **options))
        assert torch.equal(*drawn)
        if weighed:
            torch.testing.assert_close(*likelihoods)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_capture_beside_a_thread_that_pins_memory(make_prior, make_batch):
    """As a loader's does."""
    stop = Event()

    def pin() -> None:
        size = 1
        while not stop.is_set():
            torch.empty(size * 2**20, dtype=torch.uint8, pin_memory=True)
            size = size % 64 + 1

    thread = Thread(target=pin)
    thread.start()
    try:
        prior, text_tokens = for_decoding(make_prior()).cuda(), make_batch(2)[0].cuda()
        for seed in range(20):
            generate(prior, text_tokens, seeds=torch.arange(2) + seed, config=SamplingConfig())
    finally:
        stop.set()
        thread.join()
