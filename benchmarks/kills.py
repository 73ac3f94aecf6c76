"""What does a training lose that is killed at random moments (kill -9)?

Each scenario is trained once left alone, and once with `--kills` kills: each time the same command, with --ckpt_path
last once there is a checkpoint, goes on. Then every value that both logged, step by step, has to be the same to the
last bit (values that a kill kept from being logged are counted), and so have the weights, their average, the
optimisers, schedules, the data's position and the exported model.

    OMP_NUM_THREADS=1 python -m benchmarks.kills --kills 20 --out benchmarks/results/kills-cpu.json
"""

import argparse
import csv
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.record import ROOT, circumstances
from checkpoint_folder import LAST
from whole_files import write_object

ROWS_BETWEEN = 4  # at most so many logged steps, then at most so many seconds, until the kill
SECONDS_BETWEEN = 0.06
POLL_SECONDS = 0.002
TIMEOUT_SECONDS = 300.0
EPOCH_STEPS = 12  # of 64 drawings without a fifth, in batches of 4
CLOCKS = ("images_per_s", "tokens_per_s", "mfu", "epoch")  # what is logged and no part of the result
EQUAL = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")

SHARED = (
    '--data.drawings={"size": 32, "count": 64}',
    '--data.loading={"batch_size": 4, "workers": 2, "val_fraction": 0.2}',
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.check_val_every_n_epoch=null",
    "--trainer.val_check_interval=9",
    "--trainer.log_every_n_steps=1",
    "--ema.decay=0.9",
    "--checkpoints.every_steps=2",
)
TOKENIZER = (
    "--data.image_size=32",
    '--model.vae={"n_hid": 8, "n_init": 8, "n_groups": 3, "n_blk_per_group": 1, "codebook_size": 16}',
)
PRIOR = (
    '--data.text={"text_len": 24, "vocab_size": 300}',
    '--model.prior={"n_layer": 2, "n_head": 1, "n_embd": 16}',
    '--model.optim={"decay": "plateau", "patience": 0, "warmup_steps": 2, "lr": 1e-2, "muon_lr": 3e-2}',
    "--model.caption_dropout=0.3",
)


@dataclass(frozen=True)
class Scenario:
    """`kind` and `args` as train.py takes them, without the run's folder and length; whether that is said in epochs."""

    kind: str
    args: tuple[str, ...]
    by_epochs: bool = False


def scenarios(tokenizer: Path | None, codes: Path | None) -> dict[str, Scenario]:
    """Those of a prior where there are a run of the tokenizer "gumbel" and a folder of its codes."""
    judged = '--model.adversarial={"start_step": 4, "head_start": 2, "warmup_steps": 4, "width": 8, "n_layers": 1}'
    found = {
        "gumbel": Scenario("tokenizer", (*SHARED, *TOKENIZER, "--model.vae.quantizer=gumbel")),
        "adversarial": Scenario(
            "tokenizer",
            (
                *SHARED,
                *TOKENIZER,
                "--model.vae.quantizer=vq",
                "--model.vae.pixels=signed",
                "--model.reconstruction=l1",
                judged,
            ),
            by_epochs=True,
        ),
    }
    if codes is not None:
        accumulated = "--trainer.accumulate_grad_batches=3"
        of_codes = (*SHARED[1:], *PRIOR, accumulated, f"--tokenizer={tokenizer}", f"--data.codes={codes}")
        found["prior"] = Scenario("prior", of_codes)
    return found


class Process(Protocol):
    def running(self) -> bool: ...

    def kill(self) -> None: ...

    def wait(self) -> int:
        """The exit code, negative where a signal ended it."""
        ...


Start = Callable[[list[str], Path], Process]
"""Starts train.py with the arguments; what it says goes to the file."""


class Script:
    """train.py as a user starts it."""

    def __init__(self, args: list[str], said: Path) -> None:
        with said.open("a") as file:
            command = [sys.executable, ROOT / "train.py", *args]
            self._process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    def running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        return self._process.wait()


@dataclass
class Survived:
    """What came of the kills: `anew` of them before there was a checkpoint, `values` compared, `unlogged` ones that
    only the run left alone has, `wrong` ones named. A validation is never missing: it comes before its checkpoint."""

    kills: int = 0
    anew: int = 0
    values: int = 0
    unlogged: int = 0
    wrong: tuple[str, ...] = ()


def survive(scenario: Scenario, folder: Path, steps: int, kills: int, seed: int, start: Start) -> Survived:
    """Trains in folder/whole and folder/parts. Raises RuntimeError where a part ends by itself with an error."""
    commands = {name: _command(scenario, folder / name, steps) for name in ("whole", "parts")}
    _finish(start(commands["whole"], folder / "whole.txt"), folder / "whole.txt")
    survived, moments = Survived(), random.Random(seed)
    while survived.kills < kills:
        process = start(_again(commands["parts"], folder / "parts"), folder / "parts.txt")
        if not _reach(process, folder / "parts", moments):
            break
        process.kill()
        if process.wait() == 0:
            break  # it was over
        survived.kills += 1
        survived.anew += not _has_checkpoint(folder / "parts")
    _finish(start(_again(commands["parts"], folder / "parts"), folder / "parts.txt"), folder / "parts.txt")
    _compare(folder / "whole", folder / "parts", survived)
    return survived


def _command(scenario: Scenario, run: Path, steps: int) -> list[str]:
    log = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={run}", "--trainer.logger.name=log"]
    log.append("--trainer.logger.flush_logs_every_n_steps=1")
    length = [f"--trainer.max_steps={steps}"]
    if scenario.by_epochs:
        length = ["--trainer.max_steps=-1", f"--trainer.max_epochs={steps // EPOCH_STEPS}"]
    return [scenario.kind, "fit", *scenario.args, *length, f"--run={run}", *log]


def _again(command: list[str], run: Path) -> list[str]:
    return [*command, "--ckpt_path=last"] if _has_checkpoint(run) else command


def _has_checkpoint(run: Path) -> bool:
    return any((run / "checkpoints").glob("*.ckpt"))


def _reach(process: Process, run: Path, moments: random.Random) -> bool:
    """Waits for the moment of the next kill; whether the process still runs then."""
    rows = _row_count(run) + moments.randint(0, ROWS_BETWEEN)
    until = time.monotonic() + TIMEOUT_SECONDS
    while _row_count(run) < rows and process.running():
        if time.monotonic() > until:
            raise RuntimeError(f"{run}: nothing is logged any more")
        time.sleep(POLL_SECONDS)
    time.sleep(moments.uniform(0, SECONDS_BETWEEN))
    return process.running()


def _logs(run: Path) -> list[Path]:
    return sorted(run.glob("log/version_*/metrics.csv"))


def _row_count(run: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in _logs(run))


def _finish(process: Process, said: Path) -> None:
    if (code := process.wait()) != 0:
        raise RuntimeError(f"train.py ended with {code}: {said.read_text()[-2000:]}")


def _compare(whole: Path, parts: Path, survived: Survived) -> None:
    expected, wrong, found = dict(_logged(whole)), [], list(_logged(parts))
    unlogged = expected.keys() - dict(found).keys()
    survived.unlogged = len(unlogged)
    wrong += [f"step {step}: {name} is missing" for step, name in unlogged if name.startswith("val/")]
    for name, value in found:
        survived.values += 1
        if expected.get(name) != value:
            wrong.append(f"step {name[0]}: {name[1]} is {value}, not {expected.get(name)}")
    of_whole, of_parts = (_state(run) for run in (whole, parts))
    for part in (*EQUAL, "TokenizerData", "PriorData"):
        wrong += differences(of_whole.get(part), of_parts.get(part), part)
    model = Path("model") / "model.safetensors"
    if (whole / model).read_bytes() != (parts / model).read_bytes():
        wrong.append(str(model))
    survived.wrong = tuple(wrong)


def _logged(run: Path) -> Iterator[tuple[tuple[str, str], str]]:
    """((step, name), value) of everything in the logs, as written; of a row that a kill has cut short, nothing."""
    for path in _logs(run):
        whole_lines = path.read_text().rpartition("\n")[0].splitlines()
        for row in csv.DictReader(whole_lines):
            for name, value in row.items():
                if name != "step" and value and not name.endswith(CLOCKS):
                    yield (row["step"], name), value


def _state(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / LAST, weights_only=True)


def differences(ours: Any, theirs: Any, name: str) -> list[str]:
    """Names of what is not the same to the last bit in two nested structures of tensors."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return [each for key in ours for each in differences(ours[key], theirs[key], f"{name}/{key}")]
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        return [
            each for i, pair in enumerate(zip(ours, theirs, strict=True)) for each in differences(*pair, f"{name}/{i}")
        ]
    same = torch.equal(ours, theirs) if isinstance(ours, Tensor) and isinstance(theirs, Tensor) else ours == theirs
    return [] if same else [name]


def encode(tokenizer: Path, out: Path) -> Path:
    drawings = ["--drawings.size=32", "--drawings.count=64", "--workers=0"]
    command = [sys.executable, ROOT / "encode.py", f"--tokenizer={tokenizer}", f"--out={out}", *drawings]
    subprocess.run(command, check=True, capture_output=True)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each scenario")
    parser.add_argument("--steps", type=int, default=60, help="updates of each scenario")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", nargs="+", help="scenarios: gumbel, adversarial, prior (after gumbel)")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    args = parser.parse_args(argv)
    result: dict[str, Any] = circumstances("cpu") | {"steps": args.steps, "seed": args.seed, "scenarios": {}}
    with tempfile.TemporaryDirectory() as work:
        tokenizer, codes = Path(work) / "gumbel" / "whole", None
        for name in args.only or ("gumbel", "adversarial", "prior"):
            if name == "prior":
                codes = encode(tokenizer, Path(work) / "codes")
            folder = Path(work) / name
            folder.mkdir()
            scenario = scenarios(tokenizer, codes)[name]
            survived = survive(scenario, folder, args.steps, args.kills, args.seed, Script)
            result["scenarios"][name] = vars(survived)
            print(
                f"{name}: {survived.kills} kills, {survived.values} values compared, {len(survived.wrong)} wrong, "
                f"{survived.unlogged} not logged"
            )
    if args.out:
        write_object(args.out, result)
    print(json.dumps(result))
    sys.exit(any(each["wrong"] for each in result["scenarios"].values()))


if __name__ == "__main__":
    main()
