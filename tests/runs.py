"""Runs of train.py on tiny models, in this process: how tests start them and look at what they leave."""

import json
import re
from pathlib import Path

import pytest
import torch

import train
from run_cli import CHECKPOINT
from tests import made_codes

ROOT = Path(__file__).parent.parent
STEPS_AN_EPOCH = 6

SHARED = {
    "data.drawings": {"size": 32, "count": 64},
    "data.loading": {"batch_size": 8, "workers": 0, "val_fraction": 0.2},
    "trainer.accelerator": "cpu",
    "trainer.max_steps": 4,
    "trainer.num_sanity_val_steps": 0,
    "ema.decay": 0.9,
}
SETTINGS = {
    "tokenizer": SHARED
    | {
        "data.image_size": 32,
        "model.vae": {"n_hid": 8, "n_init": 8, "n_groups": 3, "n_blk_per_group": 1, "codebook_size": 16},
        "model.vae.quantizer": "vq",
        "model.optim.lr": 1e-3,
    },
    "prior": SHARED
    | {
        "data.text": {"text_len": 24, "vocab_size": 300},
        "model.prior": {"n_layer": 2, "n_head": 1, "n_embd": 16},
        "model.optim": {"decay": "cosine", "warmup_steps": 2, "lr": 1e-2},
    },
}

OF_LIGHTNING = ("(?s).*instantiate_classes.*", "(?s).*only one JsonargparseDeprecationWarning.*")
MARKS = [
    *(pytest.mark.filterwarnings(f"ignore:{message}") for message in (*train.NOISE, *OF_LIGHTNING)),
    pytest.mark.usefixtures("precision_restored"),
]
"""Of each file that calls train.train."""


def arguments(kind: str, run: Path, *extra: str) -> list[str]:
    settings = [f"--{name}={json.dumps(v) if isinstance(v, dict) else v}" for name, v in SETTINGS[kind].items()]
    return [f"--run={run}", *settings, *extra]


def fit(kind: str, run: Path, *extra: str) -> Path:
    """Trains in this process; returns the run's folder."""
    before = torch.get_float32_matmul_precision()
    try:
        train.train(kind, ["fit", *arguments(kind, run, *extra)])
    finally:
        torch.set_float32_matmul_precision(before)
    return run


def checkpoint_of(run: Path) -> dict:
    return torch.load(run / CHECKPOINT, weights_only=True)


def events_of(run: Path) -> list[dict]:
    """Of callbacks/update_watch.py."""
    return [json.loads(line) for line in (run / "spikes.jsonl").read_text(encoding="utf-8").splitlines()]


def files_in(folder: Path) -> set[str]:
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {re.sub(r"events\.out\.tfevents.*", "events", path) for path in paths}


RUN_FILES = {"config.yaml", "checkpoints/last.ckpt", "tensorboard/events", "tensorboard/hparams.yaml"}
MODEL_FILES = {"model/config.json", "model/model.safetensors"}
BUNDLE_FILES = {"model/bundle.json", "model/tokenizer.json"}
BUNDLE_FILES |= {f"model/image_tokenizer/{name}" for name in ("config.json", "model.safetensors")}


def assert_equal(ours, theirs, path: str = "") -> None:
    assert type(ours) is type(theirs), path
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), path
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), path
        for name in ours:
            assert_equal(ours[name], theirs[name], f"{path}/{name}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), path
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{path}/{i}")
    else:
        assert ours == theirs, path


def write_codes(folder: Path, of: str) -> Path:
    captions = [[f"a red circle {i}"] for i in range(100)]
    made_codes.write(folder, made_codes.codes_of(100, (8, 8), 16), captions, fingerprint=of, codebook_size=16)
    return folder
