"""Curves as a PNG, drawn with Pillow: enough to see which of two lies below the other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#1f6fb4", "#d1571f", "#2e8b57", "#7a4fa3", "#b8860b", "#6b6b6b")
SIZE, LEFT, TOP, RIGHT, BOTTOM = (640, 400), 60, 30, 20, 45  # pixels


def draw_curves(curves: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> Image.Image:
    """One line a name through its points (x, y), of which there is at least one."""
    points = [point for curve in curves.values() for point in curve]
    (x_low, x_high), (y_low, y_high) = (span([point[axis] for point in points]) for axis in (0, 1))
    right, bottom = SIZE[0] - RIGHT, SIZE[1] - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return LEFT + across * (right - LEFT), bottom - up * (bottom - TOP)

    picture = Image.new("RGB", SIZE, "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    pen.line([(LEFT, TOP), (LEFT, bottom), (right, bottom)], fill="black")
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = x_low + share * (x_high - x_low), y_low + share * (y_high - y_low)
        pen.text((place(x, y_low)[0], bottom + 6), f"{x:.4g}", "black", font, anchor="mt")
        pen.text((LEFT - 6, place(x_low, y)[1]), f"{y:.4g}", "black", font, anchor="rm")
    pen.text(((LEFT + right) / 2, SIZE[1] - 6), x_label, "black", font, anchor="mb")
    pen.text((LEFT, 6), y_label, "black", font)
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        pen.line([place(*point) for point in curve], fill=colour, width=2)
        pen.text((right, TOP + 18 * number), name, colour, font, anchor="rt")
    return picture


def span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, high + 1)


def save_curves(path: Path, curves: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str, y_label: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_curves(curves, x_label, y_label).save(path)
