"""How good a prior is, on samples of one's own, on drawings or on encoded pictures.

Nats and bits a token of pictures and captions, what a caption tells (evaluation/nats.py), a map of where in the picture
the nats are (positions.png), where the time goes (evaluation/timing.py), and, where the captions are those of drawings,
how many samples show what their captions say (evaluation/drawn.py). As in validation, a picture counts with its first
caption and its middle square.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import cli
from clip_scores import ClipScores
from data.codes import CodesSource
from data.opening import check_drawn_large_enough, check_one_given, open_captioned
from data.samples import CaptionReader, CodesReader, PictureReader, Reader
from data.split import Keyed, spread
from evaluation.drawn import SamplePlan, judge_samples, readable
from evaluation.nats import measure, summary
from evaluation.positions import heat_map
from evaluation.prior_table import table
from evaluation.shared import REPORT, choose, loading, report_folder, write_report
from evaluation.timing import LEAST_TIMED, LayerClock, decoding_times, forward_times
from grids import save_png
from pipeline import TextToImage, fingerprint, usable_device
from transformer.sampling import SamplingConfig

MAP = "positions.png"
USUAL_SAMPLES = 64  # captions to sample from, where the checker can read them and no number is given


class _Chosen(Dataset):
    """Some rows of a source as the readers have them; nothing in them is random."""

    def __init__(self, source: Keyed, rows: Sequence[int], readers: Sequence[Reader]) -> None:
        self.source, self.rows, self.readers = source, rows, readers

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample: dict[str, Any] = {}
        for reader in self.readers:
            sample |= reader(self.rows[i], torch.Generator())
        return sample


class _Batches:
    """(text_tokens, image_tokens) of rows of a source, on the pipeline's device."""

    def __init__(self, pipeline: TextToImage, source: Keyed, options: Namespace) -> None:
        self.pipeline, self.source = pipeline, source
        self.device = next(pipeline.prior.parameters()).device
        self.settings = {"batch_size": options.batch_size, "num_workers": options.workers}
        text = CaptionReader(
            source, pipeline.text_tokenizer, pipeline.prior.config.text_len, any_caption=False, dropout=0.0
        )
        codes = isinstance(source, CodesSource)
        size = pipeline.image_tokenizer.config.image_size
        self.readers = [text, CodesReader(source, any_crop=False) if codes else PictureReader(source, size, None)]

    def __call__(self, rows: Sequence[int], label: str) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(_Chosen(self.source, rows, self.readers), **self.settings)
        for batch in tqdm(loader, label, disable=None):
            yield batch["text_tokens"].to(self.device), self._image_tokens(batch)

    @torch.no_grad()
    def _image_tokens(self, batch: dict[str, Any]) -> Tensor:
        if "images" in batch:
            return self.pipeline.image_tokenizer.encode(batch["images"].to(self.device))
        return batch["image_tokens"].to(self.device)


def evaluate_prior(options: Namespace) -> dict[str, Any]:
    """What `python evaluate.py prior` does; returns the report. Raises ValueError for wrong input."""
    check_one_given(data=options.data, drawings=options.drawings, codes=options.codes)
    plan = _sample_plan(options)
    out, device = report_folder(options.out), usable_device(options.device)
    clip = ClipScores(options.clip, options.clip_architecture, device) if options.clip else None
    pipeline = TextToImage.from_pretrained(cli.model_folder(options.model), device, options.weights, options.compile)
    check_drawn_large_enough(options.drawings, pipeline.image_tokenizer.config.image_size)
    source = open_captioned(
        options.data, options.drawings, options.codes, loading(options, out), filters=options.filters
    )
    if isinstance(source, CodesSource):
        check_made_for(source, pipeline)
    rows = choose(source, options.split, options.count, options.val_fraction)
    asked = _asked(options.samples, source, rows)
    report = _about(options, pipeline, source, rows)
    batches = _Batches(pipeline, source, options)
    report |= _teacher_forced(pipeline, batches, rows)
    if asked:
        captions = [source.captions(row)[0] for row in asked]
        image_tokens = torch.cat([of_batch for _, of_batch in batches(asked, "drawings")])
        with tqdm(total=len(asked) * plan.n * len(plan.guidance_scales), desc="sampled", disable=None) as bar:
            report["samples"] = judge_samples(pipeline, captions, image_tokens, plan, bar.update, clip)
    write_report(report, out)
    title = f"nats a token at each place, mean {report['image']['nats_per_token']['value']:.3f}"
    save_png(heat_map(np.array(report["positions"]), title), out / MAP)
    print(table(report))
    print(f"written: {out / REPORT}, {out / MAP}")
    return report


def _sample_plan(options: Namespace) -> SamplePlan:
    if options.clip is not None and options.n < 2:
        raise ValueError(f"clip is {options.clip}, to choose among pictures: n is {options.n}, expected at least 2")
    if options.samples is not None and (options.samples < 0 or options.samples == 1):
        raise ValueError(f"samples is {options.samples}, expected 0 or at least 2 captions")
    names = ("temperature", "top_k", "top_p", "min_p", "guidance_schedule")
    config = SamplingConfig(**{name: getattr(options, name) for name in names})
    return SamplePlan(
        guidance_scales=tuple(options.guidance_scale),
        n=options.n,
        seed=options.seed,
        config=config,
        batch_size=options.batch_size,
    )


def check_made_for(source: CodesSource, pipeline: TextToImage) -> None:
    """Raises ValueError for codes of another image tokenizer than the prior's, or on another grid."""
    own, grid_size = fingerprint(pipeline.image_tokenizer), tuple(pipeline.prior.config.grid_size)
    if source.fingerprint != own:
        raise ValueError(f"the codes in {source.folder} are of tokenizer {source.fingerprint}, the prior's is {own}")
    if source.grid_size != grid_size:
        raise ValueError(f"the codes in {source.folder} are on a grid {source.grid_size}, the prior's is {grid_size}")


def _asked(samples: int | None, source: Keyed, rows: list[int]) -> list[int]:
    """Rows whose captions are sampled from, evenly spread. ValueError where they have to be and cannot be judged."""
    if samples == 0:
        return []
    asked = spread(rows, USUAL_SAMPLES if samples is None else samples).tolist()
    wrong = readable(source.captions(row)[0] for row in asked)
    if wrong is None:
        return asked
    if samples is None:
        return []
    raise ValueError(f"samples of other captions than drawings' cannot be judged (expected --samples 0): {wrong}")


def _about(options: Namespace, pipeline: TextToImage, source: Keyed, rows: list[int]) -> dict[str, Any]:
    config = pipeline.prior.config
    captions = (source.captions(row)[0] for row in rows)
    return {
        "model": str(options.model),
        "fingerprint": pipeline.fingerprint,
        "data": options.data or options.codes or "drawings",
        "split": options.split,
        "pictures": len(rows),
        "image_size": pipeline.image_tokenizer.config.image_size,
        "grid_size": list(config.grid_size),
        "codebook_size": config.codebook_size,
        "text_len": config.text_len,
        "captions_cut": pipeline.text_tokenizer.count_longer(captions, config.text_len),
        "device": options.device,
        "weights": options.weights,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _teacher_forced(pipeline: TextToImage, batches: _Batches, rows: list[int]) -> dict[str, Any]:
    """Nats, positions and times."""
    prior, clock = pipeline.prior, LayerClock(pipeline.prior)
    measured = measure(prior, batches(rows, "measured"), clock)
    report = summary(measured, pipeline.image_tokenizer.config.image_size**2)
    report["forward"] = forward_times(clock, measured.seconds)
    if prior.config.image_len >= LEAST_TIMED:
        report["sampling"] = decoding_times(prior, *next(batches(rows[:1], "a token")))
    return report
