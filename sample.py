"""Pictures from captions.

    python sample.py "a red circle" "a blue star" --model runs/demo/prior --n 4 --seed 0
    python sample.py --captions captions.txt --model runs/my-prior --guidance_scale 3 --out runs/my-samples
    python sample.py --captions captions.txt --model runs/my-prior --devices 2 --out runs/my-samples
    cat captions.txt | python sample.py --model runs/my-prior
    python sample.py "a tabby cat" --model runs/my-prior --n 64 --keep 8
    python sample.py "a tabby cat" --model runs/my-prior --picture cat.jpg --keep_rows 128 --stream

Captions are arguments, or lines of a file or of standard input (-); blank ones are passed over. Picture i of a caption
is drawn with seed + i and is the same whatever else is drawn with it. In the output folder lie then the pictures, named
CAPTION_SEED_SETTINGS_MODEL.png with the settings that are not the usual ones, a grid of them (of the first 256, where
there are more), and beside the grid a JSON file that lists them. Pictures are written as they are drawn, grid and list
at the end. Each PNG's metadata say what caption, seed, settings and model it is of. Pictures that lie there already are
not drawn again, so a call that was interrupted goes on where it was; those of other calls stay.

Captions are shared out over several devices (--devices), each with all its pictures. These are the same as on one.

Of a picture (--picture) some codes can be kept and the others drawn: its first rows are kept (--keep_rows), or what is
black in a mask (--mask), or any code with the chance 1 - S (--strength S: variations). A code is drawn knowing those
before it, row by row from the top left, and none behind it. Kept codes come out as the tokenizer paints them, not as
the picture's own pixels.

Narrower weights (--weights bfloat16, int8) are read quicker, and draw slightly other pictures. With --compile a step of
drawing is compiled at the start, by a C++ compiler on a CPU.

Of many pictures the best can be kept (--n 64 --keep 8), as the prior itself ranks them or as a CLIP-like model does
(--clip FOLDER, which holds its open_clip_config.json and weights). All that were drawn then lie in OUT/candidates.

With --stream each picture is shown while it is drawn, as NAME-progress.png, and then NAME.gif lies beside it.
"""

import start_signals

if __name__ == "__main__":  # before what takes seconds to import
    start_signals.install()


import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from types import ModuleType

import torch
from PIL import Image
from tqdm import tqdm

import cli
from clip_scores import ClipScores
from completion import Original, open_original
from data.text import is_visible
from data.transforms import to_pil_images
from pipeline import Drawn, TextToImage, repeat
from previews import Previews
from ranking import CANDIDATES, keep_best, score_by_clip, score_by_prior
from resume_command import same_command
from sample_files import GRID_PICTURES, Ranking, Sample, Samples, write_grid
from sample_options import RULES, STAGES, parse
from streaming import ProgressFiles
from transformer.sampling import SamplingConfig


def sample(args: Sequence[str]) -> None:
    """What `python sample.py ARGS` does. Raises ValueError for a wrong command line or wrong input.

    With several devices, sys.argv is run once more for each but the first: it has to be the script with these ARGS.
    """
    options = parse(args, __doc__)
    config = SamplingConfig(**{field.name: getattr(options, field.name) for field in fields(SamplingConfig)})
    if options.devices > 1 and not _processes().is_first_process():
        _draw_missing(None, _load(options), options, args)
        return
    captions = read_captions(options.caption, options.captions)
    repeated, seeds = repeat(captions, options.n, options.seed)
    pipeline = _load(options)
    _report_cut(pipeline, captions)
    clip = ClipScores(options.clip, options.clip_architecture, options.device) if options.clip else None
    original = _original(pipeline, options)
    for note in original.notes if original else []:
        print(note)
    _folder(options).mkdir(parents=True, exist_ok=True)
    shared = config, pipeline.fingerprint, original.settings if original else None, options.weights
    samples = [Sample(*row, *shared) for row in zip(repeated, seeds, strict=True)]
    _draw_missing(samples, pipeline, options, args)
    ranking = None
    if options.keep is not None:
        score = score_by_prior if clip is None else score_by_clip(clip)
        kept = keep_best(samples, score, options.keep, _folder(options), options.out)
        samples, scores = [each.sample for each in kept], [each.score for each in kept]
        ranking = Ranking({**_judge(options), "keep": options.keep, "of": options.n}, scores)
    grid = write_grid(samples, options.out, ranking)
    shown = "all" if len(samples) <= GRID_PICTURES else f"the first {GRID_PICTURES}"
    best = "" if ranking is None else f"the best {options.keep} of {options.n} each: "
    counted = f"{_count(len(samples), 'picture')} of {_count(len(captions), 'caption')}"
    print(f"{best}{counted} in {options.out}, {shown} on {grid}")


def main() -> None:
    sample(sys.argv[1:])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _processes() -> ModuleType:
    import device_processes  # and Lightning with it, which takes as long as some pictures do

    return device_processes


def _folder(options: argparse.Namespace) -> Path:
    """Where pictures are drawn to."""
    return options.out if options.keep is None else options.out / CANDIDATES


def _weigh(options: argparse.Namespace) -> bool:
    """Whether pictures are drawn with their likelihoods."""
    return options.keep is not None and options.clip is None


def _judge(options: argparse.Namespace) -> dict[str, str]:
    """By what pictures are ranked, for their list."""
    architecture = {"clip_architecture": options.clip_architecture} if options.clip_architecture else {}
    return {"by": options.clip or "prior"} | architecture


def _load(options: argparse.Namespace) -> TextToImage:
    """On the device, or where there are several, on the CPU: each process moves it to its own."""
    device = options.device if options.devices == 1 else "cpu"
    return TextToImage.from_pretrained(cli.model_folder(options.model), device, options.weights, options.compile)


def _draw_missing(
    samples: Sequence[Sample] | None, pipeline: TextToImage, options: argparse.Namespace, args: Sequence[str]
) -> None:
    """Draws the samples that are not in the folder yet; None: its share of those that the first process says."""
    folder, weigh = _folder(options), _weigh(options)
    missing = samples and [sample for sample in samples if not sample.is_in(folder, weighed=weigh)]
    if samples and len(missing) < len(samples):
        print(f"{len(samples) - len(missing)} of {len(samples)} are there already", flush=True)
    if options.devices == 1:
        _draw(missing, pipeline, options)
        return

    def draw(device: torch.device, share: Samples) -> None:
        _draw(share.samples, pipeline.to(device), options, silent=samples is None)

    work = None if missing is None else Samples(missing)
    to_go_on = f"finished pictures stay; to go on: {same_command('sample.py', args)}"
    _processes().do_on_devices(work, draw, options.device, options.devices, to_go_on)


def _draw(
    samples: Sequence[Sample],
    pipeline: TextToImage,
    options: argparse.Namespace,
    silent: bool = False,
) -> None:
    """Writes each picture as soon as it is drawn."""
    if not samples:
        return
    if options.compile and not silent:
        print("the step that draws a code is being compiled, which takes a minute or two", flush=True)

    def progress(done: int, _: int) -> None:
        bar.update(done - bar.n)

    total = len(samples) * pipeline.prior.config.image_len
    whose = f"device 1 of {options.devices}" if options.devices > 1 else None
    with tqdm(desc=whose, total=total, unit=" codes", disable=silent or None) as bar:
        captions, seeds = [sample.caption for sample in samples], [sample.seed for sample in samples]
        folder, weigh = _folder(options), _weigh(options)
        files = ProgressFiles([folder / sample.name for sample in samples])
        shown = _original(pipeline, options), _previews(pipeline, options, files)
        settings = samples[0].config, options.batch_size, progress, *shown, weigh
        drawn = chain.from_iterable(map(_one_by_one, pipeline.sample_batches(captions, seeds, *settings)))
        for sample, (picture, likelihoods) in zip(samples, drawn, strict=True):
            if options.stream:  # before the picture, which then says that all is there
                files.finish(folder / sample.name, sample.metadata)
            sample.save(picture, folder, likelihoods)


def _one_by_one(drawn: Drawn) -> Iterator[tuple[Image.Image, list[float] | None]]:
    pictures = to_pil_images(drawn.pictures)
    likelihoods = [None] * len(pictures) if drawn.likelihoods is None else drawn.likelihoods.tolist()
    return zip(pictures, likelihoods, strict=True)


def _original(pipeline: TextToImage, options: argparse.Namespace) -> Original | None:
    """The picture to go on from, encoded on the pipeline's device. Raises ValueError as `open_original` does."""
    rules = {name: getattr(options, name) for name in RULES}
    return None if options.picture is None else open_original(pipeline, options.picture, **rules)


def _previews(pipeline: TextToImage, options: argparse.Namespace, files: ProgressFiles) -> Previews | None:
    usual = -(-pipeline.prior.config.grid_size[0] // STAGES)
    return Previews(files.show, options.stream_rows or usual) if options.stream else None


def read_captions(given: Sequence[str], file: str | None) -> list[str]:
    """Each caption once, its white space tidied; from standard input where none are given and something is piped there.

    Raises ValueError where there are none, or what is read is no text.
    """
    sources = list(given) + ([file] if file == "-" else [])
    if not sources and file is None and not (sys.stdin and sys.stdin.isatty()):
        sources = ["-"]
    lines = [line for source in sources for line in (_standard_input() if source == "-" else [source])]
    if file not in (None, "-"):
        lines += _lines(file)
    captions = [" ".join(line.encode("utf-8", "replace").decode().split()) for line in lines]
    captions = list(dict.fromkeys(filter(is_visible, captions)))
    if not captions:
        raise ValueError("no captions: expected some as arguments, in a file (--captions FILE) or on standard input")
    return captions


def _standard_input() -> list[str]:
    if sys.stdin is None:  # closed by who started the script
        return []
    try:
        text = sys.stdin.read()
        text.encode()  # in some locales, bytes that are no UTF-8 arrive as lone surrogates
        return text.removeprefix("\ufeff").splitlines()
    except UnicodeError as error:
        raise ValueError(f"captions on standard input are no text: {error}") from error


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise ValueError(f"no such file of captions: {file}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"captions in {file} are no UTF-8 text: {error}") from error


def _report_cut(pipeline: TextToImage, captions: Sequence[str]) -> None:
    text_len = pipeline.prior.config.text_len
    longer = pipeline.text_tokenizer.count_longer(captions, text_len)
    if longer:
        print(f"{longer} of {len(captions)} captions have more than {text_len - 1} tokens: their ends are cut off")


if __name__ == "__main__":
    cli.run(main)
