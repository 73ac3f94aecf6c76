"""Whether pictures sampled from drawings' captions show what these say, without and with guidance and reranking.

Every caption gets n pictures at each guidance scale, from the same seeds at all of them. All are judged; the best of n
is the one of which the caption tells most by the prior itself (transformer/likelihood.py). The drawings themselves,
through the image tokenizer and back, are judged alike: what the tokenizer loses, no prior can draw.

Legend: S captions, n pictures of each, h w token grid.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from data.checker import Verdict, check, score
from data.scene import parse_caption
from metrics import Interval, ratio_interval
from pipeline import TextToImage
from transformer.decoding import generate
from transformer.likelihood import caption_gain
from transformer.sampling import SamplingConfig

OF_ITEMS = ("colour", "shape", "size", "colour_and_shape")  # fractions of objects, not of pictures


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """How pictures are sampled to be judged. Raises ValueError for values outside their ranges.

    Attributes:
        guidance_scales: one or more, each once.
        n: pictures a caption.
        seed: of the first picture of the first caption; each has the next one.
        config: all else.
        batch_size: pictures at a time.
    """

    guidance_scales: tuple[float, ...]
    n: int = 1
    seed: int = 0
    config: SamplingConfig = SamplingConfig()  # noqa: RUF009 (frozen)
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch_size < 1:
            raise ValueError(f"n is {self.n}, batch_size {self.batch_size}, expected at least 1 each")
        if not self.guidance_scales or len(set(self.guidance_scales)) < len(self.guidance_scales):
            raise ValueError(f"guidance_scale is {list(self.guidance_scales)}, expected at least one, each once")
        if not 0 <= self.seed < 2**62:
            raise ValueError(f"seed is {self.seed}, expected 0 to {2**62 - 1}")
        for scale in self.guidance_scales:
            replace(self.config, guidance_scale=scale)


def readable(captions: Iterable[str]) -> str | None:
    """None where the checker can read all captions, else what is wrong with the first that it cannot."""
    for caption in captions:
        try:
            parse_caption(caption)
        except ValueError as error:
            return str(error)
    return None


def judge_samples(
    pipeline: TextToImage,
    captions: Sequence[str],
    image_tokens: Tensor,
    plan: SamplePlan,
    progress: Callable[[int], None] = lambda pictures: None,
) -> dict[str, Any]:
    """Fractions that are right, with intervals over the captions.

    Args:
        captions: S at least 2, all readable.
        image_tokens: (S, h, w), of the true pictures, on the pipeline's device.
        progress: called with a number of pictures that are done.
    """
    rows = []
    for scale in plan.guidance_scales:
        config = replace(plan.config, guidance_scale=scale)
        verdicts, gains = _drawn(pipeline, captions, plan, config, progress)
        rows.append({"guidance_scale": scale, "all": right(verdicts)})
        if plan.n > 1:
            best = gains.argmax(dim=1).tolist()
            rows[-1]["reranked"] = right([[of[i]] for of, i in zip(verdicts, best, strict=True)])
    settings = asdict(plan.config)
    del settings["guidance_scale"]
    return {
        "captions": len(captions),
        "n": plan.n,
        "seed": plan.seed,
        "settings": settings,
        "reconstructions": right([[verdict] for verdict in _check(pipeline, image_tokens, captions)]),
        "sampled": rows,
    }


@torch.inference_mode()
def _drawn(
    pipeline: TextToImage,
    captions: Sequence[str],
    plan: SamplePlan,
    config: SamplingConfig,
    progress: Callable[[int], None],
) -> tuple[list[list[Verdict]], Tensor]:
    """n verdicts a caption, and what each caption tells about each of its pictures (S, n), nats."""
    n = plan.n
    repeated = [caption for caption in captions for _ in range(n)]
    text_tokens = pipeline.text_tokens(repeated)
    seeds = torch.arange(plan.seed, plan.seed + len(repeated))
    verdicts: list[Verdict] = []
    gains: list[Tensor] = []
    for start in range(0, len(repeated), plan.batch_size):
        chunk = slice(start, start + plan.batch_size)
        indices = generate(pipeline.prior, text_tokens[chunk], seeds=seeds[chunk], config=config)
        if n > 1:
            gains.append(caption_gain(pipeline.prior, text_tokens[chunk], indices).cpu())
        verdicts += _check(pipeline, indices, repeated[chunk])
        progress(len(indices))
    by_caption = [verdicts[i : i + n] for i in range(0, len(verdicts), n)]
    return by_caption, torch.cat(gains).view(-1, n) if gains else torch.zeros(len(captions), 1)


@torch.inference_mode()
def _check(pipeline: TextToImage, indices: Tensor, captions: Sequence[str]) -> list[Verdict]:
    # One at a time, as the pipeline decodes them.
    pictures = (pipeline.image_tokenizer.decode(picture[None])[0] for picture in indices)
    return [check(picture.float().cpu(), caption) for picture, caption in zip(pictures, captions, strict=True)]


def right(verdicts: Sequence[Sequence[Verdict]]) -> dict[str, dict[str, float]]:
    """What `data.checker.score` says of all verdicts, with intervals: captions are resampled, each with its pictures.

    Fractions of nothing are left out.
    """
    scores = [score(of_caption) for of_caption in verdicts]
    fractions = {}
    for name in scores[0]:
        of_caption = torch.tensor([each[name] for each in scores], dtype=torch.float64)
        judged = torch.tensor([len(of) * (len(of[0].items) if name in OF_ITEMS else 1) for of in verdicts])
        judged = judged.masked_fill(of_caption.isnan(), 0)
        if judged.any():
            interval: Interval = ratio_interval(of_caption.nan_to_num() * judged, judged)
            fractions[name] = interval._asdict()
    return fractions
