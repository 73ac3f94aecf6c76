"""Times by a clock that the tests turn: each part of a prior takes so many seconds as they say."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from evaluation import timing
from evaluation.timing import LayerClock, decoding_times, forward_times, warm_median
from kernels import limits
from transformer.decoding import generate


@pytest.fixture
def turn(monkeypatch):
    """Has a module take so many seconds of the clock whenever it is called."""
    time = [0.0]
    monkeypatch.setattr(timing, "now", lambda device: time[0])

    def slow(module: torch.nn.Module, seconds) -> None:
        def advance(module, args, output):
            time[0] += seconds(output) if callable(seconds) else seconds

        module.register_forward_hook(advance)

    return slow


@pytest.fixture
def prior(make_prior, turn):
    """Layer i: 1 + i seconds for attention, of which 1 for its norm, and 10 for the MLP. A pass of another size takes
    longer."""
    prior = make_prior(n_layer=3)
    for layer, block in enumerate(prior.blocks):
        turn(block.attention_norm, 1)
        turn(block.attention, layer)
        turn(block.mlp, lambda output: 10 if len(output) == 2 else 99)
    return prior


def test_each_layers_parts_with_their_norms(prior, make_batch):
    clock, batch = LayerClock(prior), make_batch(5)
    for size in (2, 2, 1):
        with clock:
            prior(batch[0][:size], batch[1][:size])
    prior(*batch)  # the clock is not open
    times = forward_times(clock, [(2, 9.0), (2, 0.5), (1, 0.1)])
    assert times == {"batch_size": 2, "ms": 500, "layers": clock.layers()}
    assert [layer["mask"] for layer in clock.layers()] == [pattern.kind for pattern in prior.patterns]
    assert [layer["attention_ms"] for layer in clock.layers()] == [1000, 2000, 3000]
    assert [layer["mlp_ms"] for layer in clock.layers()] == [10_000] * 3


def test_an_error_leaves_no_hooks(prior, make_batch):
    text_tokens, image_tokens = make_batch(2)
    clock = LayerClock(prior)
    with pytest.raises(ValueError, match="expected"), clock:
        prior(text_tokens, image_tokens[:, :1])
    prior(text_tokens, image_tokens)
    assert clock.layers() == []


def test_a_token_of_sampling(make_prior, make_batch, turn, monkeypatch):
    """The head is called once a token: a second each, and what comes before the token that a GPU's first replay draws
    does not count."""
    prior = make_prior(n_layer=3)
    text_tokens, image_tokens = make_batch(1)
    heads = []
    monkeypatch.setattr(timing, "generate", lambda *args, **options: heads.clear() or generate(*args, **options))
    turn(prior.image_head, lambda output: heads.append(1) or (1 if len(heads) > 5 else 100))
    for layer, block in enumerate(prior.blocks):
        turn(block.mlp, lambda output, layer=layer: 2 + layer if output.shape[1] == 1 else 500)
    times = decoding_times(prior, text_tokens, image_tokens)
    assert times["ms_per_token"] == times["guided_ms_per_token"] == 1000 * (1 + 2 + 3 + 4)
    assert times["tokens"] == 7  # of 12, all but the first, three before the capture and the first replay's
    assert [layer["mlp_ms"] for layer in times["layers"]] == [2000, 3000, 4000]
    assert [layer["attention_ms"] for layer in times["layers"]] == [0] * 3
    monkeypatch.setattr(timing, "DECODED", 4)
    assert decoding_times(prior, text_tokens, image_tokens) == times | {"tokens": 4}


def test_the_first_time_does_not_count():
    assert warm_median([9.0, 1.0, 2.0, 6.0]) == 2.0
    assert warm_median([9.0]) == 9.0


class MadeUpEvent:
    """A mark among the work of a GPU that does one second of it between any two; it may be read once waited for."""

    count = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.waited = False

    def record(self, stream: object) -> None:
        MadeUpEvent.count += 1
        self.place = MadeUpEvent.count

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, end: "MadeUpEvent") -> float:
        assert end.waited
        return 1000.0 * (end.place - self.place)


@pytest.mark.parametrize("captured", [False, True])
def test_a_gpu_is_not_waited_for_between_layers(make_prior, monkeypatch, captured):
    """On a made-up device. What is captured does not run: its layers are left out."""

    def wait(*args) -> None:
        raise AssertionError("waited")

    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    monkeypatch.setattr(torch.cuda, "Event", MadeUpEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captured)
    monkeypatch.setattr(limits, "is_capable", lambda device: False)  # nor is Triton asked for
    with FakeTensorMode(), torch.device("cuda"):
        prior = make_prior(n_layer=3)
        clock = LayerClock(prior)
        with clock:
            prior(torch.zeros(2, 5).long(), torch.zeros(2, 4, 3).long())
    if captured:
        assert clock.layers() == []
    else:
        assert [(layer["attention_ms"], layer["mlp_ms"]) for layer in clock.layers()] == [(1000, 1000)] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_times_on_a_gpu(make_prior, make_batch):
    prior = make_prior().cuda()
    times = decoding_times(prior, *(tokens.cuda() for tokens in make_batch(1)))
    assert times["ms_per_token"] > 0 and times["guided_ms_per_token"] > 0
    assert [layer["mask"] for layer in times["layers"]] == [pattern.kind for pattern in prior.patterns]
    assert all(layer["attention_ms"] > 0 and layer["mlp_ms"] > 0 for layer in times["layers"])
