"""A CLIP-like model of the built-in drawings, small enough to be trained in minutes: something to rank samples by.

Its networks, loss and words are open_clip's. The embeddings of a drawing and of its caption learn to point the same
way, those of other pairs of the batch not to (https://arxiv.org/abs/2103.00020). Every batch is drawn anew, and no
caption in it is true of another of its drawings: such a pair would be punished for being right. With `--model`, half of
each batch has gone through that bundle's image tokenizer and back, as pictures that a prior draws look like
reconstructions.

    python -m benchmarks.small_clip --out runs/demo/clip --model runs/demo/prior --minutes 4
    python evaluate.py prior --model runs/demo/prior --clip runs/demo/clip --n 8 --out report --drawings.size 40 ...

`--minutes` are of the process's processor time: with one thread those of a clock on a machine that does nothing else.
OUT gets a folder as clip_scores.py reads it and training.json, which the last line repeats. In it, `retrieval` is the
share of drawings of another seed, with and without the tokenizer, whose own caption is the nearest of a batch, and of
captions whose own drawing is.
"""

import itertools
import json
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

import cli
from benchmarks.record import circumstances, rounded
from clip_scores import CONFIG
from data.scene import COLOURS, INVERSE, SHAPES, Scene, parse_caption
from data.shapes import Drawing, ShapesConfig, draw
from data.transforms import evaluation_crop
from model_files import write_tensors
from pipeline import ImageTokenizer, TextToImage
from transformer.schedules import cosine_factor
from whole_files import write_object, written_beside

WEIGHTS, RECORD = "open_clip_model.safetensors", "training.json"  # beside CONFIG
CONTEXT = 24  # the longest caption of three objects has 19 tokens
WORDS = open_clip.SimpleTokenizer(context_length=CONTEXT)
HEAD_WIDTH, PICTURE_LAYERS, TEXT_LAYERS = 32, 3, 2
MEAN = STD = (0.5, 0.5, 0.5)  # of the pixels: from [0, 1] to [-1, 1]
BETAS, WEIGHT_DECAY, WARMUP, MIN_RATIO = (0.9, 0.98), 0.1, 0.05, 0.02  # warm-up in parts of the time
MAX_LOGIT_SCALE = 4.6052  # ln 100, as in CLIP's paper
ENDLESS = 2**62  # drawings
JUDGED = 4  # batches
COMBINATIONS = len(COLOURS) * len(SHAPES)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    tokenizer = open_tokenizer(args)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    sizes = network(args)
    model = open_clip.CLIP(**sizes).to(args.device)
    steps, loss = train(model, drawn(args, args.seed), tokenizer, args)
    print(f"{steps:,} steps of {args.batch_size}, loss {loss:.3f}")
    result = {
        "benchmark": "small_clip",
        **circumstances(args.device),
        "open_clip": open_clip.__version__,
        "settings": {name: value for name, value in vars(args).items() if name not in ("out", "model")},
        "steps": steps,
        "loss": loss,
        "retrieval": judge(model, tokenizer, args),
    }
    save(model, sizes, args.out)
    write_object(args.out / RECORD, rounded(result))
    print(f"written: {args.out}")
    print(json.dumps(rounded(result)))


def parse_args(argv: Sequence[str] | None) -> Namespace:
    parser = cli.Parser(prog="python -m benchmarks.small_clip", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--minutes", type=float, default=4, help="of training, in processor time")
    parser.add_argument(
        "--model", type=Path, help="run or bundle through whose image tokenizer half of the drawings go"
    )
    parser.add_argument("--size", type=int, default=40, help="side of the drawings in pixels")
    parser.add_argument("--patch_size", type=int, default=5, help="side of the patches in pixels")
    parser.add_argument("--max_objects", type=int, default=1, help="of a drawing")
    parser.add_argument("--backgrounds", choices=("plain", "mixed"), default="plain")
    parser.add_argument("--width", type=int, default=96, help=f"of both transformers, a multiple of {HEAD_WIDTH}")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak step size")
    parser.add_argument("--seed", type=int, default=1000, help="of drawings and weights; the next one's are judged")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    for name in ("minutes", "lr"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name} is {getattr(args, name)}, expected more than 0")
    if args.patch_size < 1 or args.size % args.patch_size:
        parser.error(f"--size is {args.size}, --patch_size {args.patch_size}, expected patches that fill the picture")
    if args.width < 1 or args.width % HEAD_WIDTH:
        parser.error(f"--width is {args.width}, expected a multiple of {HEAD_WIDTH}")
    if not 2 <= args.batch_size < COMBINATIONS:  # with more, there may be no drawing that fits the rest
        parser.error(f"--batch_size is {args.batch_size}, expected 2 to {COMBINATIONS - 1}")
    return args


def open_tokenizer(args: Namespace) -> ImageTokenizer | None:
    if args.model is None:
        return None
    tokenizer = TextToImage.from_pretrained(cli.model_folder(args.model), args.device).image_tokenizer
    if tokenizer.config.image_size != args.size:
        raise ValueError(f"--size is {args.size}, the pictures of {args.model} have {tokenizer.config.image_size}")
    return tokenizer


def network(args: Namespace) -> dict[str, Any]:
    """What open_clip is to build, in its own terms."""
    shared = {"width": args.width, "mlp_ratio": 4.0}
    picture = {"image_size": args.size, "patch_size": args.patch_size, "head_width": HEAD_WIDTH}
    words = {"context_length": CONTEXT, "vocab_size": WORDS.vocab_size, "heads": args.width // HEAD_WIDTH}
    return {
        "embed_dim": args.width,
        "vision_cfg": {**shared, **picture, "layers": PICTURE_LAYERS},
        "text_cfg": {**shared, **words, "layers": TEXT_LAYERS},
    }


# ---- drawings


def drawn(args: Namespace, seed: int) -> Iterator[list[Drawing]]:
    """Batches without end in each of which no caption is true of another drawing."""
    config = ShapesConfig(
        size=args.size,
        count=ENDLESS,
        seed=seed,
        max_objects=args.max_objects,
        held_out="include",  # who judges has to know them all
        backgrounds=args.backgrounds,
    )
    index = 0
    while True:
        batch: list[Drawing] = []
        told: list[Scene] = []
        while len(batch) < args.batch_size:
            drawing, index = draw(config, index), index + 1
            scene = parse_caption(drawing.caption)
            pairs = zip(told, batch, strict=True)
            if not any(is_true_of(scene, other.scene) or is_true_of(said, drawing.scene) for said, other in pairs):
                batch.append(drawing)
                told.append(scene)
        yield batch


def is_true_of(told: Scene, shown: Scene) -> bool:
    """Whether what a caption tells is so in a drawing that shows no two objects of one colour and shape."""
    sizes = {(item.colour, item.shape): item.size for item in shown.items}
    if sizes.keys() != {(item.colour, item.shape) for item in told.items}:
        return False
    if any(item.size not in (None, sizes[item.colour, item.shape]) for item in told.items):
        return False
    first, of_shown = told.items[0], shown.items[0]
    alike = (first.colour, first.shape) == (of_shown.colour, of_shown.shape)
    return told.relation is None or told.relation == (shown.relation if alike else INVERSE[shown.relation])


@torch.no_grad()
def reconstruct(images: Tensor, tokenizer: ImageTokenizer) -> Tensor:
    return tokenizer.decode(tokenizer.encode(images)).float()


# ---- training


def train(
    model: open_clip.CLIP, batches: Iterator[list[Drawing]], tokenizer: ImageTokenizer | None, args: Namespace
) -> tuple[int, float]:
    """Steps that there was time for, and the loss of the last one. Warm-up and cosine follow the clock."""
    matrices = [each for each in model.parameters() if each.ndim > 1]
    others = [each for each in model.parameters() if each.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=BETAS, fused=True)
    loss_of, loss, steps = open_clip.ClipLoss(), torch.tensor(float("nan")), 0
    model.train()
    start = time.process_time()
    while (share := (time.process_time() - start) / (60 * args.minutes)) < 1:
        factor = cosine_factor(round(1000 * share), round(1000 * WARMUP), total_steps=1000, min_ratio=MIN_RATIO)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * factor
        batch = next(batches)
        images, half = pictures(batch).to(args.device), len(batch) // 2
        if tokenizer is not None:
            images[:half] = reconstruct(images[:half], tokenizer)
        loss = loss_of(*model(normalise(images), words(batch).to(args.device)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        steps += 1
        if steps % 50 == 0:
            print(f"{share:4.0%} {steps:6,} steps, loss {loss.item():.3f}", flush=True)
    return steps, loss.item()


def pictures(batch: Sequence[Drawing]) -> Tensor:
    """(B, 3, H, W) in [0, 1]"""
    return torch.stack([evaluation_crop(drawing.image, drawing.image.width) for drawing in batch])


def normalise(images: Tensor) -> Tensor:
    mean, std = (images.new_tensor(each)[:, None, None] for each in (MEAN, STD))
    return (images - mean) / std


def words(batch: Sequence[Drawing]) -> Tensor:
    """int64 (B, CONTEXT)"""
    return WORDS([drawing.caption for drawing in batch])


@torch.inference_mode()
def judge(model: open_clip.CLIP, tokenizer: ImageTokenizer | None, args: Namespace) -> dict[str, dict[str, float]]:
    """Of drawings that nobody has seen, in batches: how often the own one of a caption or a drawing is the nearest."""
    model.eval()
    batches, right = drawn(args, args.seed + 1), {}
    for batch in itertools.islice(batches, JUDGED):
        seen = {"drawings": pictures(batch).to(args.device)}
        if tokenizer is not None:
            seen["reconstructions"] = reconstruct(seen["drawings"], tokenizer)
        for name, images in seen.items():
            of_images, of_texts, _ = model(normalise(images), words(batch).to(args.device))
            cosines, own = of_images @ of_texts.T, torch.arange(len(batch), device=args.device)
            found = right.setdefault(name, {"own caption": [], "own drawing": []})
            for way, dim in (("own caption", 1), ("own drawing", 0)):
                found[way].append((cosines.argmax(dim=dim) == own).double().mean().item())
    return {name: {way: sum(of) / len(of) for way, of in found.items()} for name, found in right.items()}


def save(model: open_clip.CLIP, sizes: dict[str, Any], folder: Path) -> None:
    """Both files, each beside its place and then renamed; the settings go first and come back last."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    seen_as = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    content = json.dumps({"model_cfg": sizes, "preprocess_cfg": seen_as}, indent=1) + "\n"
    with written_beside(folder / CONFIG) as settings:
        settings.write_text(content, encoding="utf-8")
        with written_beside(folder / WEIGHTS) as weights:
            write_tensors(tensors, weights, {"format": "pt"})
            (folder / CONFIG).unlink(missing_ok=True)


if __name__ == "__main__":
    cli.run(main)
