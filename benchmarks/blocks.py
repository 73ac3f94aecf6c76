"""Which block learns more in the same time: the paper's (LayerNorm, GELU) or the modern one (RMSNorm, QK-norm, SwiGLU)?

Trains a prior of each on the same codes, batches, optimiser and seconds, and follows the validation loss of the image
tokens. The two take turns of a few seconds, and who begins changes each time, so that whatever else the machine does
hits both alike. Only training is on the clock: validation and the reading of batches are not. The step size follows
the clock as well (warm-up, then a cosine that ends with the time), so that the quicker block has no other schedule.

    python benchmarks/blocks.py --codes runs/demo/codes --minutes 15 --out benchmarks/results/blocks-cpu.json

`--codes` takes a folder that encode.py wrote. The last line is JSON; `--out` writes the same to a file, and the curves
to a PNG beside it. One seed is one sample: differences are to be believed once `--seed` 1 and 2 show them too.
"""

import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

import cli
from benchmarks.plot import save_curves
from benchmarks.record import circumstances, hardware, round_to_4_digits, write_json
from data.datamodule import PriorData
from data.settings import Loading, TextConfig
from transformer.config import BLOCKS, PRESETS, PriorConfig
from transformer.losses import PriorLoss, prior_loss
from transformer.model import Prior
from transformer.schedules import cosine_factor
from transformer.training import OptimConfig, drop_captions, make_optimizer, step_key

Batch = dict[str, Any]
BETAS, WEIGHT_DECAY, CLIP_NORM, CAPTION_DROPOUT = (0.9, 0.96), 4.5e-2, 1.0, 0.1
WARMUP_SHARE, MIN_RATIO = 0.05, 0.02  # of the time; of the peak step size


class Contestant:
    """A prior in training. `curve` holds (seconds trained, steps, validation loss of the image tokens)."""

    def __init__(self, config: PriorConfig, data: PriorData, args: Namespace) -> None:
        torch.manual_seed(args.seed)
        self.prior = Prior(config).to(args.device)
        optim = OptimConfig(lr=args.lr, muon_lr=args.muon_lr, betas=BETAS, weight_decay=WEIGHT_DECAY)
        self.optimizer = make_optimizer(self.prior, optim)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.device, self.seed, self.budget = args.device, args.seed, 60 * args.minutes
        self.autocast = cli.default_precision(args.device) == "bf16-mixed"
        self.batches, self.validation = endless(data), data.val_dataloader()
        self.seconds, self.steps = 0.0, 0
        self.curve: list[tuple[float, int, float]] = []

    def train_until(self, seconds: float) -> None:
        """Steps, until so many seconds have been spent on steps in all."""
        self.prior.train()
        while self.seconds < seconds:
            text_tokens, image_tokens = self._on_device(next(self.batches))
            start = time.perf_counter()
            self._step(text_tokens, image_tokens)
            if self.device.startswith("cuda"):
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - start
            self.steps += 1

    def _step(self, text_tokens: Tensor, image_tokens: Tensor) -> None:
        share = round(1000 * self.seconds / self.budget)
        factor = cosine_factor(share, warmup_steps=round(1000 * WARMUP_SHARE), total_steps=1000, min_ratio=MIN_RATIO)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        text_tokens = drop_captions(text_tokens, CAPTION_DROPOUT, step_key(self.seed, self.steps))
        self.optimizer.zero_grad()
        self._loss(text_tokens, image_tokens).total.backward()
        nn.utils.clip_grad_norm_(self.prior.parameters(), CLIP_NORM)
        self.optimizer.step()

    def _loss(self, text_tokens: Tensor, image_tokens: Tensor) -> PriorLoss:
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.autocast):
            output = self.prior(text_tokens, image_tokens)
        return prior_loss(output.text_logits, output.image_logits, text_tokens, image_tokens)

    @torch.no_grad()
    def validate(self) -> float:
        """Adds a point to the curve and returns its loss, in nats an image token."""
        self.prior.eval()
        total, count = 0.0, 0
        for batch in self.validation:
            text_tokens, image_tokens = self._on_device(batch)
            total += float(self._loss(text_tokens, image_tokens).image) * len(text_tokens)
            count += len(text_tokens)
        self.curve.append((self.seconds, self.steps, total / count))
        return total / count

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch["text_tokens"].to(self.device), batch["image_tokens"].to(self.device)


def endless(data: PriorData) -> Iterator[Batch]:
    """Training batches, epoch after epoch: the same ones for everybody who asks."""
    loader = data.train_dataloader()
    while True:
        yield from loader


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    data = open_data(args)
    contestants = {block: Contestant(prior_config(block, data, args), data, args) for block in BLOCKS}
    print(f"{hardware(args.device)}, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}")
    print(f"torch {torch.__version__}, {'bf16' if contestants['paper'].autocast else 'float32'}, preset {args.preset}")
    compete(contestants, args)
    report(contestants, data, args)


def parse_args(argv: Sequence[str] | None) -> Namespace:
    parser = cli.Parser(prog="python benchmarks/blocks.py", description=__doc__.splitlines()[0])
    parser.add_argument("--codes", required=True, help="a folder that encode.py wrote")
    parser.add_argument("--minutes", type=float, default=15, help="of training, for each block")
    parser.add_argument("--slice", type=float, default=20, help="seconds of a turn")
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak step size")
    parser.add_argument("--muon-lr", type=float, help="peak step size of Muon on the blocks' matrices; without: AdamW")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--text-len", type=int, default=24)
    parser.add_argument("--vocab-size", type=int, default=512, help="of the text tokenizer, at most")
    parser.add_argument("--val-count", type=int, default=256, help="pictures of a validation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="also write the JSON here, and the curves to a .png beside it")
    args = parser.parse_args(argv)
    for name in ("minutes", "slice", "lr"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name} is {getattr(args, name)}, expected more than 0")
    return args


def open_data(args: Namespace) -> PriorData:
    text = TextConfig(text_len=args.text_len, vocab_size=args.vocab_size, bpe_dropout=0.0)
    loading = Loading(batch_size=args.batch_size, workers=0, seed=args.seed, val_count=args.val_count)
    data = PriorData(codes=args.codes, text=text, loading=loading)
    data.setup()
    return data


def prior_config(block: str, data: PriorData, args: Namespace) -> PriorConfig:
    return PriorConfig(
        preset=args.preset,
        block=block,
        text_len=args.text_len,
        text_vocab_size=data.text_tokenizer.vocab_size,
        codebook_size=data.source.codebook_size,
        grid_size=data.source.grid_size,
    )


def compete(contestants: dict[str, Contestant], args: Namespace) -> None:
    """Turns of one slice until the time of each is used up, and a validation after each turn."""
    budget, order, turn = 60 * args.minutes, list(contestants), 0
    for contestant in contestants.values():
        contestant.validate()
    while turn * args.slice < budget:
        turn += 1
        for block in order:
            contestants[block].train_until(min(turn * args.slice, budget))
            contestants[block].validate()
        order.reverse()
        print("   ".join(line(block, contestant) for block, contestant in contestants.items()), flush=True)


def line(block: str, contestant: Contestant) -> str:
    seconds, steps, loss = contestant.curve[-1]
    return f"{block:>6}: {seconds:7.1f} s {steps:7,} steps {loss:7.4f} nats"


def report(contestants: dict[str, Contestant], data: PriorData, args: Namespace) -> None:
    result = {
        "benchmark": "blocks",
        **circumstances(args.device),
        "precision": "bf16-mixed" if contestants["paper"].autocast else "32-true",
        "settings": {name: value for name, value in vars(args).items() if name not in ("out", "codes")},
        "data": {
            "fingerprint": data.fingerprint,
            "image_tokenizer": data.source.fingerprint,
            "training_pictures": len(data.train_indices),
            "grid_size": list(data.source.grid_size),
            "codebook_size": data.source.codebook_size,
        },
        "blocks": {block: summary(contestant) for block, contestant in contestants.items()},
    }
    if args.out is not None:
        write_json(args.out, result)
        # The first fifth, where every model falls from the uniform guess, would flatten the rest.
        curves = {
            block: [(seconds, loss) for seconds, _, loss in contestant.curve if seconds >= 12 * args.minutes]
            for block, contestant in contestants.items()
        }
        save_curves(args.out.with_suffix(".png"), curves, x_label="seconds of training", y_label="nats an image token")
    print(json.dumps(result))


def summary(contestant: Contestant) -> dict[str, Any]:
    return {
        "parameters": sum(parameter.numel() for parameter in contestant.prior.parameters()),
        "steps_per_s": round_to_4_digits(contestant.steps / contestant.seconds),
        "val_loss_image": round_to_4_digits(contestant.curve[-1][2]),
        "curve": [tuple(map(round_to_4_digits, point)) for point in contestant.curve],
    }


if __name__ == "__main__":
    cli.run(main)
