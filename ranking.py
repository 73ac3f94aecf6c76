"""The best of many pictures: all that are drawn lie in a folder of candidates, and the best of each caption are copied.

So an interrupted call goes on, more candidates join those that are there, and another ranking draws nothing anew.
"""

import shutil
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from clip_scores import ClipScores
from sample_files import Sample
from transformer.likelihood import prior_score
from whole_files import written_beside

CANDIDATES = "candidates"

Score = Callable[[Sequence[Sample], Path], Tensor]
"""Of samples of one caption whose files lie in a folder: (N,), the higher the better."""


class Kept(NamedTuple):
    sample: Sample
    score: float


def keep_best(samples: Sequence[Sample], score: Score, keep: int, candidates: Path, out: Path) -> list[Kept]:
    """Copies the files of the `keep` best of each caption from one folder to another, whole or not at all.

    Returns them, best first, caption by caption. Those of a caption have to follow one another.
    """
    kept = []
    for _, group in groupby(samples, key=lambda sample: sample.caption):
        of_caption = list(group)
        scores = score(of_caption, candidates)
        best = scores.argsort(descending=True, stable=True)[:keep].tolist()
        kept += [Kept(of_caption[i], float(scores[i])) for i in best]
    for sample, _ in kept:
        with written_beside(out / sample.name) as part:
            shutil.copyfile(candidates / sample.name, part)
    return kept


def score_by_prior(samples: Sequence[Sample], folder: Path) -> Tensor:
    """By the likelihoods that files were saved with."""
    return prior_score(torch.tensor([sample.likelihoods(folder) for sample in samples]))


def score_by_clip(clip: ClipScores) -> Score:
    def score(samples: Sequence[Sample], folder: Path) -> Tensor:
        pictures = []
        for sample in samples:
            with Image.open(folder / sample.name) as picture:
                pictures.append(picture.convert("RGB"))
        return clip(samples[0].caption, pictures)

    return score
