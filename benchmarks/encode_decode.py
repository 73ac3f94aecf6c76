"""How much faster than OpenAI's modules are encoding and decoding, with the same weights and the same codes?

    python -m benchmarks.encode_decode                      # the paper's size, 256x256 pictures
    python -m benchmarks.encode_decode --quick              # seconds: that it runs; says nothing about speed

OpenAI's modules are those of their package (`pip install --no-deps dall-e`) at their own settings, with random weights;
ours gets the same. Codes are held against each other first: where they differ, it has to be a near tie of two logits.
Both run in turn, in float32 and, ours alone, in bfloat16 by autocast, whose codes are counted but not held to anything.
All of it twice, in processes of their own: with memory as it comes, and with freed memory kept, as our scripts have it
(`cli.keep_freed_memory`). Medians after a warm-up; the last line is JSON, and `--out` writes the same to a file.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peers import import_peer
from benchmarks.record import circumstances, hardware, rounded
from benchmarks.timing import make_clock, time_in_turn
from cli import keep_freed_memory
from vqvae.config import DiscreteVAEConfig
from vqvae.model import DiscreteVAE
from whole_files import write_object

NEAR_TIE = 1e-4  # of logits of about unit size: float32's rounding through some thirty layers
EQUAL_CODES = 0.9999
GOAL = 2.0
MEMORY = ("as it comes", "kept")


class OpenAIs(nn.Module):
    """Their encoder and decoder, used as their notebook does."""

    def __init__(self, n_hid: int, codebook_size: int) -> None:
        super().__init__()
        encoder, decoder, utils = (
            import_peer(f"dall_e.{part}", unused=("requests",)) for part in ("encoder", "decoder", "utils")
        )
        sizes = {"n_hid": n_hid, "vocab_size": codebook_size, "use_mixed_precision": False}
        self.encoder = encoder.Encoder(**sizes)
        self.decoder = decoder.Decoder(n_init=128, **sizes)
        self.utils = utils
        self.codebook_size = codebook_size

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder(self.utils.map_pixels(images)).argmax(dim=1)

    def decode(self, indices: Tensor) -> Tensor:
        codes = nn.functional.one_hot(indices, num_classes=self.codebook_size).permute(0, 3, 1, 2).float()
        return self.utils.unmap_pixels(torch.sigmoid(self.decoder(codes)[:, :3]))


def ours_like(theirs: OpenAIs, n_hid: int, codebook_size: int) -> DiscreteVAE:
    model = DiscreteVAE(DiscreteVAEConfig(n_hid=n_hid, codebook_size=codebook_size)).eval()
    renamed = {
        f"{part}.{name.removesuffix('.w')}.weight"
        if name.endswith(".w")
        else f"{part}.{name.removesuffix('.b')}.bias": x
        for part in ("encoder", "decoder")
        for name, x in getattr(theirs, part).state_dict().items()
    }
    model.load_state_dict(renamed)
    return model


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    print(f"{hardware('cpu')}, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}")
    rows, context = [], multiprocessing.get_context("spawn")
    for memory in MEMORY:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            equal, ms = pool.submit(measure, args, memory == "kept").result()
        rows += [{"memory": memory, "task": task, "ms": of} for task, of in ms.items()]
    as_it_comes = {row["task"]: row["ms"]["theirs"] for row in rows if row["memory"] == "as it comes"}
    for row in rows:
        row["times theirs"] = {who: row["ms"]["theirs"] / ms for who, ms in row["ms"].items()}
        row["times theirs as it comes"] = {who: as_it_comes[row["task"]] / ms for who, ms in row["ms"].items()}
        print(line(row))
    print(f"equal codes: {equal['float32']:.4%} (goal {EQUAL_CODES:.2%}); in bfloat16 {equal['bfloat16']:.2%}")
    for beside in ("times theirs", "times theirs as it comes"):
        least = min(row[beside]["ours"] for row in rows if row["memory"] == "kept")
        met = "met" if least >= GOAL else "missed"
        print(f"goal of {GOAL}x in float32, {beside}: {met}, {least:.2f}x" + ", but --quick is no measure" * args.quick)
    settings = {name: getattr(args, name) for name in ("n_hid", "codes", "image_size", "batch", "repeats", "clock")}
    result = {"benchmark": "encode_decode", **circumstances("cpu"), "settings": settings, "equal": equal, "rows": rows}
    if args.out is not None:
        write_object(args.out, rounded(result))
    print(json.dumps(rounded(result)))


def line(row: dict[str, Any]) -> str:
    times, as_it_comes = row["times theirs"], row["times theirs as it comes"]
    text = f"{row['task']}, memory {row['memory']}:  "
    return text + ",  ".join(
        f"{who} {ms:.0f} ms ({times[who]:.2f}x, {as_it_comes[who]:.2f}x as it comes)" for who, ms in row["ms"].items()
    )


def measure(args: argparse.Namespace, keep: bool) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Shares of equal codes by precision, and milliseconds by task and contestant, in the process that calls."""
    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    clock = make_clock(args.clock, "cpu")
    theirs = OpenAIs(args.n_hid, args.codes).eval()
    ours = ours_like(theirs, args.n_hid, args.codes)
    half = In16Bits(ours_like(theirs, args.n_hid, args.codes))
    images = torch.rand(args.batch, 3, args.image_size, args.image_size)
    images = nn.functional.avg_pool2d(images, 9, 1, 4)
    with torch.inference_mode():
        equal = check(theirs, ours, half, images)
        indices = theirs.encode(images)
        of = {"theirs": theirs, "ours": ours, "ours, bfloat16": half}
        encoding = {who: (lambda model=model: model.encode(images)) for who, model in of.items()}
        decoding = {who: (lambda model=model: model.decode(indices)) for who, model in of.items()}
        ms = {
            task: {who: timing.ms for who, timing in time_in_turn(runs, clock, repeats=args.repeats).items()}
            for task, runs in {"encode": encoding, "decode": decoding}.items()
        }
    return equal, ms


class In16Bits:
    """Ours by autocast to bfloat16, channels last."""

    def __init__(self, model: DiscreteVAE) -> None:
        self.model = model.to(memory_format=torch.channels_last)

    def encode(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.model.encode(images.contiguous(memory_format=torch.channels_last))

    def decode(self, indices: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.model.decode(indices)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encode_decode", description=__doc__.splitlines()[0])
    parser.add_argument("--n-hid", type=int, default=256)
    parser.add_argument("--codes", type=int, default=8192)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--quick", action="store_true", help="a small network: no measure of speed")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    if args.quick:
        args.n_hid, args.codes, args.image_size, args.repeats = 64, 512, 32, 1
    return args


def check(theirs: OpenAIs, ours: DiscreteVAE, half: In16Bits, images: Tensor) -> dict[str, float]:
    """Shares of equal codes; exits where codes differ that are no near tie, or pictures differ."""
    expected, found = theirs.encode(images), ours.encode(images)
    logits = theirs.encoder(theirs.utils.map_pixels(images))
    chosen, best = (logits.gather(1, indices[:, None]) for indices in (found, expected))
    if (best - chosen).max() > NEAR_TIE * logits.abs().max():
        sys.exit("codes differ that are no near tie; nothing is timed")
    if (ours.decode(expected) - theirs.decode(expected)).abs().max() > 1e-4:
        sys.exit("pictures differ; nothing is timed")
    return {
        "float32": (found == expected).double().mean().item(),
        "bfloat16": (half.encode(images) == expected).double().mean().item(),
    }


if __name__ == "__main__":
    main()
