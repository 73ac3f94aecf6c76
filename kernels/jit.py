"""What the Triton kernels share: where they can run, and plain functions as device functions.

With TRITON_INTERPRET=1 in the environment before this is imported, kernels run in Triton's interpreter, on tensors of
any device and slowly: that is how they are tested without a GPU.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kernels.limits import LEAST_CAPABILITY, is_capable

POINTED_TO = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
}
INTERPRETED: bool = triton.knobs.runtime.interpret


class Call(NamedTuple):
    """One launch of a kernel: its arguments by name, compile-time ones included."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    max_registers: int = 0
    """A thread; 0: as many as the compiler takes."""

    def run(self, like: Tensor) -> None:
        """Launches it on the device of `like`; Triton by itself takes the current one, wherever its tensors are."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        if self.max_registers:
            options["maxnreg"] = self.max_registers
        with torch.cuda.device_of(like):
            self.kernel[self.grid](**self.arguments, **options)


class AotSpec(NamedTuple):
    """One kernel as its tables launch it, for triton.compile(ASTSource(...)) where there is no GPU.

    `signature` has every argument's type by name in order, tuples of types for tuples, "constexpr" for those of
    `constexprs`; `label` is a line of the resource table.
    """

    label: str
    kernel: Any
    signature: dict[str, Any]
    constexprs: dict[Any, Any]
    """By name, or by the path of an element of a tuple."""
    num_warps: int
    num_stages: int
    attrs: dict[tuple[int, ...], Any] = {}  # noqa: RUF012
    """Which arguments are multiples of 16, by path."""
    max_registers: int = 0


def aot_spec(label: str, call: Call) -> AotSpec:
    """`call` as Triton specialises it on its arguments. The tensors among them may lie on the meta device."""
    constexprs, attrs, signature = {}, {}, {}
    for i, parameter in enumerate(call.kernel.params):
        value = call.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constexprs[parameter.name] = "constexpr", value
        else:
            signature[parameter.name] = _specialised(value, (i,), constexprs, attrs)
    options = {name: getattr(call, name) for name in ("num_warps", "num_stages", "max_registers")}
    return AotSpec(label, call.kernel, signature, constexprs, attrs=attrs, **options)


def _specialised(value: Any, path: tuple[int, ...], constexprs: dict[Any, Any], attrs: dict[Any, Any]) -> Any:
    """Triton's type of an argument: None and 1 become constants, pointers and multiples of 16 are noted as such."""
    if isinstance(value, tuple):
        members = [_specialised(x, (*path, i), constexprs, attrs) for i, x in enumerate(value)]
        return type(value)(*members) if hasattr(value, "_fields") else tuple(members)
    if value is None or value is True or value is False or (isinstance(value, int) and value == 1):
        constexprs[path] = value
        return "constexpr"
    if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
        attrs[path] = [["tt.divisibility", 16]]
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32" if isinstance(value, float) else f"*{POINTED_TO[value.dtype]}"


@cache
def device_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, to be handed to a kernel as a constexpr and called there; the interpreter wants it as it is."""
    return function if INTERPRETED else triton.jit(function)


def check_device(x: Tensor) -> None:
    """Raises ValueError, saying why, where no kernel can run on x."""
    if INTERPRETED:
        return
    if not x.is_cuda:
        raise ValueError(
            f"Triton kernels run on CUDA devices, these tensors are on {x.device}; "
            "for a test without one, set TRITON_INTERPRET=1 in the environment before the first import"
        )
    if not is_capable(x.device):
        least, found = LEAST_CAPABILITY, torch.cuda.get_device_capability(x.device)
        raise ValueError(
            f"Triton kernels need compute capability {least[0]}.{least[1]}, {x.device} has {found[0]}.{found[1]}"
        )
