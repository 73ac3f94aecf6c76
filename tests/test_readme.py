"""The README's walk through a folder of one's own, typed as it stands there, and its tree of files."""

import csv
import importlib
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import cli
from data.shapes import ShapesConfig, draw

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
WALK = "From pictures to samples"

# What makes each command of the walk cheap enough for a test, by script and what it is told to do.
TINY = {
    ("train.py", "tokenizer"): "--trainer.max_steps 2 --trainer.limit_val_batches 2 --data.image_size 16 "
    "--model.vae.n_hid 8 --model.vae.n_init 8 --model.vae.codebook_size 16 "
    "--data.loading.batch_size 4 --data.loading.workers 0",
    ("encode.py",): "--workers 0",
    ("train.py", "prior"): "--trainer.max_steps 2 --trainer.limit_val_batches 2 "
    "--model.prior.n_layer 2 --model.prior.n_head 2 --model.prior.n_embd 16 "
    "--data.text.text_len 24 --data.text.vocab_size 300 --data.loading.batch_size 4 --data.loading.workers 0",
    ("sample.py",): "",
}


def block_after(heading: str) -> str:
    """The fenced block right after a heading."""
    found = re.search(rf"^#+ {re.escape(heading)}\n\n```\w*\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no fenced block right after {heading!r}"
    return found[1]


def commands(block: str) -> list[list[str]]:
    """Each line's words, without "python"; comments and empty lines left out."""
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert all(words[0] == "python" for words in lines if words)
    return [words[1:] for words in lines if words]


def type_in(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a script in this process as a shell would."""
    script = words[0].removesuffix(".py")
    overrides = [options.split() for start, options in TINY.items() if tuple(words[: len(start)]) == start]
    assert len(overrides) == 1, f"no size for {shlex.join(words)}"
    monkeypatch.setattr(sys, "argv", [*words, *overrides[0]])
    cli.run(importlib.import_module(script).main)


def drawings(folder: Path, count: int = 40) -> None:
    """Captioned pictures in the form that the README shows, a tenth of them marked for validation."""
    config = ShapesConfig(size=32, count=count, max_objects=1)
    (folder / "some").mkdir(parents=True)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text", "split"])
        for index in range(count):
            drawing = draw(config, index)
            name = f"some/{index}.png"
            drawing.image.save(folder / name)
            table.writerow([name, drawing.caption, "train" if index % 10 else "val"])


def test_the_walk_through_ones_own_folder(tmp_path, monkeypatch):
    walk = commands(block_after(WALK))
    assert [words[0] for words in walk] == ["train.py", "encode.py", "train.py", "sample.py"]
    drawings(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)  # would outlive the test
    for words in walk:
        type_in(words, monkeypatch)

    sampling = walk[-1]
    captions = sampling[1 : next(i for i, word in enumerate(sampling) if word.startswith("--"))]
    n = int(sampling[sampling.index("--n") + 1])
    pictures = [Image.open(path) for path in Path(sampling[sampling.index("--out") + 1]).rglob("*.png")]
    singles = [picture for picture in pictures if picture.size == (16, 16)]
    assert len(captions) == 2 and len(singles) == n * len(captions)
    assert len({picture.tobytes() for picture in singles}) > 1  # each has a seed of its own
    assert len(pictures) > len(singles)  # and they stand side by side in a grid

    # What else the README says of these runs: the prior trains from the pictures too, and the library draws.
    prior = shlex.join(walk[2]).replace("--data.codes runs/my-codes", "--data.folder pictures")
    type_in(shlex.split(prior.replace("--run runs/my-prior", "--run runs/from-pictures")), monkeypatch)
    assert cli.model_folder("runs/from-pictures")
    names: dict[str, Any] = {}
    exec(block_after("As a library"), names)
    assert [picture.size for picture in names["pictures"]] == [(16, 16)] * 4


def tree() -> list[str]:
    """Paths that the README's tree of files names."""
    paths, folder = [], ""
    for line in block_after("What is where").splitlines():
        if not line:
            continue
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name if name.endswith("/") else ""
        paths.append(folder + name if line.startswith(" ") else name)
    return paths


def test_the_tree_names_what_is_there():
    paths = tree()
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_tree_leaves_out_no_script_and_no_module_at_the_top():
    here = {path.name for path in ROOT.glob("*.py")}
    assert here - set(tree()) == set()


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?://|#)([^)]+)\)", README)
    assert len(targets) >= 4
    assert [target for target in targets if not (ROOT / target).exists()] == []
