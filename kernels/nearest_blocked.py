"""The largest x·w_k + b_k of each row of x on a CPU: block by block, so that no N x K matrix is ever in memory.

Where the CPU has matrix units for bfloat16 (AMX) and vectors are long, a product in bfloat16 comes first. It is off by
no more than a bound that holds for every input, so all codes but those within twice the bound of the largest are ruled
out; the few that are left are compared in float64. Rows where many are left, or where the bound does not hold (NaN,
infinities, numbers near the ends of the range), are computed in full like everything else.

Legend: N rows of x, K codes (rows of the weight), D values in each; n rows of one block, C candidates.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

# Measured on a Xeon with AMX and 2 MB of L2 cache, one thread, at N = 1024..32768, K = 8192 (kernels/README.md): the
# products of a block are to stay in the cache, but those of few rows are slow ones.
BLOCK_ROWS, BLOCK_CODES = 128, 2048
NARROWING_BLOCK_VALUES, NARROWING_LEAST_ROWS = 2**22, 256

NARROWING_LEAST_DIM = 32  # below, the products are not what takes the time
NARROWING_LEAST_WEIGHT = 2**17  # values in the weight: below, there is nothing to save
GROUP = 16  # codes whose largest product is looked at before each of theirs is
MOST_CANDIDATES = 32  # groups, and codes, left in a row that is decided from its candidates
CACHED_VALUES = 2**15  # that are rounded, or multiplied in float64, at once

BFLOAT16_ROUNDING = 2.0**-8  # most that it is off by, relative: half the distance of neighbours
SAFE_NORMS = (1e-12, 1e12)  # of rows, whose squares neither vanish nor overflow in float32


def argmax_blocked(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (N, D), weight (K, D), bias (K,) or None -> (N,) int64, computed in float32, or float64 of float64 tensors.

    Takes, beside copies of x and of the weight where their dtype is another, memory for 2^18 products; with the
    narrowing pass for max(2^22, 256 K) in bfloat16, the weight in bfloat16 and the rows that it leaves undecided.
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if not _narrowing_pays(weight):
        return _argmax_exact(x, weight, bias)
    indices, undecided = _argmax_narrowed(x, weight, bias)
    rows = undecided.nonzero().squeeze(1)
    if len(rows):
        indices[rows] = _argmax_exact(x[rows], weight, bias)
    return indices


def _argmax_exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    indices = torch.empty(len(x), dtype=torch.int64, device=x.device)
    buffer = weight.new_empty(max(2, min(BLOCK_ROWS, len(x))), min(BLOCK_CODES, len(weight)))
    with _full_precision(x.device):
        for rows, found in zip(x.split(BLOCK_ROWS), indices.split(BLOCK_ROWS), strict=True):
            # The product of one vector is another routine, in which equal codes come out differently, by rounding.
            rows = rows.to(weight.dtype).expand(max(2, len(rows)), -1)
            found.copy_(_argmax_of_rows(rows, weight, bias, buffer[: len(rows)])[: len(found)])
    return indices


def _argmax_of_rows(rows: Tensor, weight: Tensor, bias: Tensor | None, products: Tensor) -> Tensor:
    """`products` (n, codes of a block) is to be written over."""
    n_codes, size = len(weight), products.shape[1]
    best = rows.new_full((len(rows),), -torch.inf)
    best_indices = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for start in range(0, n_codes, size):
        # The last block overlaps the one before: in a smaller one, equal codes could come out differently.
        start = min(start, n_codes - size)
        codes = weight[start : start + size].t()
        if bias is None:
            torch.mm(rows, codes, out=products)
        else:
            torch.addmm(bias[start : start + size], rows, codes, out=products)
        top, indices = _first_largest(products)
        better = top > best  # of equal ones the earlier stays
        best_indices = torch.where(better, indices + start, best_indices)
        best = torch.where(better, top, best)
    return best_indices


def _first_largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    # Not argmax, which takes twice the time on CPUs; of equal ones, both name the first.
    top = scores.max(dim=1)
    if not top.values.isfinite().all():
        top = scores.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).max(dim=1)
    return top.values, top.indices


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Where torch.set_float32_matmul_precision has float32 products computed in fewer bits: not these.

    PyTorch knows no precision of one product, so the setting of the whole process is changed for as long and put back:
    products of other threads meanwhile are exact too, two threads in here may undo each other's, and what another
    thread sets meanwhile is lost.
    """
    settings = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul
    if (before := settings.fp32_precision) not in ("tf32", "bf16"):
        yield
        return
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


# ---- the narrowing pass


def _narrowing_pays(weight: Tensor) -> bool:
    """Of the weight alone, so that a row's result is the same in any number of rows."""
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.shape[1] >= NARROWING_LEAST_DIM
    return fits and weight.numel() >= NARROWING_LEAST_WEIGHT and _has_matrix_units()


def _has_matrix_units() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


class _Rounded(NamedTuple):
    """Rows in bfloat16, their norms, and the norms of what rounding took from them."""

    values: Tensor
    norm: Tensor
    error: Tensor


def _argmax_narrowed(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(N,) indices, and (N,) bool: those that are not decided."""
    indices, undecided = torch.zeros(len(x), dtype=torch.int64), torch.ones(len(x), dtype=torch.bool)
    codes = _rounded_codes(weight, bias)
    n_rows = min(len(x), max(NARROWING_LEAST_ROWS, NARROWING_BLOCK_VALUES // len(codes.values)))
    products = codes.values.new_empty(n_rows, len(codes.values))  # once: fresh memory takes as long as the products
    for start in range(0, len(x), n_rows):
        block = x[start : start + n_rows].float()
        candidates, left = _candidates(_rounded_rows(block, codes.values.shape[1]), codes, products[: len(block)])
        indices[start : start + n_rows] = _best(candidates, block, weight, bias)
        undecided[start : start + n_rows] = left
    return indices, undecided


def _rounded(rows: Tensor, n_rows: int, width: int) -> _Rounded:
    """Filled up with zeros to (n_rows, width)."""
    dim = rows.shape[1]
    values = rows.new_empty(n_rows, width, dtype=torch.bfloat16)
    values[:, dim:] = 0
    values[len(rows) :] = 0
    norm, error = rows.new_empty(2, len(rows)).unbind()
    for start in range(0, len(rows), step := max(1, CACHED_VALUES // dim)):
        part = slice(start, min(start + step, len(rows)))
        values[part, :dim] = rows[part]
        torch.linalg.vector_norm(rows[part], dim=1, out=norm[part])
        torch.linalg.vector_norm(rows[part] - values[part, :dim].float(), dim=1, out=error[part])
    return _Rounded(values, norm, error)


def _rounded_rows(x: Tensor, width: int) -> _Rounded:
    """With ones in the columns that hold the codes' bias."""
    rounded = _rounded(x, len(x), width)
    rounded.values[:, x.shape[1] : x.shape[1] + 3] = 1
    return rounded


def _rounded_codes(weight: Tensor, bias: Tensor | None) -> _Rounded:
    """A multiple of GROUP codes, those added at -inf; the bias in three pieces, whose sum is exact."""
    n_codes, dim = weight.shape
    codes = _rounded(weight, -(-n_codes // GROUP) * GROUP, -(-(dim + 3) // 32) * 32)
    codes.values[n_codes:, dim] = -torch.inf
    rest = weight.new_zeros(n_codes) if bias is None else bias
    for piece in codes.values[:n_codes, dim : dim + 3].unbind(1):
        piece.copy_(rest)
        rest = torch.where(piece.isfinite(), rest - piece, 0.0)
    return codes


def _candidates(x: _Rounded, codes: _Rounded, products: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Rows and codes (C,) of the candidates, all those of a row or none, and (n,) bool: the rows that have none."""
    torch.mm(x.values, codes.values.t(), out=products)
    groups = products.view(len(products), GROUP, -1)  # group g: codes g, g + K / GROUP, ...
    tops = groups.amax(dim=1).float()
    threshold = _threshold(tops.amax(dim=1), x, codes)
    holds = threshold.isfinite() & _safe(x.norm) & _safe(codes.norm.amax())
    threshold = threshold.where(holds, torch.inf)[:, None]
    rows, group = _few_a_row(*(tops >= threshold).nonzero(as_tuple=True), holds)
    which, member = (groups[rows, :, group] >= threshold[rows]).nonzero(as_tuple=True)
    candidates = _few_a_row(rows[which], member * groups.shape[2] + group[which], holds)
    return candidates, ~holds


def _few_a_row(rows: Tensor, items: Tensor, holds: Tensor) -> tuple[Tensor, Tensor]:
    """Without the rows that have too many, for which `holds` is no longer set."""
    holds &= rows.bincount(minlength=len(holds)) <= MOST_CANDIDATES
    kept = holds[rows]
    return rows[kept], items[kept]


def _threshold(top: Tensor, x: _Rounded, codes: _Rounded) -> Tensor:
    """(n,): a code whose product in bfloat16 is below this is not the best one.

    A product p in bfloat16 is within E + u |p| of the exact score. E: |x.w - x'.w'| <= |x - x'| |w| + |x'| |w - w'| for
    the rounded x' and w', and sums of `width` terms in float32. u: the same sums' share of the bias, and the rounding
    of p itself. So the best exact score is at least top - E - u |top|, and what cannot reach it is ruled out.
    """
    norm, error = codes.norm.amax(), codes.error.amax()
    summing = x.values.shape[1] * 2.0**-22  # twice to four times what any order of summing can be off by
    rounded_norm = x.norm + x.error
    largest_error = 1.02 * (x.error * norm + rounded_norm * error) + 2 * summing * rounded_norm * (norm + error)
    share = 1.02 * (BFLOAT16_ROUNDING + summing)
    to_reach = top - share * top.abs() - 2 * largest_error
    return to_reach - 2 * share * to_reach.abs()


def _safe(norm: Tensor) -> Tensor:
    return (norm > SAFE_NORMS[0]) & (norm < SAFE_NORMS[1])


def _best(candidates: tuple[Tensor, Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(n,) indices: of each row's candidates the one of the largest score in float64, the lowest of equal ones."""
    rows, indices = candidates
    size = max(1, CACHED_VALUES // x.shape[1])
    parts = zip(rows.split(size), indices.split(size), strict=True)
    scores = torch.cat([(x[row].double() * weight[index].double()).sum(dim=1) for row, index in parts])
    if bias is not None:
        scores += bias[indices]
    best = scores.new_full((len(x),), -torch.inf).scatter_reduce(0, rows, scores, "amax")
    is_best = scores == best[rows]
    found = torch.full((len(x),), len(weight))
    return found.scatter_reduce(0, rows[is_best], indices[is_best], "amin")
