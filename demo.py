"""The whole path in minutes: train a tokenizer and a prior on drawings, sample pictures from captions, judge them.

    make demo

Everything goes through the scripts and files that your own pictures would go through; only the judge, which reads
colour, shape, size and relation off a picture, belongs to the drawings. All of it lies in runs/demo. What is there
already is not made again, so a demo that was interrupted goes on with the part that it had not finished; parts that
were made with other drawings or settings are refused.
"""

import start_signals

if __name__ == "__main__":  # before what takes seconds to import
    start_signals.install()


import hashlib
import io
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import cli
from config_files import CONFIGS
from data.checker import check, score
from data.shapes import Drawing, ShapesConfig, ShapesSource, draw
from data.transforms import evaluation_crop
from encoding import EncodeConfig, encode_source
from grids import captioned_grid, reconstruction_grid, save_png
from pipeline import TextToImage, to_pil_images
from precision import default_precision
from train import be_quiet, train
from transformer.sampling import SamplingConfig
from vqvae.folders import load_image_tokenizer
from whole_files import read_object, write_object

RUN = Path("runs/demo")
TOKENIZER, CODES, PRIOR, TRIAL = RUN / "tokenizer", RUN / "codes", RUN / "prior", RUN / "trial"
RECONSTRUCTIONS, SAMPLES, REPORT = RUN / "reconstructions.png", RUN / "samples.png", RUN / "report.json"
RECIPE, SECONDS = RUN / "recipe.json", RUN / "seconds.json"  # what the parts are made of; how long each took

DRAWINGS = ShapesConfig(size=40, count=30_000, max_objects=1, backgrounds="plain")
JUDGED = 128  # pictures of each kind
FRESH = replace(DRAWINGS, seed=11, count=JUDGED)  # settings are chosen on other seeds
HELD_OUT = replace(FRESH, seed=12, held_out="only")
SAMPLING = SamplingConfig(top_p=0.9, guidance_scale=2.0)
SHOWN = 16  # pictures of each kind in a grid

TOLD = {"colour": "colour", "shape": "shape", "size": "size", "relation": "relation", "correct": "all of it"}

# Updates that the models get, and seconds after the demo's start by which the training of each should be over; what is
# left of 10 minutes is for sampling, and for a machine that becomes slower. A slow machine makes fewer updates, but not
# less than a third: below that nothing is learnt, and a machine that is busy just during the trials would look slow.
TOKENIZER_STEPS, TOKENIZER_END = 2400, 160
PRIOR_STEPS, PRIOR_END = 2900, 490
VALIDATIONS = 4  # in each training
TRIALS = (10, 60)  # updates of the short trainings that tell how long one takes


def main(argv: Sequence[str] | None = None) -> None:
    cli.Parser(prog="python demo.py", description=__doc__.splitlines()[0]).parse_args(argv)  # there is nothing to set
    be_quiet()
    if REPORT.is_file():
        print(f"The demo has been run. {where_it_lies()}\nTo run it again: rm -r {RUN} && make demo")
        return
    begin()
    figures: dict[str, Any] = {}

    headline(1, "training a tokenizer: pictures of 40x40 pixels become 10x10 codes out of 1024, and pictures again")
    figures["tokenizer"] = timed("tokenizer", train_tokenizer)
    headline(2, f"encoding {len(ShapesSource(DRAWINGS)):,} captioned drawings")
    timed("codes", encode_drawings)
    headline(3, "training a prior: a transformer that reads a caption and writes codes")
    figures["prior"] = timed("prior", train_prior)
    headline(4, f"sampling a picture for each of {JUDGED} captions and of {JUDGED} with unseen combinations")
    figures |= timed("samples", sample_and_judge)

    seconds = seconds_of_stages()
    seconds["all"] = sum(seconds.values())
    write_report(figures | {"seconds": {name: round(value, 1) for name, value in seconds.items()}})
    print(in_plain_words(figures, seconds["all"]))


def begin() -> None:
    """Makes the folder. Raises ValueError where it holds parts of other drawings or settings than these."""
    recipe = {
        "drawings": asdict(DRAWINGS),
        # The pictures themselves too: what draws them may have changed.
        "pictures": digest(b"".join(draw(DRAWINGS, index).image.tobytes() for index in range(64))),
        "tokenizer": digest((CONFIGS / "tokenizer" / "demo.yaml").read_bytes()),
        "prior": digest((CONFIGS / "prior" / "demo.yaml").read_bytes()),
    }
    if not RECIPE.is_file() and RUN.is_dir() and any(RUN.iterdir()):
        raise ValueError(f"{RUN} holds files of unknown origin; to begin anew: rm -r {RUN} && make demo")
    if RECIPE.is_file() and read_object(RECIPE) != recipe:
        raise ValueError(f"{RUN} was begun with other drawings or settings; to begin anew: rm -r {RUN} && make demo")
    RUN.mkdir(parents=True, exist_ok=True)
    write_object(RECIPE, recipe)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def headline(number: int, text: str) -> None:
    print(f"\n{number}/4  {text}", flush=True)


def timed(name: str, stage: Callable[[], Any]) -> Any:
    """Runs a stage and adds its seconds to those of earlier calls: a part that is there already took them then."""
    start = time.perf_counter()
    result = stage()
    seconds = seconds_of_stages()
    write_object(SECONDS, seconds | {name: seconds.get(name, 0.0) + time.perf_counter() - start})
    return result


def seconds_of_stages() -> dict[str, float]:
    return read_object(SECONDS) if SECONDS.is_file() else {}


# ---- the four stages


def train_tokenizer() -> dict[str, float]:
    data = ["--data.image_size", str(DRAWINGS.size)]
    for name, value in asdict(DRAWINGS).items():
        data += [f"--data.drawings.{name}", str(value)]
    return train_once("tokenizer", TOKENIZER, data, TOKENIZER_STEPS, TOKENIZER_END)


def encode_drawings() -> None:
    source, image_tokenizer = ShapesSource(DRAWINGS), load_image_tokenizer(cli.model_folder(TOKENIZER))
    with tqdm(total=len(source), unit=" drawings", disable=None) as bar:
        encode_source(source, image_tokenizer, CODES, EncodeConfig(batch_size=64), progress=bar.update)


def train_prior() -> dict[str, float]:
    data = ["--tokenizer", str(TOKENIZER), "--data.codes", str(CODES)]
    return train_once("prior", PRIOR, data, PRIOR_STEPS, PRIOR_END)


def sample_and_judge() -> dict[str, Any]:
    """Scores of samples and of reconstructions, by kind of caption; writes both grids."""
    pipeline = TextToImage.from_pretrained(cli.model_folder(PRIOR))
    figures: dict[str, Any] = {"samples": {}, "reconstructions": {}}
    shown_samples, shown_drawings, shown_recons = [], [], []
    for kind, config in (("fresh", FRESH), ("held_out", HELD_OUT)):
        drawings = [draw(config, index) for index in range(JUDGED)]
        samples = sample(pipeline, [drawing.caption for drawing in drawings])
        recons = reconstruct(pipeline, drawings)
        figures["samples"][kind] = judge(samples, [drawing.caption for drawing in drawings])
        figures["reconstructions"][kind] = judge(recons, [drawing.caption for drawing in drawings])
        pairs = zip(drawings[:SHOWN], to_pil_images(samples[:SHOWN]), strict=True)
        shown_samples += [(drawing.caption, [picture]) for drawing, picture in pairs]
        shown_drawings += [drawing.image for drawing in drawings[:SHOWN]]
        shown_recons += to_pil_images(recons[:SHOWN])
    save_png(captioned_grid(shown_samples), SAMPLES)
    save_png(reconstruction_grid(shown_drawings, shown_recons), RECONSTRUCTIONS)
    return figures


def sample(pipeline: TextToImage, captions: Sequence[str]) -> Tensor:
    with tqdm(total=len(captions) * pipeline.prior.config.image_len, unit=" codes", disable=None) as bar:
        return pipeline.sample(
            captions,
            seeds=range(len(captions)),
            config=SAMPLING,
            batch_size=64,
            progress=lambda done, _: bar.update(done - bar.n),
        )


def reconstruct(pipeline: TextToImage, drawings: Sequence[Drawing]) -> Tensor:
    images = torch.stack([evaluation_crop(drawing.image, DRAWINGS.size) for drawing in drawings])
    return pipeline.image_tokenizer.decode(pipeline.image_tokenizer.encode(images))


def judge(pictures: Tensor, captions: Sequence[str]) -> dict[str, float]:
    verdicts = [check(picture, caption) for picture, caption in zip(pictures, captions, strict=True)]
    scores = score(verdicts)
    return {name: round(value, 4) for name, value in scores.items() if not math.isnan(value)}  # NaN: nothing to judge


# ---- training within a time


def train_once(kind: str, run: Path, args: Sequence[str], most: int, end: float) -> dict[str, float]:
    """Trains a model unless it is there already; the last measured values of its validation."""
    summary = run / "summary.json"
    if not summary.is_file():
        shutil.rmtree(run, ignore_errors=True)
        earlier = ("tokenizer", "codes") if kind == "prior" else ()  # not this one, should it be made again
        spent = sum(seconds_of_stages().get(name, 0.0) for name in earlier)
        steps = affordable_steps(kind, args, most, end - spent)
        metrics = train(kind, arguments(args, run, steps))
        figures = {"steps": steps} | {name: round(value, 4) for name, value in metrics.items() if "val/" in name}
        write_object(summary, figures)
    return read_object(summary)


def affordable_steps(kind: str, args: Sequence[str], most: int, seconds: float) -> int:
    """How many updates fit into the time: two short trials, whose difference leaves out what starting costs."""
    start, took = time.perf_counter(), []
    for steps in TRIALS:
        shutil.rmtree(TRIAL, ignore_errors=True)
        before = time.perf_counter()
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            train(kind, [*arguments(args, TRIAL, steps), "--trainer.limit_val_batches", "0"])
        took.append(time.perf_counter() - before)
    shutil.rmtree(TRIAL)
    a_step = max(took[1] - took[0], 1e-3) / (TRIALS[1] - TRIALS[0])
    left = seconds - (time.perf_counter() - start)
    steps = min(most, max(most // 3, int(left / a_step))) // VALIDATIONS * VALIDATIONS
    print(f"{steps} updates, {1000 * a_step:.0f} ms each: about {steps * a_step / 60:.1f} minutes", flush=True)
    return steps


def arguments(args: Sequence[str], run: Path, steps: int) -> list[str]:
    times = {"max_steps": steps, "val_check_interval": steps // VALIDATIONS}  # the last one when all is learnt
    return ["fit", "--config", "demo", *args, "--run", str(run), *(f"--trainer.{k}={v}" for k, v in times.items())]


# ---- what is told at the end


def write_report(figures: dict[str, Any]) -> None:
    report = figures | {
        "drawings": asdict(DRAWINGS),
        "sampling": asdict(SAMPLING),
        "judged": {"fresh": JUDGED, "held_out": JUDGED},
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "precision": default_precision("auto"),
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }
    write_object(REPORT, report)


def where_it_lies() -> str:
    return (
        f"It lies in {RUN}:\n"
        f"  {SAMPLES.name:22} pictures for captions; the lower half: pairs of colour and shape unseen in training\n"
        f"  {RECONSTRUCTIONS.name:22} drawings, and below each what is left of it after its 100 codes\n"
        f"  {REPORT.name:22} all figures\n"
        "  tokenizer/model        the image tokenizer\n"
        "  prior/model            the bundle to sample from"
    )


def in_plain_words(figures: dict[str, Any], seconds: float) -> str:
    """The figures of a run, for people."""

    samples, recons = figures["samples"], figures["reconstructions"]
    names = [name for name in TOLD if name in samples["fresh"]]

    def row(title: str, scores: dict[str, float]) -> str:
        return f"  {title:46}" + "".join(f"{100 * scores[name]:8.1f} %" for name in names)

    lines = [
        f"\nDone in {seconds / 60:.1f} minutes. {where_it_lies()}",
        f"\nThe judge read {JUDGED} pictures of each kind. Right are:",
        f"  {'':46}" + "".join(f"{TOLD[name]:>10}" for name in names),
        row("pictures for captions like those of training", samples["fresh"]),
        row("pictures for unseen pairs of colour and shape", samples["held_out"]),
        row("true drawings after the tokenizer, like these", recons["fresh"]),
        row("true drawings after the tokenizer, unseen pairs", recons["held_out"]),
        "The last two rows are the ceiling: what the tokenizer loses, no prior can draw.",
        "\nNext, pictures for captions of your own:",
        f'  {sys.executable} sample.py "a large red star" --model {PRIOR} --n 4'
        f" --guidance_scale {SAMPLING.guidance_scale} --top_p {SAMPLING.top_p}",
        "and models of your own pictures: see README.md.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
