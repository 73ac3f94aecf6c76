"""How a token is drawn from logits: warped, guided, and by noise that is the sample's own. Pure functions.

Randomness is a function of each sample's seed alone (noise.py). A token is drawn by an exponential race: the argmax of
logits - ln e with e ~ Exp(1) per code, which is Gumbel-max sampling (https://arxiv.org/abs/1611.01144) and draws from
softmax(logits) exactly. It is preferred to inverting the cumulated probabilities because the sums of a matrix product
may be rounded differently in batches of different sizes: an error of 1e-6 in the logits changes the winner of the race
with a probability of about 1e-6, but shifts each of thousands of borders of a cumulated sum.

The settings alone decide which operations these are, and no value of a tensor: a step of decoding is one graph. Of the
settings, it is which there are: their numbers are tensors, so that a graph serves for all temperatures and scales.

Shapes: B batch, K codebook.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from transformer.noise import exponential_noise

WITHOUT_FLOAT64 = ("mps",)  # types of devices
COLDEST = 1e-6  # temperature: of less, logits would leave the range of float32
LEAST_TOP_P = 1e-30  # of less, float32 would make 0, which keeps nothing
LARGEST = 1e6  # temperature and guidance scale, for the same reason
GuidanceSchedule = Literal["constant", "linear", "cosine"]
GUIDANCE_SCHEDULES: tuple[str, ...] = get_args(GuidanceSchedule)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn; the defaults are the paper's. Raises ValueError for values outside their ranges."""

    temperature: float = 1.0
    """Divides the logits, COLDEST to LARGEST; 0 takes the most likely token."""
    top_k: int | None = None
    """Keep only this many of the most likely codes; at least 1."""
    top_p: float | None = None
    """Keep the fewest codes that together have this probability, in (0, 1]."""
    min_p: float | None = None
    """Keep the codes at least this many times as probable as the likeliest, in (0, 1]."""
    guidance_scale: float = 1.0
    """logits = null + scale * (cond - null), 0 to LARGEST: 1 is no guidance, 0 ignores the caption."""
    guidance_schedule: GuidanceSchedule = "constant"
    """How the scale goes from 1 at the first image token to guidance_scale at the last, see `scheduled_scale`."""

    def __post_init__(self) -> None:
        if self.temperature != 0 and not COLDEST <= self.temperature <= LARGEST:
            raise ValueError(f"temperature is {self.temperature}, expected 0 or {COLDEST:g} to {LARGEST:g}")
        whole = isinstance(self.top_k, int) and not isinstance(self.top_k, bool)
        if self.top_k is not None and not (whole and self.top_k >= 1):
            raise ValueError(f"top_k is {self.top_k!r}, expected a whole number of at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected more than 0 and at most 1")
        if self.min_p is not None and not 0 < self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}, expected more than 0 and at most 1")
        if not 0 <= self.guidance_scale <= LARGEST:
            raise ValueError(f"guidance_scale is {self.guidance_scale}, expected 0 to {LARGEST:g}")
        if self.guidance_schedule not in GUIDANCE_SCHEDULES:
            expected = ", ".join(GUIDANCE_SCHEDULES)
            raise ValueError(f"guidance_schedule is {self.guidance_schedule!r}, expected one of {expected}")

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0

    def tensors(self, device: torch.device) -> "SamplingTensors":
        """For logits on `device`."""
        drawn_on = torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device
        number = partial(torch.full, (), dtype=torch.float32)
        top_p = None if self.top_p in (None, 1) else max(self.top_p, LEAST_TOP_P)
        return SamplingTensors(
            temperature=None if self.temperature == 0 else number(self.temperature, device=drawn_on),
            top_k=self.top_k,
            top_p=None if top_p is None else number(top_p, device=drawn_on),
            log_min_p=None if self.min_p is None else number(math.log(self.min_p), device=drawn_on),
            guidance_scale=number(self.guidance_scale, device=device) if self.guided else None,
            guidance_schedule=self.guidance_schedule,
        )


@dataclass(frozen=True, kw_only=True)
class SamplingTensors:
    """A SamplingConfig as a step takes it: numbers that vary are float32 (), None where there is nothing to do."""

    temperature: Tensor | None
    top_k: int | None
    top_p: Tensor | None
    log_min_p: Tensor | None
    guidance_scale: Tensor | None
    guidance_schedule: GuidanceSchedule

    @property
    def guided(self) -> bool:
        return self.guidance_scale is not None


def warp_logits(logits: Tensor, settings: SamplingTensors) -> Tensor:
    """Temperature, then top-k, then top-p, then min-p on (B, K); what falls out is -inf. The temperature must not be 0.

    Codes that tie with the last one kept by top-k stay as well. Min-p (https://arxiv.org/abs/2407.01082) compares codes
    with the likeliest one, so it does not matter to it what the cuts before have left of the rest.
    """
    logits = logits / settings.temperature
    if settings.top_k is not None and settings.top_k < logits.shape[-1]:
        least = logits.topk(settings.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if settings.top_p is not None:
        logits = _keep_top_p(logits, settings.top_p)
    if settings.log_min_p is not None:
        least = logits.amax(dim=-1, keepdim=True) + settings.log_min_p
        logits = logits.masked_fill(logits < least, -math.inf)
    return logits


def _keep_top_p(logits: Tensor, top_p: Tensor) -> Tensor:
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    # What precedes a code decides: the code that crosses top_p stays, so that one always does.
    before = probabilities.cumsum(dim=-1) - probabilities
    return ordered.masked_fill(before >= top_p, -math.inf).gather(-1, order.argsort(dim=-1))


def guide(cond: Tensor, null: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance (https://arxiv.org/abs/2207.12598) on the logits of the captions and of no caption."""
    return null + scale * (cond - null)


def scheduled_scale(settings: SamplingTensors, index: Tensor, image_len: int) -> Tensor:
    """The guidance scale at raster position `index`, int64 (), of `image_len` tokens: float32 ().

    It goes from 1 at the first token to guidance_scale at the last, in a straight line as in Muse
    (https://arxiv.org/abs/2301.00704, section 2.7, for the sake of variety), or by half a cosine wave, slowly at both
    ends. Both are among the schedules that https://arxiv.org/abs/2404.13040 compares, on diffusion models. These follow
    the order of denoising or of certainty; here it is that of the raster, so the upper rows are guided less.
    """
    if settings.guidance_schedule == "constant" or image_len == 1:
        return settings.guidance_scale
    done = index / (image_len - 1)  # from 0 to 1
    if settings.guidance_schedule == "cosine":
        done = (1 - (math.pi * done).cos()) / 2
    return 1 + (settings.guidance_scale - 1) * done


def sample_token(logits: Tensor, noise: Tensor) -> Tensor:
    """A draw from softmax(logits) (B, K) -> int64 (B,), given Exp(1) noise (B, K)."""
    return (logits.double() - noise.log()).argmax(dim=-1)


def choose_token(logits: Tensor, seeds: Tensor, index: Tensor, image_len: int, settings: SamplingTensors) -> Tensor:
    """The image token at raster position `index`, int64 (), of `image_len`: int64 (B,), from logits (B, K).

    Where guided, logits are (2B, K): the captions' rows, then those without a caption.
    """
    if settings.guided:
        logits = guide(*logits.chunk(2), scheduled_scale(settings, index, image_len))
    if settings.temperature is None:
        return logits.argmax(dim=-1)
    device = logits.device
    if device.type in WITHOUT_FLOAT64:  # in which the noise is made and the race is run
        logits, seeds, index = logits.cpu(), seeds.cpu(), index.cpu()
    return sample_token(warp_logits(logits, settings), exponential_noise(seeds, index, logits.shape[-1])).to(device)
