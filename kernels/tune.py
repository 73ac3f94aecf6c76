"""Measures launch parameters on the CUDA device at hand and keeps the best, which later runs then use (launch.py).

    python -m kernels.tune                               # bfloat16, head dim 64, every mask at the paper's size
    python -m kernels.tune --head-dims 64 128 --dtypes bfloat16 float16 --grid 64 --kinds row conv
    python -m kernels.tune --kernels nearest

What is kept counts for its device, kernel, dtype, head dim and kind of mask, whatever the grid, window or batch: of two
calls for one of these, the later one's result stays.

Each kernel is tried by the public function that launches it, while the others stay as they are: what the function gains
is what the kernel gains. The tables' own parameters are among the candidates, and the first to win a tie.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import triton
from triton.runtime.errors import OutOfResources, PTXASError

from kernels import decode_launch, flash_launch, nearest_triton
from kernels.attention import attention
from kernels.cache_layout import KeysValues
from kernels.launch import Launch, store_tuned, trying, tuning_key
from kernels.nearest import nearest_code
from kernels.patterns import KINDS, Pattern
from kernels.step import attention_step

FLASH = ("forward", "query_gradient", "key_gradient")
NEAREST = (8 * 1024, 8192)  # vectors and codes
KERNELS = (*FLASH, "decode_one", "decode_few", "nearest")


def _launches(tiles: str, stages: Sequence[int], registers: Sequence[int] = (0,)) -> list[Launch]:
    """All combinations; `tiles` as in "128x64 by 8", rows x columns by warps."""
    numbers = [[int(number) for number in re.findall(r"\d+", tile)] for tile in tiles.split(",")]
    return [Launch(*tile, n, most) for tile in numbers for n in stages for most in registers]


CANDIDATES = {
    "forward": [
        *_launches("128x64 by 8, 64x64 by 4, 64x32 by 4", stages=(2, 3), registers=(0, 128)),
        *_launches("128x64 by 4, 128x128 by 8, 128x32 by 4", stages=(2, 3)),
    ],
    "query_gradient": _launches("128x64 by 8, 64x64 by 4, 64x32 by 4, 64x128 by 8", stages=(2, 3), registers=(0, 128)),
    "key_gradient": _launches(
        "64x64 by 4, 64x64 by 8, 64x128 by 8, 32x64 by 4, 32x128 by 8, 128x64 by 8", stages=(1, 2, 3)
    ),
    "decode_one": _launches(
        ", ".join(f"1x{block_n} by {warps}" for block_n in (32, 64, 128, 256) for warps in (2, 4, 8)), stages=(1,)
    ),
    "decode_few": _launches("16x32 by 4, 16x64 by 4, 16x128 by 4", stages=(1, 2, 3)),
    "nearest": _launches(
        "128x128 by 8, 128x64 by 8, 128x64 by 4, 64x128 by 4, 64x64 by 4, 128x256 by 8", stages=(2, 3, 4)
    ),
}


class Case(NamedTuple):
    """One entry of the file of tuned parameters: what to run, and the parameters that it has to beat."""

    kernel: str
    key: str
    run: Callable[[], object]
    present: Launch


def cases(args: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """Everything that was asked for."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    for dtype in (getattr(torch, dtype) for dtype in args.dtypes):
        for head_dim in args.head_dims:
            if "nearest" in args.kernels:
                yield _nearest_case(name, dtype, head_dim, device)
            for kind in args.kinds:
                pattern = Pattern(kind, args.text_len, args.grid, args.grid)
                shape = (args.batch, args.heads, pattern.seq_len, head_dim)
                for kernel in args.kernels:
                    if kernel in FLASH:
                        yield _flash_case(name, kernel, pattern, shape, dtype, device)
                    elif kernel != "nearest":
                        yield _decode_case(name, kernel, pattern, shape, dtype, device)


def _flash_case(
    name: str, kernel: str, pattern: Pattern, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Case:
    q, k, v = (torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    do = torch.randn(shape, dtype=dtype, device=device)

    def run() -> object:
        if kernel == "forward":
            with torch.no_grad():
                return attention(q, k, v, pattern, impl="triton")
        return torch.autograd.grad(attention(q, k, v, pattern, impl="triton"), (q, k, v), do)

    key = tuning_key(name, kernel, dtype, shape[3], pattern.kind)
    return Case(kernel, key, run, flash_launch.launch_parameters(kernel, q, pattern))


def _decode_case(
    name: str, kernel: str, pattern: Pattern, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Case:
    batch, heads, _, head_dim = shape
    new = 1 if kernel == "decode_one" else 4
    slots = min(pattern.image_len, pattern.ring_len + new - 1)
    q = torch.randn(batch, heads, new, head_dim, dtype=dtype, device=device)
    text = KeysValues(*torch.randn(2, batch, heads, pattern.text_len, head_dim, dtype=dtype, device=device))
    image = KeysValues(*torch.randn(2, batch, heads, slots, head_dim, dtype=dtype, device=device))

    def run() -> object:
        return attention_step(q, text, image, pattern, pattern.image_len - new, impl="triton")

    key = tuning_key(name, kernel, dtype, head_dim, pattern.kind)
    return Case(kernel, key, run, decode_launch.launch_parameters(q, pattern))


def _nearest_case(name: str, dtype: torch.dtype, dim: int, device: torch.device) -> Case:
    x, codebook = (torch.randn(n, dim, dtype=dtype, device=device) for n in NEAREST)
    present, of_one_time = nearest_triton.launch_parameters(x, codebook)
    key = tuning_key(name, "nearest", dtype, of_one_time, "whole" if dim <= of_one_time else "chunks")
    return Case("nearest", key, lambda: nearest_code(x, codebook, impl="triton"), present)


def best_launch(
    case: Case, milliseconds: Callable[[Callable[[], object]], float]
) -> tuple[Launch, dict[Launch, float]]:
    """The quickest of the candidates, and the time of each that fits the device."""
    times = {}
    for launch in dict.fromkeys([case.present, *CANDIDATES[case.kernel]]):
        with trying(case.kernel, launch):
            try:
                times[launch] = milliseconds(case.run)
            except (OutOfResources, PTXASError):
                continue  # more shared memory than there is, or registers too few to compile
    return min(times, key=times.__getitem__), times


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m kernels.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "float16", "bfloat16"), default=["bfloat16"])
    parser.add_argument("--head-dims", type=int, nargs="+", default=[64], help="of the codes, for nearest")
    parser.add_argument("--text-len", type=int, default=256)
    parser.add_argument("--grid", type=int, default=32, help="side of the image grid")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--heads", type=int, default=16)
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("no CUDA device to measure on")
    for case in cases(args, torch.device("cuda")):
        best, times = best_launch(case, lambda run: triton.testing.do_bench(run, return_mode="median"))
        path = store_tuned({case.key: best})
        gain = times[case.present] / times[best]
        print(f"{case.key}: {best}, {times[best]:.3f} ms, {gain:.2f}x what it was", flush=True)
    print(f"kept in {path}")


if __name__ == "__main__":
    main()
