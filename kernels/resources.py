"""What the compiler makes of every kernel and launch configuration in the tables, for devices that need not be there.

    python -m kernels.resources                          # a table for compute capabilities 8.0, 9.0 and 10.0
    python -m kernels.resources --arch 90 --only forward --json

Registers a thread, bytes that did not fit into them (spilled), shared memory of a block in KiB, the blocks that fit on
one multiprocessor at a time, the matrix instructions: wgmma on 9.0, tcgen05 on 10.0, mma elsewhere or in small tiles.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import decode_launch, flash_launch, nearest_triton
from kernels.jit import INTERPRETED, AotSpec

ARCHITECTURES = (80, 90, 100)
# Of a multiprocessor: shared memory that one block may have and that all together have, in bytes.
SHARED = {80: (163 * 1024, 164 * 1024), 90: (227 * 1024, 228 * 1024), 100: (227 * 1024, 228 * 1024)}
REGISTERS = 65_536
THREADS = 2048
RESERVED_SHARED = 1024  # that each block takes besides its own
MATRIX_INSTRUCTIONS = {"wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma", "mma": "mma.sync"}


class Resources(NamedTuple):
    """One line of the table."""

    arch: int
    kernel: str
    num_warps: int
    num_stages: int
    registers: int
    spilled: int
    """Bytes a thread."""
    shared: int
    """Bytes a block."""
    blocks: int
    """That fit on a multiprocessor at a time; 0: not even one."""
    matrix_unit: str
    """Matrix instructions of the kernel, "" where it has none."""


def all_specs() -> Iterator[AotSpec]:
    for module in (flash_launch, decode_launch, nearest_triton):
        yield from module.aot_specs()


def measure(spec: AotSpec, arch: int) -> Resources:
    """Compiles one kernel. Raises Triton's errors where it does not compile."""
    source = ASTSource(spec.kernel, spec.signature, spec.constexprs, spec.attrs)
    options = {"num_warps": spec.num_warps, "num_stages": spec.num_stages, "enable_fp_fusion": True}
    if spec.max_registers:
        options["maxnreg"] = spec.max_registers
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spilled = _registers(compiled.asm["cubin"])
    ptx, shared = compiled.asm["ptx"], compiled.metadata.shared
    return Resources(
        arch=arch,
        kernel=spec.label,
        num_warps=spec.num_warps,
        num_stages=spec.num_stages,
        registers=registers,
        spilled=spilled,
        shared=shared,
        blocks=_blocks(arch, spec.num_warps, registers, shared),
        matrix_unit="+".join(name for name, instruction in MATRIX_INSTRUCTIONS.items() if instruction in ptx),
    )


def _registers(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack a thread, which nothing but spilled registers takes in these kernels."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return tuple(int(re.search(rf"\b{name}:(\d+)", report)[1]) for name in ("REG", "STACK"))


def _blocks(arch: int, num_warps: int, registers: int, shared: int) -> int:
    of_block, of_all = SHARED[arch]
    if shared > of_block:
        return 0
    rounded = -(-registers // 8) * 8  # they are given out by eights
    return min(
        REGISTERS // (32 * num_warps * rounded), of_all // (shared + RESERVED_SHARED), THREADS // (32 * num_warps)
    )


def report(architectures: Sequence[int], only: str) -> list[Resources]:
    """Compiles all kernels whose label has the regular expression `only` in it, on all cores."""
    if INTERPRETED:
        raise SystemExit("TRITON_INTERPRET is set: interpreted kernels are not compiled")
    numbers = [i for i, spec in enumerate(all_specs()) if re.search(only, spec.label)]
    if not numbers:
        raise SystemExit(f"no kernel has {only!r} in its name")
    jobs = [(i, arch) for arch in architectures for i in numbers]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_measure_number, *zip(*jobs, strict=True), chunksize=4))


def _measure_number(i: int, arch: int) -> Resources:
    # By number, as kernels do not travel between processes.
    return measure(list(all_specs())[i], arch)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m kernels.resources", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--only", default="", help="kernels that have this regular expression in their name")
    parser.add_argument("--json", action="store_true", help="one JSON list in the place of the table")
    args = parser.parse_args(argv)
    found = report(args.arch, args.only)
    if args.json:
        print(json.dumps([each._asdict() for each in found]))
        return
    print(markdown(found))


def markdown(found: Sequence[Resources]) -> str:
    """One line a kernel: its launch, and for each architecture registers / spilled / shared KiB / blocks / unit."""
    architectures = sorted({each.arch for each in found})
    of = {(each.kernel, each.arch): each for each in found}
    lines = ["| kernel | warps, stages | " + " | ".join(f"{arch / 10}" for arch in architectures) + " |"]
    lines.append("|---" * (2 + len(architectures)) + "|")
    for kernel in dict.fromkeys(each.kernel for each in found):
        cells = [_cell(of[kernel, arch]) for arch in architectures]
        launch = of[kernel, architectures[0]]
        lines.append(f"| {kernel} | {launch.num_warps}, {launch.num_stages} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(each: Resources) -> str:
    return " / ".join(
        map(str, (each.registers, each.spilled, round(each.shared / 1024), each.blocks, each.matrix_unit or "-"))
    )


if __name__ == "__main__":
    main()
