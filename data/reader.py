"""Reads the objects off a drawing, by rules alone: nothing in here is learned.

Each object is found by its distance from the background, which is fitted along the edges of the picture, where drawings
keep free. Its shape is read by synthesis: the object's soft mask, brought to a standard place and area, is compared
with every shape rendered the same way. Area and centroid survive the blur of an image tokenizer, which corners do not.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from data.outlines import coverage
from data.scene import COLOURS, SHAPES, SIZES
from data.shapes import EXTENT, TURN
from data.tints import RGB, lab

READING_SIZE = 128  # larger pictures are reduced: more pixels would say nothing new
BORDER = 2 / 64  # width of the frame the background is fitted to, in sides of the picture
MIN_CONTRAST = 14.0  # CIELAB distance from the background below which nothing is seen: textures stay under it
SEPARATION = 0.4  # two objects have grown together where the contrast falls below this part of their strongest
MIN_AREA = 0.006  # of the picture; the smallest crescent has twice as much
MIN_FIT = 0.6  # overlap with the best shape below which a blob is no shape at all

PURE = 90  # percentile of contrast above which an object's pixels are taken for unmixed
# RGB to luma and two chroma axes, these at a third: picture codecs of all kinds blur them most.
LUMA_CHROMA = np.array([(0.299, 0.587, 0.114), (-0.06, -0.12, 0.18), (0.18, -0.15, -0.03)]).T

Mask = np.ndarray  # (H, W) float in [0, 1]


@dataclass(frozen=True)
class Found:
    """An object read off a picture; `shape` and `size` are None where it resembles no shape.

    `x`, `y`: centroid, `extent`: longest side, in sides of the picture; `fit`: overlap with the shape named, 0 to 1.
    """

    colour: str
    shape: str | None
    size: str | None
    x: float
    y: float
    extent: float
    fit: float


def read(image: Image.Image | Tensor | np.ndarray) -> list[Found]:
    """The objects of a picture, largest first.

    Args:
        image: a square PIL picture, or a float tensor or array (3, H, W) in [0, 1].

    Raises:
        ValueError: the picture is not square or has not three channels in front.
    """
    pixels = _pixels(image)  # (H, W, 3)
    background = _background(pixels)
    contrast = np.linalg.norm(lab(_smooth(pixels)) - lab(background), axis=-1)  # (H, W)
    found = [_read_object(pixels, background, contrast, region) for region in _regions(contrast)]
    return sorted(found, key=lambda thing: -thing.extent)


def _smooth(pixels: np.ndarray) -> np.ndarray:
    """Each pixel averaged with its neighbours (1 2 1), against noise; the frame stays as it is."""
    smooth = pixels.copy()
    smooth[1:-1] = (pixels[:-2] + 2 * pixels[1:-1] + pixels[2:]) / 4
    smooth[:, 1:-1] = (smooth[:, :-2] + 2 * smooth[:, 1:-1] + smooth[:, 2:]) / 4
    return smooth


def _pixels(image: Image.Image | Tensor | np.ndarray) -> np.ndarray:
    if isinstance(image, Tensor):
        image = image.detach().to("cpu", torch.float32).numpy()
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"picture of shape {tuple(image.shape)}; expected (3, H, W) with values in [0, 1]")
        image = Image.fromarray(np.round(255 * np.clip(image.transpose(1, 2, 0), 0, 1)).astype(np.uint8))
    if image.width != image.height:
        raise ValueError(f"picture of {image.width} x {image.height} pixels; expected a square one")
    image = image.convert("RGB")
    if image.width > READING_SIZE:
        image = image.resize((READING_SIZE, READING_SIZE), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float64) / 255


def _background(pixels: np.ndarray) -> np.ndarray:
    """The plane through the frame of the picture, fitted twice: without what stands out the first time."""
    size = len(pixels)
    line = (np.arange(size) + 0.5) / size - 0.5
    plane = np.stack([np.ones((size, size)), *np.meshgrid(line, line)], axis=-1)  # (H, W, 3)
    width = max(1, round(BORDER * size))
    frame = np.ones((size, size), dtype=bool)
    frame[width:-width, width:-width] = False
    for _ in range(2):
        fitted = plane @ np.linalg.lstsq(plane[frame], pixels[frame], rcond=None)[0]
        error = np.abs(pixels - fitted).max(axis=-1)
        frame &= error <= max(0.02, 2.5 * np.median(error[frame]))
    return np.clip(fitted, 0, 1)


def _regions(contrast: np.ndarray) -> list[np.ndarray]:
    """Boolean masks of the objects: connected and large enough, cut apart where they touch by their blur."""
    least = MIN_AREA * contrast.size
    regions = []
    for seed in _components(contrast > MIN_CONTRAST, least):
        peak = np.percentile(contrast[seed], PURE)
        parts = _components(seed & (contrast > SEPARATION * peak), least)
        regions += parts if len(parts) > 1 else [seed]
    return regions


def _components(mask: np.ndarray, least: float) -> list[np.ndarray]:
    """The 8-connected parts of a boolean mask that have at least so many pixels, as masks of the same shape."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        rows = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
        spread = np.where(mask, np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]), 0)
        # A label is the position of the pixel it comes from: taking over that pixel's label as well makes the labels
        # run through a component in about log(length) rounds instead of length.
        spread = np.maximum(spread, np.concatenate([[0], spread.ravel()])[spread])
        if np.array_equal(spread, labels):
            break
        labels = spread
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    return [labels == label for label in np.flatnonzero(areas >= least)]


def _read_object(pixels: np.ndarray, background: np.ndarray, contrast: np.ndarray, region: np.ndarray) -> Found:
    size = len(pixels)
    colour = _colour(pixels[region], contrast[region])
    mask = _unmix(pixels, background, np.array(RGB[colour]) / 255, region)
    if mask.sum() < 0.2 * region.sum():  # its colour does not lead from the background to these pixels
        mask = region.astype(float)
    seen, (x, y), area = _standardise(mask)
    shape, fit = _best_shape(seen)
    extent = float(np.sqrt(area / _unit_area(shape))) / size
    nearest = min(SIZES, key=lambda name: abs(np.log(extent / EXTENT[name])))
    known = fit >= MIN_FIT
    return Found(colour, shape if known else None, nearest if known else None, x / size, y / size, extent, fit)


def _colour(pixels: np.ndarray, contrast: np.ndarray) -> str:
    """The name of an object's colour, from its purest pixels (of pixels (n, 3) and their contrasts (n,)): those least
    mixed with the background."""
    ink = np.median(pixels[contrast >= np.percentile(contrast, PURE)], axis=0)
    return COLOURS[int(np.argmin(np.linalg.norm(_palette() - lab(ink), axis=-1)))]


def _unmix(pixels: np.ndarray, background: np.ndarray, ink: np.ndarray, region: np.ndarray) -> Mask:
    """How much of each pixel is ink, where the rest is background.

    `ink` is the pure colour of the name, not the one measured: in a small blurred object no pixel may be pure.
    """
    # The fading edge belongs to the object, too; two pixels more cannot reach the next one.
    support = np.asarray(Image.fromarray(region).convert("L").filter(ImageFilter.MaxFilter(5))) > 0
    direction = (ink - background) @ LUMA_CHROMA  # (H, W, 3)
    share = (((pixels - background) @ LUMA_CHROMA) * direction).sum(-1) / np.maximum((direction**2).sum(-1), 1e-6)
    return np.where(support, np.clip(share, 0, 1), 0.0)


@cache
def _palette() -> np.ndarray:
    return lab(np.array([RGB[colour] for colour in COLOURS]) / 255)


# ---- shapes by synthesis

STANDARD = 32  # side of the standard window in pixels
WINDOW = 2.3  # its width in square roots of the mask's area
BLURS = (0.0, 1.0, 1.8, 2.6)  # standard deviations, in pixels of the standard window
TURNS = tuple(np.linspace(-TURN, TURN, 5))


def _standardise(mask: Mask) -> tuple[Mask, tuple[float, float], float]:
    """The mask resampled around its centroid to a standard area, with that centroid and the area in pixels."""
    area = mask.sum()
    grid = np.arange(len(mask)) + 0.5
    x, y = float(mask.sum(axis=0) @ grid / area), float(mask.sum(axis=1) @ grid / area)
    half = WINDOW * float(np.sqrt(area)) / 2
    box = (x - half, y - half, x + half, y + half)
    window = Image.fromarray(mask.astype(np.float32)).transform(
        (STANDARD, STANDARD), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR
    )
    return np.asarray(window), (x, y), float(area)


def _best_shape(seen: Mask) -> tuple[str, float]:
    """The shape whose rendering overlaps most with a standardised mask, and their soft intersection over union."""
    names, bank = _bank()
    overlap = np.minimum(bank, seen).sum(axis=(1, 2)) / np.maximum(bank, seen).sum(axis=(1, 2))
    best = int(np.argmax(overlap))
    return names[best], float(overlap[best])


@cache
def _bank() -> tuple[tuple[str, ...], np.ndarray]:
    """Every shape in a few turns and blurs, standardised: names, and masks (renderings, STANDARD, STANDARD)."""
    names, masks = [], []
    for shape in SHAPES:
        for turn in TURNS:
            for blur in BLURS:
                sharp = _render(shape, turn).filter(ImageFilter.GaussianBlur(blur * _render_scale(shape)))
                names.append(shape)
                masks.append(_standardise(np.asarray(sharp) / 255)[0])
    return tuple(names), np.stack(masks)


_RENDER_SIZE, _RENDER_EXTENT = 128, 0.5


def _render(shape: str, turn: float = 0.0) -> Image.Image:
    patch, corner = coverage(shape, (0.5, 0.5), _RENDER_EXTENT, turn, _RENDER_SIZE)
    canvas = Image.new("L", (_RENDER_SIZE, _RENDER_SIZE))
    canvas.paste(patch, corner)
    return canvas


def _render_scale(shape: str) -> float:
    """Pixels of a rendering in a pixel of the standard window."""
    return WINDOW * float(np.sqrt(_unit_area(shape))) * _RENDER_EXTENT * _RENDER_SIZE / STANDARD


@cache
def _unit_area(shape: str) -> float:
    """The area of a shape whose extent is 1."""
    return float(np.asarray(_render(shape)).sum()) / 255 / (_RENDER_EXTENT * _RENDER_SIZE) ** 2
