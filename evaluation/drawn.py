"""Whether pictures sampled from drawings' captions show what these say, without and with guidance and reranking.

Every caption gets n pictures at each guidance scale, from the same seeds at all of them. All are judged, and the best
of 2, of 4 and so on up to n, as the prior itself ranks them (transformer/likelihood.py) and as a CLIP-like model does,
where there is one. The drawings themselves, through the image tokenizer and back, are judged alike: what the tokenizer
loses, no prior can draw.

Legend: S captions, n pictures of each, h w token grid.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clip_scores import ClipScores
from data.checker import Verdict, check, score
from data.scene import parse_caption
from data.transforms import to_pil_images
from metrics import Interval, ratio_interval
from pipeline import TextToImage
from transformer.likelihood import prior_score
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
        if not -(2**63) <= self.seed < 2**62:  # above, those of later pictures might have more than 64 bits
            raise ValueError(f"seed is {self.seed}, expected {-(2**63)} to {2**62 - 1}")
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
    clip: ClipScores | None = None,
) -> dict[str, Any]:
    """Fractions that are right, with intervals over the captions.

    Args:
        captions: S at least 2, all readable.
        image_tokens: (S, h, w), of the true pictures, on the pipeline's device.
        progress: called with a number of pictures that are done.
        clip: what ranks them besides the prior.
    """
    rows = []
    for scale in plan.guidance_scales:
        config = replace(plan.config, guidance_scale=scale)
        verdicts, scores = _drawn(pipeline, captions, plan, config, progress, clip)
        rows.append({"guidance_scale": scale, "all": right(verdicts)})
        if plan.n > 1:
            rows[-1]["best"] = {by: _of_the_best(verdicts, of_pictures) for by, of_pictures in scores.items()}
    with torch.inference_mode():
        reconstructions = _pictures(pipeline, image_tokens)
    settings = asdict(plan.config)
    del settings["guidance_scale"]
    return {
        "captions": len(captions),
        "n": plan.n,
        "seed": plan.seed,
        "settings": settings,
        "reconstructions": right([[verdict] for verdict in _check(reconstructions, captions)]),
        "sampled": rows,
    }


def _of_the_best(verdicts: Sequence[Sequence[Verdict]], scores: Tensor) -> dict[str, dict[str, dict[str, float]]]:
    """By the number of pictures among which the best by scores (S, n) is taken, from all groups of so many."""
    n = scores.shape[1]
    found = {}
    for among in sorted({2**power for power in range(1, n.bit_length())} | {n}):
        groups = scores[:, : n - n % among].unflatten(1, (-1, among))  # (S, n // among, among)
        best = groups.argmax(dim=2) + among * torch.arange(groups.shape[1])
        chosen = [[of_caption[i] for i in row] for of_caption, row in zip(verdicts, best.tolist(), strict=True)]
        found[str(among)] = right(chosen)
    return found


@torch.inference_mode()
def _drawn(
    pipeline: TextToImage,
    captions: Sequence[str],
    plan: SamplePlan,
    config: SamplingConfig,
    progress: Callable[[int], None],
    clip: ClipScores | None,
) -> tuple[list[list[Verdict]], dict[str, Tensor]]:
    """n verdicts a caption, and by who ranks them, scores (S, n)."""
    n = plan.n
    repeated = [caption for caption in captions for _ in range(n)]
    seeds = range(plan.seed, plan.seed + len(repeated))
    verdicts: list[Verdict] = []
    scores: dict[str, list[Tensor]] = {}
    for batch in pipeline.sample_batches(repeated, seeds, config, plan.batch_size, weigh=n > 1):
        pictures = batch.pictures.float().cpu()
        of_batch = repeated[len(verdicts) : len(verdicts) + len(pictures)]
        verdicts += _check(pictures, of_batch)
        if batch.likelihoods is not None:
            scores.setdefault("prior", []).append(prior_score(batch.likelihoods))
            if clip is not None:
                pairs = zip(of_batch, to_pil_images(pictures), strict=True)
                scores.setdefault("clip", []).extend(clip(caption, [picture]) for caption, picture in pairs)
        progress(len(pictures))
    by_caption = [verdicts[i : i + n] for i in range(0, len(verdicts), n)]
    return by_caption, {by: torch.cat(of_batches).view(-1, n) for by, of_batches in scores.items()}


def _pictures(pipeline: TextToImage, indices: Tensor) -> Tensor:
    """(N, 3, H, W) float32 on the CPU; one at a time, as the pipeline decodes them."""
    return torch.cat([pipeline.image_tokenizer.decode(picture[None]).float().cpu() for picture in indices])


def _check(pictures: Tensor, captions: Sequence[str]) -> list[Verdict]:
    return [check(picture, caption) for picture, caption in zip(pictures, captions, strict=True)]


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
