"""What benchmarks/sampling.py times: pictures' tokens drawn after full captions, by ours and by others.

Every sampler draws from the softmax as it is, at temperature 1. Where a whole picture would take minutes, because each
token costs a forward pass, single tokens are timed at three lengths and the rest follows by Simpson's rule, which is
exact for costs that grow as a cubic of the length.

Shapes: B batch, h w token grid, V text vocabulary, K codebook.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from benchmarks.peers import import_peer
from benchmarks.prior_contestants import (
    NOT_OF_DALLE,
    Batch,
    Sizes,
    dalle_text,
    make_dalle,
    make_llama,
    make_ours,
    make_selective,
)
from benchmarks.step_bytes import llama_bytes, prior_bytes
from evaluation.shared import now
from transformer.decoding import UNKNOWN, generate
from transformer.model import Prior
from transformer.sampling import SamplingConfig
from transformer.serving import WEIGHTS, cache_dtype, for_decoding

DTYPES = WEIGHTS
"""Of the weights; activations of ours are float32."""
PEER_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GUIDANCE = 3.0
WARM_UP_TOKENS = 4
STATIC_TOKENS = 256  # of a picture, where all steps are alike


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is drawn: `batch` pictures at a time, with weights and caches in `dtype`."""

    sizes: Sizes
    batch: int
    dtype: str
    device: str

    def inputs(self) -> Batch:
        return Batch.random(self.sizes, self.batch, self.device)


class Draw(NamedTuple):
    """What drawing a batch of pictures took."""

    total_s: float
    first_s: float
    """Until the first `first` tokens of each were there: the caption's pass, mostly."""
    first: int
    tokens: int
    """Of each picture."""

    @property
    def ms_per_step(self) -> float:
        """Of the tokens after the first ones."""
        return 1e3 * (self.total_s - self.first_s) / (self.tokens - self.first)


class Sampler(Protocol):
    estimated: bool
    """Whether a draw follows from parts of it."""

    def warm_up(self) -> None: ...
    def draw(self) -> Draw: ...
    def bytes_per_step(self) -> float | None:
        """What a step must read (step_bytes.py); None where it is a pass over all positions."""


class Stopwatch:
    """Seconds since it was made, when the device has done what it was given."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.start = now(self.device)

    def read(self) -> float:
        return now(self.device) - self.start


def prepare_ours(sizes: Sizes, dtype: str, device: str) -> Prior:
    """The prior as it is sampled from."""
    return for_decoding(make_selective(make_ours(sizes)), dtype).to(device)


class Ours:
    estimated = False

    def __init__(self, case: Case, prior: Prior, config: SamplingConfig, compile: bool) -> None:
        self.case, self.prior, self.config, self.compile = case, prior, config, compile
        self.batch = case.inputs()
        self.drawn: Tensor | None = None
        """(B, h, w), of the last draw."""

    def sample(self, **options: Any) -> Tensor:
        """The one place that calls our decoding: (B, h, w)."""
        batch = self.batch
        return generate(
            self.prior, batch.text_tokens, seeds=batch.seeds, config=self.config, compile=self.compile, **options
        )

    def warm_up(self) -> None:
        """Draws the last tokens of pictures of which the others are given."""
        given = self.batch.image_tokens.clone()
        given.flatten(1)[:, -WARM_UP_TOKENS:] = UNKNOWN
        self.sample(given=given)

    def draw(self) -> Draw:
        watch, marks = Stopwatch(self.case.device), []

        def mark(done: int, total: int) -> None:
            if done and not marks:
                marks.append((watch.read(), done))

        self.drawn = self.sample(progress=mark)
        return Draw(watch.read(), *marks[0], self.case.sizes.image_len)

    def bytes_per_step(self) -> float:
        guided = self.config.guided  # whose rows without a caption share one text
        rows, texts = self.case.batch * (1 + guided), self.case.batch + guided
        dtype = cache_dtype(self.prior) or torch.float32
        return prior_bytes(self.prior, rows, texts, dtype.itemsize)


class ByLengths:
    """A sampler each of whose tokens costs a pass that depends on how many there are: three of them are timed."""

    estimated = True

    def __init__(self, case: Case) -> None:
        self.case, self.batch = case, case.inputs()

    def step(self, length: int) -> Tensor:
        """The next token (B,) after the first `length` of the picture."""
        raise NotImplementedError  # each contestant has its own

    def warm_up(self) -> None:
        self.time_step(self.lengths()[1])

    def lengths(self) -> tuple[int, int, int]:
        last = self.case.sizes.image_len - 1
        return 0, last // 2, last

    @torch.no_grad()
    def draw(self) -> Draw:
        first, middle, last = map(self.time_step, self.lengths())
        tokens = self.case.sizes.image_len
        return Draw(tokens * (first + 4 * middle + last) / 6, first, 1, tokens)

    def time_step(self, length: int) -> float:
        watch = Stopwatch(self.case.device)
        self.step(length)
        return watch.read()

    def bytes_per_step(self) -> None:
        return None


class Uncached(ByLengths):
    """Our model without a cache: a whole forward pass a token, whose cost no length changes."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        prior = make_selective(make_ours(case.sizes))
        self.prior = prior.to(case.device, PEER_DTYPES[case.dtype]).eval()

    @torch.no_grad()
    def step(self, length: int) -> Tensor:
        logits = self.prior(*self.batch).image_logits[:, length]
        return logits.float().softmax(dim=-1).multinomial(1)[:, 0]


class Llama:
    """Hugging Face's `generate`. With the codebook alone as its vocabulary, a token needs as many weights as ours.

    A static cache is as long as a picture from the start, and attended to as a whole: steps are alike, and a picture's
    time follows from that of its first tokens.
    """

    def __init__(self, case: Case, cache: str | None, compiled: bool) -> None:
        self.case, self.estimated = case, cache == "static" and case.sizes.image_len > STATIC_TOKENS
        self.model = make_llama(case.sizes, case.sizes.codebook_size).to(case.device, PEER_DTYPES[case.dtype]).eval()
        text = case.inputs().text_tokens % case.sizes.codebook_size
        self.prompt = torch.cat([text[:, :1], text], dim=1)  # as long as BOS and the caption
        self.settings = {"cache_implementation": cache, "disable_compile": not compiled}
        if compiled:
            self.settings["compile_config"] = compile_config = import_peer("transformers").CompileConfig()
            compile_config._compile_all_devices = True  # without, it compiles on GPUs alone

    def warm_up(self) -> None:
        self._generate(WARM_UP_TOKENS)

    def draw(self) -> Draw:
        tokens = self.case.sizes.image_len
        if not self.estimated:
            return self._generate(tokens)
        part = self._generate(STATIC_TOKENS)
        return Draw(part.first_s + (tokens - 1) * part.ms_per_step / 1e3, part.first_s, 1, tokens)

    @torch.no_grad()
    def _generate(self, tokens: int) -> Draw:
        """Of whatever length, with a cache for a whole picture, as static ones are compiled for their length."""
        watch, marks = Stopwatch(self.case.device), []

        def stop(input_ids: Tensor, scores: Any) -> Tensor:
            if not marks:
                marks.append(watch.read())
            done = input_ids.shape[1] - self.prompt.shape[1] >= tokens
            return torch.full((len(input_ids),), done, device=input_ids.device)

        self.model.generate(
            self.prompt,
            attention_mask=torch.ones_like(self.prompt),
            max_new_tokens=self.case.sizes.image_len,
            do_sample=True,
            top_k=0,
            stopping_criteria=[stop],
            **self.settings,
        )
        return Draw(watch.read(), marks[0], 1, tokens)

    def bytes_per_step(self) -> float:
        return llama_bytes(self.model, self.case.sizes.text_len, self.case.sizes.image_len, self.case.batch)


class DallePytorch(ByLengths):
    """What DALLE-pytorch's `generate_images` does for each token: without guidance it never uses its cache."""

    with_cache = False

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.model = make_dalle(case.sizes, with_cache=self.with_cache).to(case.device, PEER_DTYPES[case.dtype]).eval()
        self.text, self.image = dalle_text(self.batch), self.batch.image_tokens.flatten(1)
        self.module = import_peer("dalle_pytorch.dalle_pytorch", NOT_OF_DALLE)

    @torch.no_grad()
    def step(self, length: int) -> Tensor:
        return self.choose(self.model(self.text, self.image[:, :length]))

    def choose(self, logits: Tensor) -> Tensor:
        kept = self.module.top_k(logits[:, -1], thres=0.0)
        return self.module.gumbel_sample(kept) - self.model.num_text_tokens


class CachedDalle(DallePytorch):
    """The same with the cache that their forward pass takes, which `generate_images` hands over with guidance only."""

    with_cache = True

    @torch.no_grad()
    def time_step(self, length: int) -> float:
        """Of the first token, the caption's pass; of later ones, that of one token more."""
        if length == 0:
            watch = Stopwatch(self.case.device)
            self.choose(self.model(self.text, self.image[:, :0], cache={}))
            return watch.read()
        cache: dict[str, Any] = {}
        self.model(self.text, self.image[:, : length - 1], cache=cache)
        watch = Stopwatch(self.case.device)
        self.choose(self.model(self.text, self.image[:, :length], cache=cache))
        return watch.read()

    def lengths(self) -> tuple[int, int, int]:
        last = self.case.sizes.image_len - 1
        return 1, 1 + last // 2, last

    @torch.no_grad()
    def draw(self) -> Draw:
        steps, caption = super().draw(), self.time_step(0)
        return Draw(caption + steps.total_s * (steps.tokens - 1) / steps.tokens, caption, 1, steps.tokens)


OURS, GUIDED, EAGER = "ours", "ours, guided", "ours, not compiled"
PEERS: Mapping[str, Callable[[Case], Sampler]] = {
    "ours, uncached": Uncached,
    "Llama": lambda case: Llama(case, None, compiled=False),
    "Llama, static cache": lambda case: Llama(case, "static", compiled=False),
    "Llama, static cache, compiled": lambda case: Llama(case, "static", compiled=True),
    "DALLE-pytorch": DallePytorch,
    "DALLE-pytorch, its cache": CachedDalle,
}
NAMES = (OURS, EAGER, *PEERS)


def line_up(name: str, case: Case) -> dict[str, Sampler]:
    """The samplers that are timed in turn, by name: ours without and with guidance, or one of the others."""
    usual, guided = SamplingConfig(), SamplingConfig(guidance_scale=GUIDANCE)
    if name == OURS:
        prior = prepare_ours(case.sizes, case.dtype, case.device)
        return {OURS: Ours(case, prior, usual, compile=True), GUIDED: Ours(case, prior, guided, compile=True)}
    if name == EAGER:
        return {EAGER: Ours(case, prepare_ours(case.sizes, case.dtype, case.device), usual, compile=False)}
    return {name: PEERS[name](case)}
