"""Who may import whom: read off every module's text, so that it holds also where nothing runs.

The rooms do not know each other; what needs both models stands outside them. `model_files` is the one shelf that both
models share. A module that this table does not name has no place yet: give it one here.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

MAY_IMPORT = {  # of ours, besides itself
    "kernels": [],
    "data": [],
    "model_files": [],
    "grids": [],
    "cli": [],
    "transformer": ["kernels", "model_files"],
    "vqvae": ["kernels.nearest", "model_files"],
    "pipeline": ["vqvae", "transformer", "data"],
    "encoding": ["pipeline", "data"],
    "callbacks": ["pipeline", "grids"],
}
SCRIPTS = ["train", "encode", "evaluate", "sample", "demo", "benchmarks"]  # import what they like
CALLED_BY = {"train": ["demo"]}  # nobody else imports a script; the demo runs trainings in its own process
LIGHTNING = ["lightning", "lightning_fabric", "pytorch_lightning"]
MAY_USE_LIGHTNING = ["transformer.training", "vqvae.training", "data.datamodule", "callbacks", *SCRIPTS]


class Import(NamedTuple):
    importer: str
    imported: str
    at_import_time: bool


def modules(root: Path) -> dict[str, Path]:
    """Ours, by dotted name: what lies in the root, in its packages and in the folders of the table."""
    named = {*MAY_IMPORT, *SCRIPTS}
    rooms = [folder for folder in root.iterdir() if folder.name in named or (folder / "__init__.py").is_file()]
    found = {}
    for path in [*root.glob("*.py"), *(path for room in rooms for path in room.rglob("*.py"))]:
        found[".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imports(root: Path) -> list[Import]:
    known = modules(root)
    found = []
    for name, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        later = {inner for function in functions for inner in ast.walk(function)}
        for node in ast.walk(tree):
            found += [Import(name, imported, node not in later) for imported in _imported(node, known)]
    return found


def _imported(node: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        for alias in node.names:  # `from kernels import patterns` names a module, `from math import pi` does not
            longer = f"{node.module}.{alias.name}"
            yield longer if longer in known else node.module


def within(name: str, places: list[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def violations(root: Path) -> list[str]:
    all_imports = imports(root)
    rooms = {name.split(".")[0] for name in modules(root)}
    homeless = sorted(rooms - {*MAY_IMPORT, *SCRIPTS})
    found = [f"{room} is not in the table of test_imports.py" for room in homeless]
    with_triton = {i.importer for i in all_imports if i.at_import_time and within(i.imported, ["triton"])}
    for importer, imported, at_import_time in all_imports:
        room, target = importer.split(".")[0], imported.split(".")[0]
        says = f"{importer} imports {imported}"
        if target in SCRIPTS and target in rooms and room not in [target, *CALLED_BY.get(target, [])]:
            found.append(f"{says}: a script")
        elif target in rooms and room not in [target, *SCRIPTS] and not within(imported, MAY_IMPORT.get(room, [])):
            found.append(says)
        if within(imported, LIGHTNING) and not within(importer, MAY_USE_LIGHTNING):
            found.append(f"{says}: Lightning is for training, data and scripts")
        if within(imported, ["triton"]) and room not in ("kernels", "benchmarks"):
            found.append(f"{says}: Triton is for kernels")
        if imported in with_triton and importer not in with_triton and at_import_time and room != "benchmarks":
            found.append(f"{says}: it needs Triton, so not at import time")
    return found


def test_everybody_keeps_to_the_rule():
    assert violations(ROOT) == []


def test_the_rule_is_read_from_real_modules():
    """An empty list of imports would keep to any rule."""
    found = {(i.importer, i.imported) for i in imports(ROOT)}
    expected = [("pipeline", "transformer.sampling"), ("transformer.model", "model_files"), ("train", "callbacks")]
    assert found.issuperset([*expected, ("data.datamodule", "pytorch_lightning")])


@pytest.fixture
def tree(tmp_path):
    """Writes modules, by dotted name, into a tree of their own."""

    def tree(**texts: str) -> Path:
        for name, text in texts.items():
            path = tmp_path.joinpath(*name.split("__", 1)).with_suffix(".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return tmp_path

    return tree


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"kernels__a": "import data.b", "data__b": ""}, "kernels.a imports data.b"),
        ({"vqvae__a": "from transformer.b import c", "transformer__b": ""}, "vqvae.a imports transformer.b"),
        ({"vqvae__a": "from kernels import b", "kernels__b": ""}, "vqvae.a imports kernels.b"),
        ({"transformer__a": "def f():\n    import vqvae.b", "vqvae__b": ""}, "transformer.a imports vqvae.b"),
        ({"transformer__a": "import pipeline", "pipeline": ""}, "transformer.a imports pipeline"),
        ({"model_files": "import kernels.a", "kernels__a": ""}, "model_files imports kernels.a"),
        ({"pipeline": "from train import train", "train": ""}, "pipeline imports train: a script"),
        ({"sample": "import train", "train": ""}, "sample imports train: a script"),
        ({"data__a": "import pytorch_lightning as pl"}, "data.a imports pytorch_lightning: Lightning is"),
        ({"transformer__a": "from lightning.fabric import b"}, "transformer.a imports lightning.fabric: Lightning is"),
        ({"transformer__a": "def f():\n    import triton"}, "transformer.a imports triton: Triton is for kernels"),
        (
            {"kernels__a": "from kernels.b import c", "kernels__b": "import triton.language as tl"},
            "kernels.a imports kernels.b: it needs Triton",
        ),
        ({"helpers": ""}, "helpers is not in the table"),
        ({"helpers____init__": ""}, "helpers is not in the table"),
    ],
)
def test_a_planted_violation_is_found(tree, texts, says):
    (found,) = violations(tree(**texts))
    assert found.startswith(says)


def test_what_is_allowed_is_not_found(tree):
    allowed = {
        "kernels__a": "def f():\n    from kernels import b",
        "kernels__b": "import triton",
        "kernels__nearest": "",
        "vqvae__a": "from kernels import nearest\nfrom model_files import x\nimport torch",
        "vqvae__training": "import pytorch_lightning",
        "transformer__a": "import kernels.a\nfrom transformer import b",
        "transformer__b": "",
        "model_files": "import json",
        "pipeline": "import vqvae.a, transformer.a",
        "train": "import pytorch_lightning, pipeline",
        "demo": "import train",
        "benchmarks__a": "import kernels.b, triton",
    }
    assert violations(tree(**allowed)) == []
