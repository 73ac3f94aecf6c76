"""Runs of train.py on shards: stopped in the middle of an epoch and gone on with, weights, streams, broken pictures."""

import json
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from data.shapes import ShapesConfig, draw
from tests.data.shards.tars import write_tar
from tests.runs import MARKS, assert_equal, checkpoint_of, fit
from vqvae.training import TokenizerSystem

pytestmark = MARKS
PARTS = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step")
COMMON = (
    "--data.drawings=null", "--data.loading.workers=2", "--data.loading.max_rejected=0.2", "--trainer.max_steps=10",
    "--trainer.precision=32-true",
)  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """64 drawings in 4 shards, one picture broken behind its header."""
    folder = tmp_path_factory.mktemp("shards")
    config = ShapesConfig(size=32, count=64)
    for number in range(4):
        write_tar(folder / f"{number}.tar", members(config, range(16 * number, 16 * number + 16), folder))
    return folder


def members(config: ShapesConfig, indices: Iterable[int], folder: Path) -> list[tuple[str, bytes]]:
    found = []
    for index in indices:
        drawing = draw(config, index)
        drawing.image.save(folder / "one.jpg")
        content = (folder / "one.jpg").read_bytes()
        found += [(f"{index:04d}.jpg", content[:-60] if index == 5 else content)]
        found += [(f"{index:04d}.txt", drawing.caption.encode())]
    (folder / "one.jpg").unlink()
    return found


def arguments_of(kind: str, shards: Path) -> list[str]:
    if kind == "weights":
        sets = [{"path": f"{shards}/{{0..1}}.tar", "weight": 3}, {"path": f"{shards}/{{2..3}}.tar"}]
        return [f"--data.shards.sets={json.dumps(sets)}"]
    return [
        f"--data.shards.sets=pipe:cat {shards}/{{0..2}}.tar",
        "--data.shards.samples=48",
        f"--data.shards.val={shards}/3.tar",
    ]


@pytest.mark.parametrize("kind", ["weights", "streams"])
def test_a_run_that_goes_on_equals_one_that_was_not_interrupted(kind, shards, tmp_path, monkeypatch):
    settings = (*COMMON, *arguments_of(kind, shards))
    whole = fit("tokenizer", tmp_path / "whole", *settings)
    training_step = TokenizerSystem.training_step
    with monkeypatch.context() as context:

        def pressed(self, *args):
            if self.global_step == 3:
                signal.raise_signal(signal.SIGINT)
            return training_step(self, *args)

        context.setattr(TokenizerSystem, "training_step", pressed)
        with pytest.raises(KeyboardInterrupt):
            fit("tokenizer", tmp_path / "parts", *settings)
    assert checkpoint_of(tmp_path / "parts")["global_step"] == 4
    parts = fit("tokenizer", tmp_path / "parts", *settings, "--ckpt_path=last")
    for part in PARTS:
        assert_equal(checkpoint_of(whole)[part], checkpoint_of(parts)[part], part)
    for run in (whole, parts):
        (line,) = (run / "rejects-found.jsonl").read_text().splitlines()
        assert "0005" in json.loads(line)["file"] and json.loads(line)["reason"] == "broken picture"
        assert json.loads((run / "rejects.json").read_text())["rejected"] == 0


def test_a_path_alone(shards, tmp_path):
    run = fit("tokenizer", tmp_path / "run", *COMMON, f"--data.shards={shards}", "--trainer.max_steps=2")
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["shards"] == str(shards)
    assert not list(shards.glob("*.tmp")) and len(list(shards.glob("*.tar.index"))) == 4
