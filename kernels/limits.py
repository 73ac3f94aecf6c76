"""What the Triton kernels take, told without importing Triton."""

import sys

import torch
from torch import Tensor
from torch.autograd import forward_ad

LEAST_CAPABILITY = (8, 0)  # bf16 in the matrix units, asynchronous copies
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256
MAX_NEW = 16  # queries of a decoding step: the rows of the matrix units' smallest tile


def check_limits(q: Tensor) -> None:
    """Raises ValueError for a dtype or a head dim that the kernels do not take."""
    if q.dtype not in DTYPES:
        raise ValueError(
            f"impl='triton' takes float32, float16 and bfloat16, not {str(q.dtype).removeprefix('torch.')}"
        )
    if q.shape[-1] > MAX_HEAD_DIM:
        raise ValueError(f"impl='triton' takes a head dim of at most {MAX_HEAD_DIM}, not {q.shape[-1]}")


def check_alike(q: Tensor, **others: Tensor) -> None:
    """Raises ValueError for a tensor of another shape, dtype or device than q: kernels would read beyond it."""
    for name, x in others.items():
        if x.shape != q.shape or x.dtype != q.dtype or x.device != q.device:
            raise ValueError(
                f"{name} is {x.dtype} {tuple(x.shape)} on {x.device}, expected {q.dtype} {tuple(q.shape)} on {q.device}"
            )


def suits_triton(q: Tensor) -> bool:
    """Whether impl="auto" means the Triton kernels of attention for tensors like q."""
    return q.shape[-1] <= MAX_HEAD_DIM and runs_triton(q)


def runs_triton(x: Tensor) -> bool:
    """Whether Triton kernels can run on x: its device and dtype."""
    # Triton is installed on Linux only.
    return x.is_cuda and sys.platform == "linux" and x.dtype in DTYPES and is_capable(x.device)


@torch.compiler.assume_constant_result  # compilers cannot look into the question
def is_capable(device: torch.device) -> bool:
    """Whether kernels can be compiled for a CUDA device."""
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def refuse_forward_mode(*tensors: Tensor) -> None:
    """Raises RuntimeError for tensors that carry forward-mode tangents, which an operator would drop in silence."""
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise RuntimeError("attention by impl='triton' has no forward-mode derivatives; impl='reference' has")


def needs_gradients(*tensors: Tensor) -> bool:
    """Whether what is computed from these has to be differentiable, which a decoding step is not."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
