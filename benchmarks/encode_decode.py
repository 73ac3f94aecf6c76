"""How much faster than OpenAI's modules are encoding and decoding, with the same weights and the same codes?

    python -m benchmarks.encode_decode                      # the paper's size, 256x256 pictures
    python -m benchmarks.encode_decode --quick              # seconds: that it runs; says nothing about speed

OpenAI's modules are those of their package (`pip install --no-deps dall-e`) at their own settings, with random weights;
ours gets the same. Codes are held against each other first: where they differ, it has to be a near tie of two logits.
Both run in turn, in float32 and, ours alone, in bfloat16 by autocast, whose codes are counted but not held to anything.
Medians after a warm-up; the last line is JSON, and `--out` writes the same to a file.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peers import import_peer
from benchmarks.record import circumstances, hardware, rounded, write_json
from benchmarks.timing import make_clock, time_in_turn
from vqvae.config import DiscreteVAEConfig
from vqvae.model import DiscreteVAE

NEAR_TIE = 1e-4  # of logits of about unit size: float32's rounding through some thirty layers
EQUAL_CODES = 0.9999
GOAL = 2.0


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
    return model.to(memory_format=torch.channels_last)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.manual_seed(0)
    clock = make_clock(args.clock, "cpu")
    print(f"{hardware('cpu')}, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}")
    theirs = OpenAIs(args.n_hid, args.codes).eval()
    ours = ours_like(theirs, args.n_hid, args.codes)
    images = torch.rand(args.batch, 3, args.image_size, args.image_size)
    images = nn.functional.avg_pool2d(images, 9, 1, 4)
    last = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        equal = check(theirs, ours, images, last)
        indices = theirs.encode(images)
        runs = {
            "encode": {"theirs": lambda: theirs.encode(images), "ours": lambda: ours.encode(last)},
            "decode": {"theirs": lambda: theirs.decode(indices), "ours": lambda: ours.decode(indices)},
        }
        rows = []
        for name, of in runs.items():
            of["ours, bfloat16"] = lambda run=of["ours"]: _in_bf16(run)
            timings = time_in_turn(of, clock, repeats=args.repeats)
            ratios = {who: timings["theirs"].ms / timing.ms for who, timing in timings.items()}
            rows.append({"task": name, "ms": {who: t.ms for who, t in timings.items()}, "times theirs": ratios})
            print(f"{name:<8}" + "".join(f"  {who} {t.ms:.0f} ms ({ratios[who]:.2f}x)" for who, t in timings.items()))
    print(f"equal codes: {equal['float32']:.4%} (goal {EQUAL_CODES:.2%}); in bfloat16 {equal['bfloat16']:.2%}")
    met = all(row["times theirs"]["ours"] >= GOAL for row in rows)
    print(f"goal of {GOAL}x in float32: {'met' if met else 'missed'}" + ", but --quick is no measure" * args.quick)
    settings = {name: getattr(args, name) for name in ("n_hid", "codes", "image_size", "batch", "repeats", "clock")}
    result = {"benchmark": "encode_decode", **circumstances("cpu"), "settings": settings, "equal": equal, "rows": rows}
    if args.out is not None:
        write_json(args.out, rounded(result))
    print(json.dumps(rounded(result)))


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


def check(theirs: OpenAIs, ours: DiscreteVAE, images: Tensor, last: Tensor) -> dict[str, Any]:
    """Shares of equal codes; exits where codes differ that are no near tie, or pictures differ."""
    expected, found = theirs.encode(images), ours.encode(last)
    logits = theirs.encoder(theirs.utils.map_pixels(images))
    chosen, best = (logits.gather(1, indices[:, None]) for indices in (found, expected))
    if (best - chosen).max() > NEAR_TIE * logits.abs().max():
        sys.exit("codes differ that are no near tie; nothing is timed")
    if (ours.decode(expected) - theirs.decode(expected)).abs().max() > 1e-4:
        sys.exit("pictures differ; nothing is timed")
    half = _in_bf16(lambda: ours.encode(last))
    return {
        "float32": (found == expected).double().mean().item(),
        "bfloat16": (half == expected).double().mean().item(),
    }


def _in_bf16(run: Any) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return run()


if __name__ == "__main__":
    main()
