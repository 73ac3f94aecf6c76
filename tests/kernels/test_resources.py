"""Every launch configuration of the tables, compiled ahead of time for devices that need not be there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")

ROOT = Path(__file__).parents[2]
# Bytes a thread that may be spilled. Head dims of 256, and of float32 from 64 on, fit no better.
MAX_SPILLED = 144
MAX_SPILLED_WIDE = 768


def run(*arguments: str) -> str:
    # In a process of its own, as kernels of this one may be interpreted.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def most_spilled(kernel: str) -> int:
    if kernel.startswith("decode"):
        return 0
    wide = "D 256" in kernel or "float32, D 64" in kernel or "float32, D 128" in kernel
    return MAX_SPILLED_WIDE if wide else MAX_SPILLED


def small_tiles(kernel: str) -> bool:
    """Whether an attention kernel's tiles are too small for the matrix instructions of 9.0 and 10.0."""
    small = {"dk dv, float32": (64, 128, 256), "dq, float32": (128, 256), "forward, float32": (256,)}
    small |= {"dq, bfloat16": (256,), "dk dv, bfloat16": (256,)}
    return any(f"{name}, D {head_dim}," in kernel for name, dims in small.items() for head_dim in dims)


@pytest.mark.parametrize(
    ("arch", "only", "matrix_unit"),
    [
        (90, "", "wgmma"),
        # The other two: every launch configuration once, under the mask that takes the most registers.
        (80, "modulo|merg|nearest|D (16|32|128|256), conv clamped", "mma"),
        (100, "modulo|merg|nearest|D (16|32|128|256), conv clamped", "tcgen05"),
    ],
)
def test_every_launch_configuration_compiles_and_fits(arch, only, matrix_unit):
    table = json.loads(run("-m", "kernels.resources", "--arch", str(arch), "--only", only, "--json"))
    kernels = [line["kernel"] for line in table]
    for kernel in ("forward", "dq", "dk dv"):
        for dtype in ("float32", "bfloat16"):
            for head_dim in (16, 32, 64, 128, 256):
                assert f"{kernel}, {dtype}, D {head_dim}, conv modulo" in kernels
    assert sum(kernel.startswith("nearest") for kernel in kernels) >= 20
    assert sum(kernel.startswith("decode") for kernel in kernels) >= 30
    for line in table:
        assert line["blocks"] >= 1, line
        assert line["spilled"] <= most_spilled(line["kernel"]), line
        if line["kernel"].startswith(("forward", "dq", "dk dv", "nearest, bfloat16 x", "nearest, float32")):
            assert line["matrix_unit"] == ("mma" if small_tiles(line["kernel"]) else matrix_unit), line
        if "decode few bfloat16" in line["kernel"]:
            assert line["matrix_unit"], line


@pytest.mark.parametrize(
    ("launch", "fault"), [((64, 64, 4, 16), "no block fits"), ((128, 64, 4, 2, 96), "registers are spilled")]
)
def test_what_does_not_fit_is_seen(launch, fault):
    source = f"""
from kernels import flash_launch
from kernels.launch import Launch
from kernels.resources import measure
flash_launch.FORWARD[16, 64] = Launch{launch}
spec = next(spec for spec in flash_launch.aot_specs() if spec.label.startswith("forward, bfloat16, D 64, row"))
found = measure(spec, 90)
print(found.blocks, found.spilled)
"""
    blocks, spilled = map(int, run("-c", source).split())
    assert (blocks == 0) == (fault == "no block fits")
    assert (spilled > MAX_SPILLED) == (fault == "registers are spilled")


def test_the_table_is_markdown():
    only = "forward, bfloat16, D 64, row"
    lines = run("-m", "kernels.resources", "--arch", "80", "90", "--only", only).splitlines()
    assert lines[:2] == ["| kernel | warps, stages | 8.0 | 9.0 |", "|---|---|---|---|"]
    assert re.fullmatch(rf"\| {only} \| 8, 3 \| 128 / \d+ / 48 / 2 / mma \| 128 / 0 / 64 / 2 / wgmma \|", lines[2])
    assert len(lines) == 3


def test_an_interpreted_kernel_is_not_compiled():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "kernels.resources"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "interpreted kernels are not compiled" in done.stderr
