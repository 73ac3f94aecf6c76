import io

import numpy as np
import pytest
from PIL import Image

from data.prepare import render
from data.prepare.render import Unusable, ink_box, render_cropped, render_frame, render_raster, renderer

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" {}>{}</svg>'
SQUARE = '<rect x="0" y="0" width="16" height="16" fill="red"/>'


def pixels(file):
    picture = Image.open(io.BytesIO(file))
    assert picture.format == "PNG"
    assert picture.mode == "RGB"
    return np.asarray(picture)


def test_renderer_is_named():
    assert renderer().startswith("resvg-py ")


def test_missing_renderer_says_how_to_install_it(monkeypatch):
    def missing(name):
        raise render.PackageNotFoundError(name)

    monkeypatch.setattr(render, "version", missing)
    with pytest.raises(ImportError, match=r"pip install 'resvg-py>=0.5'"):
        renderer()


def test_frame_fills_all_but_the_margin():
    found = pixels(render_frame(HEAD.format('viewBox="0 0 16 16"', SQUARE), 64))
    expected = np.full((64, 64, 3), 255)
    expected[2:62, 2:62] = (255, 0, 0)
    assert (found == expected).all()


@pytest.mark.parametrize(
    ("frame", "box"),
    [
        ('viewBox="0 0 16 16"', (2, 2, 62, 62)),
        ('viewBox="0 0 32 16"', (2, 17, 32, 47)),
        ('viewBox="0 0 16 32"', (17, 2, 47, 32)),
        ('viewBox="-16 0 32 16"', (32, 17, 62, 47)),
        ('viewBox="0,0,16,32"', (17, 2, 47, 32)),
        ('width="32" height="16"', (2, 17, 32, 47)),
        ("width='16px' height='32px'", (17, 2, 47, 32)),
        ('width="12pt" height="24pt"', (17, 2, 47, 32)),
    ],
)
def test_frame_keeps_the_shape(frame, box):
    picture = Image.open(io.BytesIO(render_frame(HEAD.format(frame, SQUARE), 64)))
    assert picture.size == (64, 64)
    assert ink_box(picture) == box


def test_lengths_in_millimetres_count():
    body = '<rect width="25.4mm" height="25.4mm"/>'
    assert ink_box(Image.open(io.BytesIO(render_frame(HEAD.format('width="192" height="192"', body), 64)))) == (
        2,
        2,
        32,
        32,
    )


def test_prefixed_svg_tag_is_seen_too():
    svg = '<s:svg xmlns:s="http://www.w3.org/2000/svg" viewBox="0 0 16 32"><s:rect width="16" height="16"/></s:svg>'
    assert ink_box(Image.open(io.BytesIO(render_frame(svg, 64)))) == (17, 2, 47, 32)


@pytest.mark.parametrize("body", ["", '<rect width="16" height="16" fill="white"/>', '<rect width="1" height="1"/>'])
def test_blank_is_refused(body):
    with pytest.raises(Unusable, match="blank"):
        render_frame(HEAD.format('viewBox="0 0 16 16"', body), 64)


def test_a_thin_line_is_not_blank():
    render_frame(HEAD.format('viewBox="0 0 16 16"', '<rect width="16" height="1"/>'), 64)


def test_broken_svg_is_refused():
    with pytest.raises(Unusable, match="does not render"):
        render_frame("<svg", 64)


@pytest.mark.parametrize("body", ['<rect x="90" y="2" width="{0}" height="{0}"/>', '<circle cx="50" cy="50" r="{0}"/>'])
@pytest.mark.parametrize("extent", [0.5, 5, 10])
def test_cropped_drawing_fills_the_picture_wherever_it_lies(body, extent):
    svg = HEAD.format('viewBox="0 0 100 100"', body.format(extent))
    box = ink_box(Image.open(io.BytesIO(render_cropped(svg, 64))))
    assert box == pytest.approx((2, 2, 62, 62), abs=1)


def test_tiny_drawing_is_drawn_again_not_blown_up():
    tiny = HEAD.format('viewBox="0 0 400 400"', '<path d="M10 10 h8 v8 z"/>')
    large = HEAD.format('viewBox="10 10 8 8"', '<path d="M10 10 h8 v8 z"/>')
    difference = np.abs(pixels(render_cropped(tiny, 64)).astype(int) - pixels(render_frame(large, 64)))
    assert difference.mean() < 2


def test_cropped_blank_and_thin_are_refused():
    with pytest.raises(Unusable, match="blank"):
        render_cropped(HEAD.format('viewBox="0 0 16 16"', ""), 64)
    with pytest.raises(Unusable, match="long and thin"):
        render_cropped(HEAD.format('viewBox="0 0 100 100"', '<rect width="100" height="10"/>'), 64)


def test_raster_lies_on_white(fakes):
    half = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    half.paste((0, 0, 255, 255), (0, 0, 16, 32))
    file = io.BytesIO()
    half.save(file, format="WEBP", lossless=True)
    found = pixels(render_raster(file.getvalue(), 32))
    assert (found[:, :16] == (0, 0, 255)).all()
    assert (found[:, 16:] == 255).all()


def test_transparent_colour_does_not_bleed_when_resized():
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))  # black, but not to be seen
    picture.paste((255, 0, 0, 255), (16, 16, 48, 48))
    file = io.BytesIO()
    picture.save(file, format="PNG")
    found = pixels(render_raster(file.getvalue(), 32))
    assert found[..., 0].min() >= 250  # red and white only: no dark fringe


def test_raster_that_is_none(fakes):
    with pytest.raises(Unusable, match="does not open"):
        render_raster(b"not a picture", 32)
    with pytest.raises(Unusable, match="does not open"):
        render_raster(fakes.noise(0, (64, 64))[:500], 32)
