"""Who may import whom, read off the source files; the same reader is then shown trees that break each rule."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

ROOMS = ("kernels", "data", "vqvae", "transformer")
LIBRARY = (
    *ROOMS,
    "whole_files",
    "locks",
    "grids",
    "model_files",
    "muon",
    "precision",
    "guard",
    "previews",
    "batching",
    "pipeline",
    "encoding",
    "completion",
    "clip_scores",
)
HELPERS = (
    "sample_files",
    "sample_options",
    "device_processes",
    "process_watch",
    "ranking",
    "streaming",
    "start_signals",
    "cli",
    "callbacks",
    "averaging",
    "sharding",
    "metrics",
    "config_files",
    "checkpoint_files",
    "checkpoint_folder",
    "resume_command",
    "settings_changes",
    "memory",
    "run_cli",
    "evaluation",
)
SCRIPTS = ("train", "encode", "evaluate", "fit_palette", "sample")
MAY_IMPORT = {  # of ours, beside itself; "a.b" allows that part of a alone
    "kernels": (),
    "whole_files": (),
    "data": ("grids", "locks", "whole_files"),  # grids: the contact sheet of data/inspect.py
    "model_files": ("whole_files",),
    "muon": ("precision",),
    "precision": (),
    "guard": (),
    "vqvae": ("kernels.nearest", "whole_files", "model_files", "muon", "guard"),
    "transformer": ("kernels", "model_files", "muon", "guard"),
    "previews": ("transformer", "data"),
    "batching": (),
    "pipeline": ("whole_files", "vqvae", "transformer", "data", "previews", "batching"),
    "encoding": ("data", "pipeline"),
    "completion": ("data", "pipeline", "transformer"),
    "grids": ("whole_files",),
    "streaming": ("grids",),
    "metrics": (),
    "clip_scores": (),
    "sample_files": ("grids", "whole_files", "transformer.sampling", "transformer.serving"),
    "sample_options": ("cli", "pipeline", "sample_files", "transformer.sampling", "transformer.serving"),
    "ranking": ("whole_files", "clip_scores", "sample_files", "transformer.likelihood"),
    "device_processes": ("process_watch",),
    "process_watch": ("start_signals",),
    "start_signals": (),
    "cli": ("start_signals",),
    "config_files": ("vqvae",),
    "locks": (),
    "callbacks": ("grids", "whole_files", "checkpoint_files", "checkpoint_folder", "guard", "memory", "start_signals"),
    "checkpoint_files": ("model_files",),
    "checkpoint_folder": ("checkpoint_files", "whole_files"),
    "resume_command": (),
    "settings_changes": (),
    "memory": (),
    "run_cli": (*LIBRARY, *HELPERS),
    "sharding": ("callbacks.folder_io",),
    "averaging": ("sharding",),
    "evaluation": (*LIBRARY, "cli", "metrics"),
    **dict.fromkeys((*SCRIPTS, "benchmarks"), LIBRARY + HELPERS),
    "demo": (*LIBRARY, *HELPERS, "train"),
}
OURS = {*MAY_IMPORT, "tests"}
LIGHTNING = ("pytorch_lightning", "lightning", "lightning_fabric")


class Import(NamedTuple):
    """`importer` and `name` are dotted; `eager` unless it waits in a function until that is called."""

    importer: str
    name: str
    eager: bool


def imports_of(root: Path) -> Iterator[Import]:
    """Every import of every module but the tests; of `from a import b`, the name is a.b."""
    for path in sorted([*root.glob("*.py"), *root.glob("[!.]*/**/*.py")]):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] == "tests":
            continue
        importer = ".".join(parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        waiting = {node for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            for name in names_in(node, parts):
                yield Import(importer, name, node not in waiting)


def names_in(node: ast.AST, parts: tuple[str, ...]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = parts[: len(parts) - node.level] if node.level else ()
        module = ".".join([*above, *([node.module] if node.module else [])])
        return [f"{module}.{alias.name}" for alias in node.names]
    return []


def room(name: str) -> str:
    return name.partition(".")[0]


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def forbidden(root: Path) -> list[str]:
    """What breaks a rule, in words."""
    imports = list(imports_of(root))
    found = [f"no rule for {name}" for name in sorted({room(each.importer) for each in imports} - OURS)]
    found += _wrong_rooms(imports) + _lightning_elsewhere(imports) + _triton_elsewhere(imports)
    return found


def _wrong_rooms(imports: list[Import]) -> list[str]:
    return [
        f"{importer} imports {name}"
        for importer, name, _ in imports
        if room(name) in OURS - {room(importer)}
        and not any(within(name, allowed) for allowed in MAY_IMPORT.get(room(importer), ()))
    ]


def _lightning_elsewhere(imports: list[Import]) -> list[str]:
    may = {*SCRIPTS, "demo", "callbacks", "run_cli", "averaging", "sharding", "device_processes", "process_watch"}
    return [
        f"{importer} imports {name}"
        for importer, name, _ in imports
        if room(name) in LIGHTNING
        and room(importer) not in may
        and importer.rpartition(".")[2] not in ("training", "datamodule")
    ]


def _triton_elsewhere(imports: list[Import]) -> list[str]:
    """Triton is for files in kernels/; those that import it at once are imported at once by each other only.

    `kernels.flash` and `kernels.decode` are such too: they import nothing of Triton itself, but what does.
    """
    of_triton = {each.importer for each in imports if each.eager and room(each.name) == "triton"} | {
        "kernels.flash",
        "kernels.decode",
    }
    found = [
        f"{importer} imports {name}"
        for importer, name, _ in imports
        if room(name) == "triton" and room(importer) != "kernels"
    ]
    found += [
        f"{importer} imports {name}, which imports triton, at once"
        for importer, name, eager in imports
        if eager and importer not in of_triton and any(within(name, module) for module in of_triton)
    ]
    return found


def test_the_rules_hold_here():
    imports = list(imports_of(ROOT))
    assert {"kernels", "data", "vqvae", "transformer", "train", "sample"} <= {room(each.importer) for each in imports}
    assert Import("transformer.model", "kernels.attention.attention", True) not in imports
    assert Import("transformer.attention", "kernels.attention.attention", True) in imports
    assert forbidden(ROOT) == []


def test_what_is_installed_imports_only_what_is_installed():
    installed = {room(each.importer) for each in imports_of(ROOT)} & set(LIBRARY)
    outside = OURS - installed
    assert [each for each in imports_of(ROOT) if room(each.importer) in installed and room(each.name) in outside] == []


def test_what_is_imported_is_declared_and_the_other_way_round():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["prepare"], *extras["clip"], *extras["plots"]]
    declared = {distribution(re.split(r"[^\w-]", line)[0]) for line in lines}
    imported = {room(each.name) for each in imports_of(ROOT)} - OURS - sys.stdlib_module_names
    of = packages_distributions()
    used = {name: {distribution(each) for each in of.get(name, [name])} for name in imported}
    assert [name for name in sorted(imported) if not used[name] & declared] == []
    unseen = declared - set().union(*used.values())
    assert unseen <= {"tensorboard", "triton"}, "those two are for Lightning's logger and for torch.compile"


def distribution(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.mark.parametrize(
    ("file", "source", "said"),
    [
        ("kernels/a.py", "import data", "kernels.a imports data"),
        ("kernels/a.py", "import model_files", "kernels.a imports model_files"),
        ("data/a.py", "from transformer.model import Prior", "data.a imports transformer.model.Prior"),
        ("data/prepare/a.py", "import os, pipeline", "data.prepare.a imports pipeline"),
        ("vqvae/a.py", "from transformer import model", "vqvae.a imports transformer.model"),
        ("vqvae/a.py", "from kernels import attention", "vqvae.a imports kernels.attention"),
        ("vqvae/a.py", "import kernels.nearest_but_one", "vqvae.a imports kernels.nearest_but_one"),
        ("vqvae/a.py", "def f():\n    import data.text as text", "vqvae.a imports data.text"),
        ("transformer/a.py", "import vqvae.model", "transformer.a imports vqvae.model"),
        ("transformer/a.py", "if True:\n    from data import text", "transformer.a imports data.text"),
        ("transformer/a.py", "from ..data import text", "transformer.a imports data.text"),
        ("transformer/a.py", "import grids", "transformer.a imports grids"),
        ("model_files.py", "import kernels.patterns", "model_files imports kernels.patterns"),
        ("pipeline.py", "import cli", "pipeline imports cli"),
        ("pipeline.py", "from train import train", "pipeline imports train.train"),
        ("encoding.py", "import grids", "encoding imports grids"),
        ("grids.py", "import pipeline", "grids imports pipeline"),
        ("callbacks/a.py", "class A:\n    import pipeline", "callbacks.a imports pipeline"),
        ("sample.py", "from train import be_quiet", "sample imports train.be_quiet"),
        ("demo.py", "import sample", "demo imports sample"),
        ("benchmarks/a.py", "import train", "benchmarks.a imports train"),
        ("train.py", "from tests.conftest import build_pipeline", "train imports tests.conftest.build_pipeline"),
        ("painter.py", "import os", "no rule for painter"),
        ("vqvae/model.py", "import pytorch_lightning as pl", "vqvae.model imports pytorch_lightning"),
        ("cli.py", "from lightning.pytorch import Trainer", "cli imports lightning.pytorch.Trainer"),
        ("transformer/a.py", "def f():\n    import triton", "transformer.a imports triton"),
        ("train.py", "import triton.language as tl", "train imports triton.language"),
    ],
)
def test_each_rule_fires(tmp_path, file, source, said):
    assert forbidden(planted(tmp_path, {file: source})) == [said]


def planted(root: Path, sources: dict[str, str]) -> Path:
    for name, source in sources.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
    return root


FLASH = {"kernels/flash.py": "import triton"}


@pytest.mark.parametrize("name", ["kernels.attention", "transformer.attention"])
@pytest.mark.parametrize("source", ["from kernels.flash import f", "from kernels import flash", "import kernels.flash"])
def test_a_kernel_of_triton_is_not_imported_at_once(tmp_path, name, source):
    file = f"{name.replace('.', '/')}.py"
    (said,) = forbidden(planted(tmp_path, FLASH | {file: source}))
    assert said.startswith(f"{name} imports kernels.flash")
    assert said.endswith("which imports triton, at once")
    assert forbidden(planted(tmp_path, FLASH | {file: f"def f():\n    {source}"})) == []


def test_what_is_allowed_passes(tmp_path):
    allowed = FLASH | {
        "kernels/decode.py": "import triton\nfrom kernels.flash import f",
        "kernels/attention.py": "def f():\n    import triton",
        "vqvae/a.py": "from kernels.nearest import nearest\nfrom kernels import nearest\nfrom . import b",
        "vqvae/training.py": "import pytorch_lightning",
        "data/prepare/a.py": "from ..text import f\nimport data.text",
        "pipeline.py": "import vqvae.model, transformer.model, data.text",
        "evaluate.py": "import pipeline, cli, callbacks, pytorch_lightning.callbacks",
        "demo.py": "from train import train",
        "tests/a.py": "import train, demo, triton",
        ".hidden/a.py": "import nothing of ours",
    }
    assert forbidden(planted(tmp_path, allowed)) == []
