"""The nearest of many codes, without a matrix of all distances: the public face, and how it is a PyTorch operator.

All of it is one thing, the largest of x·w_k + b_k over k:

    logits of a linear layer or 1x1 convolution    its weight and bias
    squared distance |x - c|^2                     c and -|c|^2 / 2, as |x|^2 is the same for all codes
    cosine                                         c / |c| and no bias, as |x| is the same for all codes

It is an operator of torch.library, `imagewords::argmax_linear`: compilers keep it whole. Implementations are in
nearest_triton.py (GPUs) and nearest_blocked.py (CPUs); the oracle of tests and benchmarks is here.

Legend: D values in each vector, K codes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.limits import runs_triton

Impl = Literal["auto", "triton", "blocked", "reference"]
OPERATOR_IMPLS = ("triton", "blocked", "reference")
IMPLS = ("auto", *OPERATOR_IMPLS)
Metric = Literal["euclidean", "cosine"]
METRICS = ("euclidean", "cosine")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def argmax_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, impl: Impl = "auto") -> Tensor:
    """The index of the largest x·weight[k] + bias[k] for each vector of x; of equal ones the lowest.

    Values of 16 bits count as exactly what they are, and products are compared in float32 (float64 for float64): the
    result is that of real arithmetic wherever the best two differ by more than float32's rounding. Autocast has no say.
    A score that is NaN counts as infinity, so the first of those is the index, as in torch.max. Where x or the weight
    is infinite, the index is one of 0..K-1, and which is left open. Not differentiable.

    Args:
        x: (..., D), any strides. A feature map (B, D, h, w) goes in as `x.movedim(1, -1)`, without a copy on a GPU.
        weight: (K, D), of another dtype if need be, but float64 only beside float64.
        bias: (K,), of a dtype as the weight may have; minus infinity rules a code out.
        impl: "triton" (CUDA devices), "blocked" (plain torch in pieces), "reference" (float64 and the whole matrix) or
            "auto": triton on CUDA devices that can run it, unless in float64; else blocked.

    Returns:
        (...) int64. Memory beside it: two values a vector and split of the codes ("triton"), or as `argmax_blocked`
        says and, of an x whose leading dimensions are not one stride apart, a copy ("blocked").

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, an unknown impl, or one that cannot run on this device.
    """
    _check(x, weight, bias)
    if impl not in IMPLS:
        raise ValueError(f"unknown impl {impl!r}, expected one of {', '.join(IMPLS)}")
    if impl == "auto":
        impl = "triton" if runs_triton(x) else "blocked"
    return _argmax_linear(x, weight, bias, impl)


def nearest_code(x: Tensor, codebook: Tensor, *, metric: Metric = "euclidean", impl: Impl = "auto") -> Tensor:
    """The index of the code nearest to each vector of x; of equally near ones the lowest.

    Args:
        x: (..., D), any strides, as for `argmax_linear`.
        codebook: (K, D).
        metric: "euclidean", or "cosine", by which a code of zeros is at right angles to everything.
        impl: as for `argmax_linear`, which also says what holds for precision and NaN.

    Returns:
        (...) int64.

    Raises:
        ValueError: as `argmax_linear`, or an unknown metric.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}, expected one of {', '.join(METRICS)}")
    _check(x, codebook, None)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        codes = codebook.to(torch.promote_types(codebook.dtype, torch.float32))
        if metric == "cosine":
            return argmax_linear(x, F.normalize(codes, dim=1), impl=impl)
        return argmax_linear(x, codebook, -0.5 * codes.square().sum(dim=1), impl=impl)


def argmax_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The oracle: x (..., D), weight (K, D), bias (K,) or None -> (...) int64, by all N x K scores in float64."""
    scores = x.double() @ weight.double().t()
    if bias is not None:
        scores += bias.double()
    return scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).max(dim=-1).indices


@torch.library.custom_op("imagewords::argmax_linear", mutates_args=())
def _argmax_linear(x: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    # Again, for who calls torch.ops.imagewords.argmax_linear: a kernel would read beyond tensors that do not fit.
    _check(x, weight, bias)
    if impl not in OPERATOR_IMPLS:
        raise ValueError(f"unknown impl {impl!r}, the operator expects one of {', '.join(OPERATOR_IMPLS)}")
    if impl == "triton" and x.dtype == torch.float64:
        raise ValueError("impl='triton' knows float32, float16 and bfloat16, these tensors are torch.float64")
    if x.numel() == 0:
        return x.new_empty(x.shape[:-1], dtype=torch.int64)
    with torch.autocast(x.device.type, enabled=False):
        if impl == "reference":
            return argmax_reference(x, weight, bias)
        if impl == "triton":
            from kernels.nearest_triton import argmax_triton

            return argmax_triton(x, weight, bias)
        from kernels.nearest_blocked import argmax_blocked

        return argmax_blocked(x.reshape(-1, x.shape[-1]), weight, bias).view(x.shape[:-1])


@_argmax_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.int64)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}, the codes {tuple(weight.shape)}, expected (..., D) and (K, D)")
    if 0 in weight.shape:
        raise ValueError(f"the codes have shape {tuple(weight.shape)}, expected at least 1 of at least 1 value")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}, expected ({len(weight)},), one a code")
    given = {"x": x, "the codes": weight} | ({} if bias is None else {"bias": bias})
    for name, tensor in given.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name}: dtype {tensor.dtype}, expected one of {', '.join(map(str, DTYPES))}")
        if tensor.device != x.device:
            raise ValueError(f"{name} on {tensor.device}, x on {x.device}")
        if (tensor.dtype == torch.float64) != (x.dtype == torch.float64):
            raise ValueError(f"{name}: {tensor.dtype}, x: {x.dtype}; float64 goes with float64 only")
