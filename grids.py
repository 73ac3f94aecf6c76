"""Pictures side by side: samples with captions, reconstructions under originals; files that say what they are.

Knows PIL pictures and nothing of models. Glyphs are those of Pillow's own font: Latin letters, boxes for most others.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from whole_files import written_beside

GAP = 4  # pixels between pictures
MIN_SIDE = 128  # smaller pictures are enlarged by a whole factor: a caption needs room under them
FONT_SIZE = 12
MAX_LINES = 4  # of a caption; the rest becomes an ellipsis
PAPER, INK = "white", "black"
STAGE_MS, LAST_STAGE_MS = 200, 2000  # of a GIF


def captioned_grid(groups: Sequence[tuple[str, Sequence[Image.Image]]], columns: int = 8) -> Image.Image:
    """Groups of pictures, each with its caption below, in rows of `columns` pictures.

    Groups of one picture thus stand side by side; a group of `columns` pictures fills a row, a larger one several.

    Args:
        groups: (caption, pictures) each, at least one; pictures of one size, at least one a group.
        columns: at least 1.
    """
    width = min(columns, max(len(pictures) for _, pictures in groups))  # of a group, in pictures
    blocks = [_captioned(_tile(_enlarged(pictures), width), caption) for caption, pictures in groups]
    return _tile(blocks, min(columns // width, len(blocks)))


def reconstruction_grid(images: Sequence[Image.Image], recon: Sequence[Image.Image], columns: int = 8) -> Image.Image:
    """Originals above their reconstructions, `columns` pairs a row; all of one size, as many of each."""
    pairs = [_tile(pair, 1) for pair in zip(images, recon, strict=True)]
    return _tile(pairs, min(columns, len(pairs)))


def save_png(picture: Image.Image, path: Path, text: Mapping[str, str] | None = None) -> None:
    """Writes a PNG with `text` in its metadata, as UTF-8; beside its place, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = PngInfo()
    for name, value in (text or {}).items():
        metadata.add_itxt(name, value)
    with written_beside(path) as part:
        picture.save(part, format="PNG", pnginfo=metadata)


def save_gif(stages: Sequence[Image.Image], path: Path, text: Mapping[str, str] | None = None) -> None:
    """Writes pictures of one size, at least one, as a GIF that shows one after the other, over and over, the last one
    for longest; `text` as JSON in its comment. Beside its place, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(path) as part:
        stages[0].save(
            part,
            format="GIF",
            save_all=True,
            append_images=stages[1:],
            duration=[STAGE_MS] * (len(stages) - 1) + [LAST_STAGE_MS],
            loop=0,
            comment=json.dumps(dict(text or {})).encode(),
        )


def _tile(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one width on a sheet as wide as `columns` of them; each row is as high as its highest one."""
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    width = pictures[0].width
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, sum(heights) + GAP * (len(rows) - 1)), PAPER)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * (width + GAP), top))
        top += height + GAP
    return sheet


def _enlarged(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    factor = -(-MIN_SIDE // pictures[0].width)
    return [picture.resize((picture.width * factor, picture.height * factor), Image.NEAREST) for picture in pictures]


def _captioned(picture: Image.Image, caption: str) -> Image.Image:
    font = ImageFont.load_default(FONT_SIZE)
    lines, line_height = wrap(caption, font, picture.width), sum(font.getmetrics())
    sheet = Image.new("RGB", (picture.width, picture.height + GAP + line_height * len(lines) + GAP), PAPER)
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((0, picture.height + GAP + number * line_height), line, INK, font)
    return sheet


def wrap(caption: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """At most MAX_LINES lines of at most `width` pixels; words break where they alone are wider."""
    lines = [""]
    for word in caption.split():
        if len(lines) > MAX_LINES:  # a caption may have a megabyte
            break
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            if len(lines) > MAX_LINES:
                break
            lines[-1] += letter
    if len(lines) <= MAX_LINES:
        return lines
    last = lines[MAX_LINES - 1]
    while last and font.getlength(f"{last}…") > width:
        last = last[:-1]
    return [*lines[: MAX_LINES - 1], f"{last}…"]
