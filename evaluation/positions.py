"""A map of numbers on the token grid as a picture, with its scale beside it.

Knows numbers and PIL pictures only.
"""

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from grids import FONT_SIZE, GAP, INK, PAPER

SIDE = 384  # pixels that the map's longer side has at least
BAR = 20  # the scale's width
TICKS = 5  # numbers beside it
ANCHORS = ((22, 20, 66), (34, 84, 148), (28, 150, 138), (140, 196, 76), (252, 232, 92))  # low to high: ever lighter


def heat_map(values: np.ndarray, title: str) -> Image.Image:
    """Each of the values (h, w) as a square; dark is low, light is high, from the least to the greatest.

    The scale to the right names the colours, and the title, above, the unit. What is not finite is left white.
    """
    known = np.isfinite(values)
    finite = values[known] if known.any() else np.zeros(1)
    low, high = float(finite.min()), float(finite.max())
    factor = -(-SIDE // max(values.shape))
    shares = (np.where(known, values, low) - low) / ((high - low) or 1.0)
    paper = np.array(ImageColor.getrgb(PAPER), dtype=np.uint8)
    cells = Image.fromarray(np.where(known[..., None], colours(shares), paper))
    cells = cells.resize((cells.width * factor, cells.height * factor), Image.NEAREST)
    font = ImageFont.load_default(FONT_SIZE)
    line = sum(font.getmetrics())
    labels = [_label(high + (low - high) * tick / (TICKS - 1), high - low) for tick in range(TICKS)]
    left, top = cells.width + 4 * GAP, line + 2 * GAP
    text = left + BAR + GAP
    width = max(text + max(int(font.getlength(label)) for label in labels) + 1, int(font.getlength(title)) + 1) + GAP
    sheet = Image.new("RGB", (width, top + max(cells.height, TICKS * line) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((0, GAP), title, INK, font)
    sheet.paste(cells, (0, top))
    height = sheet.height - top - GAP
    sheet.paste(Image.fromarray(colours(np.linspace(1, 0, height))[:, None].repeat(BAR, axis=1)), (left, top))
    for tick, label in enumerate(labels):
        draw.text((text, top + (height - line) * tick / (TICKS - 1)), label, INK, font)
    return sheet


def colours(share: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] (...) -> uint8 (..., 3)."""
    places = np.linspace(0, 1, len(ANCHORS))
    channels = [np.interp(share, places, anchors) for anchors in zip(*ANCHORS, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _label(value: float, span: float) -> str:
    """With digits enough to tell the ticks apart."""
    digits = 2 if span == 0 else max(0, 2 - int(np.floor(np.log10(span))))
    return f"{value:.{min(digits, 6)}f}"
