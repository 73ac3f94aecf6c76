"""SVG or raster bytes -> a PNG of one RGB picture on white; blank and broken ones are refused with the reason."""

import io
import re
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from PIL import Image, UnidentifiedImageError

MARGIN = 1 / 32  # of the side, left white around drawings that fill their frame
MIN_INK = 0.01  # share of pixels that differ from white; below, nothing is to be seen
INK_THRESHOLD = 12  # of 255: weaker than this is antialiasing or paper
WHITE = (255, 255, 255)
DOTS_PER_INCH = 96.0  # as CSS has it; unless told, resvg-py takes "210mm" for nothing
MAX_ASPECT = 8  # of a cropped drawing
VIEW_BOX = re.compile(r"viewBox\s*=\s*[\"']\s*(?:[-+.\deE]+[\s,]+){2}(\d+\.?\d*)[\s,]+(\d+\.?\d*)")
SIDES = re.compile(r"\s(width|height)\s*=\s*[\"']\s*(\d+\.?\d*)")
LARGEST_RENDER = 4096  # pixels; what a tiny drawing on a large page may be enlarged to


class Unusable(ValueError):
    """A picture that does not belong in the set; the message is the reason counted in the report."""


def renderer() -> str:
    """Name and version of the SVG renderer; ImportError that says how to install it."""
    try:
        return f"resvg-py {version('resvg-py')}"
    except PackageNotFoundError as missing:
        raise ImportError(
            "drawing SVG needs resvg-py: pip install 'resvg-py>=0.5' (the extra \"prepare\")"
        ) from missing


def svg_picture(svg: str, side: int) -> Image.Image:
    """The whole frame of `svg`, its larger side scaled to `side` pixels, RGBA. System fonts are not used."""
    import resvg_py

    try:
        file = resvg_py.svg_to_bytes(
            svg_string=svg, skip_system_fonts=True, dpi=DOTS_PER_INCH, **_longer_side(svg, side)
        )
    except ValueError as broken:
        raise Unusable("svg does not render") from broken
    return Image.open(io.BytesIO(file)).convert("RGBA")


def _longer_side(svg: str, side: int) -> dict[str, int]:
    """resvg keeps the shape when one side is given: which one must be."""
    tag = re.search(r"<(?:\w+:)?svg\b[^>]*>", svg)
    box = tag and VIEW_BOX.search(tag[0])
    if box:
        width, height = float(box[1]), float(box[2])
    else:
        found = dict(SIDES.findall(tag[0])) if tag else {}
        width, height = (float(found.get(name, 1)) for name in ("width", "height"))
    return {"height" if height > width else "width": side}


def on_white_page(picture: Image.Image) -> Image.Image:
    """An RGBA picture laid on white, mode RGB."""
    page = Image.new("RGBA", picture.size, (*WHITE, 255))
    page.alpha_composite(picture)
    return page.convert("RGB")


def ink_box(picture: Image.Image) -> tuple[int, int, int, int] | None:
    """Smallest box around what differs from white, None where nothing does. `picture` is RGB."""
    return _ink(picture).getbbox()


def _ink(picture: Image.Image) -> Image.Image:
    darkest = np.asarray(picture).min(axis=2)  # (H, W)
    return Image.fromarray((darkest < 255 - INK_THRESHOLD).astype(np.uint8) * 255)


def on_white(picture: Image.Image, side: int, margin: float = 0.0) -> Image.Image:
    """`picture` scaled to fit and centred on a white square of `side` pixels, mode RGB."""
    room = side - 2 * round(side * margin)
    picture = picture.convert("RGBA")
    scale = room / max(picture.size)
    size = tuple(max(1, round(edge * scale)) for edge in picture.size)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (side, side), (*WHITE, 255))
    canvas.alpha_composite(picture, ((side - size[0]) // 2, (side - size[1]) // 2))
    return canvas.convert("RGB")


def refuse_blank(picture: Image.Image) -> None:
    """Unusable where fewer than `MIN_INK` of the pixels differ from white."""
    ink = np.asarray(_ink(picture)).mean() / 255
    if ink < MIN_INK:
        raise Unusable("blank or almost")


def render_frame(svg: str, side: int) -> bytes:
    """PNG of an emoji: its own frame is kept, for the sets chose their sizes with care."""
    picture = on_white(svg_picture(svg, side - 2 * round(side * MARGIN)), side, MARGIN)
    refuse_blank(picture)
    return png(picture)


def render_cropped(svg: str, side: int) -> bytes:
    """PNG of clip art: what is drawn fills the picture, wherever it lies on its page and however small."""
    page = on_white_page(svg_picture(svg, 2 * side))
    box = ink_box(page)
    if box is None:
        raise Unusable("blank or almost")
    width, height = box[2] - box[0], box[3] - box[1]
    if min(width, height) * MAX_ASPECT < max(width, height):
        raise Unusable("too long and thin")
    if max(width, height) < side:
        zoom = min(side / max(width, height), LARGEST_RENDER / (2 * side))
        page = on_white_page(svg_picture(svg, round(2 * side * zoom)))
        box = ink_box(page)
        assert box is not None  # the same drawing, larger
    picture = on_white(page.crop(box), side, MARGIN)
    refuse_blank(picture)
    return png(picture)


def render_raster(content: bytes, side: int) -> bytes:
    """PNG of what is pixels already (webp, png), on white."""
    try:
        picture = on_white(Image.open(io.BytesIO(content)), side)
    except (UnidentifiedImageError, OSError) as broken:
        raise Unusable("picture does not open") from broken
    refuse_blank(picture)
    return png(picture)


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
