from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import completion
from completion import FirstRows, Original, Place, Unmasked, Variation, drawn_unaware, open_original
from data.transforms import to_pil_images
from pipeline import repeat
from transformer.decoding import UNKNOWN
from transformer.sampling import SamplingConfig

PLACE = Place((16, 16), 16, (4, 4))
SEED = torch.zeros(1, dtype=torch.int64)


def photo(width: int = 20, height: int = 16, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def mask(width: int = 16, height: int = 16, white: tuple[int, int, int, int] | None = None) -> Image.Image:
    """Black, with a white box: left, top, right and bottom pixel, all four white."""
    image = Image.new("L", (width, height), 0)
    if white is not None:
        ImageDraw.Draw(image).rectangle(white, fill=255)
    return image


@pytest.fixture
def tokens_of(pipeline, monkeypatch):
    """Draws pictures as `pipeline` does; returns their tokens (B, h, w)."""
    seen = []
    decode = pipeline.image_tokenizer.decode
    monkeypatch.setattr(pipeline.image_tokenizer, "decode", lambda indices: seen.append(indices) or decode(indices))

    def tokens_of(*args, **kwargs) -> torch.Tensor:
        seen.clear()
        pipeline(*args, **kwargs)
        return torch.cat(seen)

    return tokens_of


RULES = [FirstRows(8), Unmasked(mask(white=(5, 5, 9, 9))), Variation(0.5)]


@pytest.mark.parametrize("rule", RULES)
def test_kept_tokens_are_the_pictures_and_the_others_differ_with_the_seed(pipeline, tokens_of, rule):
    original = Original.of(pipeline, photo(16), rule)
    assert torch.equal(original.tokens, pipeline.encode(photo(16)))
    seeds = torch.arange(3, 11)
    keep = rule.keep(original.place, seeds)
    assert 0 < keep.sum() < keep.numel()
    tokens = tokens_of("a red circle", n=8, seed=3, given=original)
    assert torch.equal(tokens[keep], original.tokens.expand(8, -1, -1)[keep])
    assert (tokens != original.tokens).any(dim=0)[~keep.all(dim=0)].all()
    assert len({tuple(picture.flatten().tolist()) for picture in tokens}) == 8


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0, "top_k": 5}])
def test_a_completed_picture_is_the_same_alone_and_in_any_batch(pipeline, rule, settings):
    original, config = Original.of(pipeline, photo(), rule), SamplingConfig(**settings)
    captions, seeds = repeat(["a red circle", "a blue star"], 4, seed=3)
    together = pipeline.sample(captions, seeds, config, given=original)
    for batch_size in (1, 3):
        assert torch.equal(pipeline.sample(captions, seeds, config, batch_size, given=original), together)
    assert torch.equal(pipeline.sample(captions[5:6], seeds[5:6], config, given=original), together[5:6])


@pytest.mark.parametrize("rule", [FirstRows(8), FirstRows(4), Unmasked(mask(white=(5, 5, 9, 9)))])
def test_a_picture_that_is_given_its_own_tokens_is_drawn_as_it_was(tokens_of, rule):
    whole = tokens_of("a red circle", seed=5)
    given = Original(whole[0], PLACE, rule)
    assert torch.equal(tokens_of("a red circle", seed=5, given=given), whole)


# First rows


@pytest.mark.parametrize(("rows", "token_rows"), [(4, 1), (5, 1), (7, 1), (8, 2), (15, 3), (3, 0)])
def test_rows_of_pixels_are_rounded_down_to_rows_of_tokens(rows, token_rows):
    keep = FirstRows(rows).keep(PLACE, SEED)[0]
    assert keep.tolist() == [[True] * 4] * token_rows + [[False] * 4] * (4 - token_rows)


def test_what_first_rows_come_to_is_said():
    assert FirstRows(8).notes(PLACE) == ["8 of 16 tokens are kept"]
    assert FirstRows(7).notes(PLACE) == [
        "of the 7 rows of pixels asked for, the first 4 are whole rows of tokens",
        "4 of 16 tokens are kept",
    ]


# Masks


def kept_by_definition(mask: np.ndarray, place: Place) -> list[list[bool]]:
    """Every token against every pixel of the mask, in exact fractions of the picture's sides."""
    (width, height), (rows, columns) = place.picture_size, place.grid_size
    side = min(width, height)
    left, top = Fraction((width - side) // 2, width), Fraction((height - side) // 2, height)
    high, wide = Fraction(side, height), Fraction(side, width)
    if mask.shape[0] == mask.shape[1]:  # the middle square alone
        left, top, high, wide = Fraction(0), Fraction(0), Fraction(1), Fraction(1)

    def touches(y: int, x: int, i: int, j: int) -> bool:
        y, x = y * Fraction(1, mask.shape[0]), x * Fraction(1, mask.shape[1])
        above, before = top + high * i / rows, left + wide * j / columns
        return (
            y + Fraction(1, mask.shape[0]) > above
            and y < above + high / rows
            and x + Fraction(1, mask.shape[1]) > before
            and x < before + wide / columns
        )

    white = np.argwhere(mask >= 128).tolist()
    return [[not any(touches(y, x, i, j) for y, x in white) for j in range(columns)] for i in range(rows)]


@pytest.mark.parametrize(
    ("picture_size", "mask_size"),
    [
        ((16, 16), (16, 16)),
        ((640, 640), (17, 17)),
        ((40, 30), (40, 30)),
        ((30, 41), (30, 41)),
        ((640, 480), (32, 24)),
        ((101, 67), (51, 34)),  # rounded
        ((67, 101), (23, 34)),
        ((51, 34), (101, 67)),  # of the picture before it was reduced
        ((40, 27), (120, 80)),
        ((40, 30), (13, 13)),
        ((300, 20), (3, 3)),  # pixels larger than tokens
        ((300, 20), (300, 20)),
    ],
)
@pytest.mark.parametrize("grid_size", [(4, 4), (3, 7)])
def test_a_token_is_kept_only_if_all_of_its_pixels_are(picture_size, mask_size, grid_size):
    place = Place(picture_size, 16, grid_size)
    random = np.random.default_rng(sum(mask_size))
    for _ in range(3):
        pixels = np.where(random.random(mask_size[::-1]) < 3 / mask_size[0] / mask_size[1], 255, 0).astype(np.uint8)
        kept = Unmasked(Image.fromarray(pixels)).keep(place, SEED)[0]
        assert kept.tolist() == kept_by_definition(pixels, place)


@pytest.mark.parametrize("sizes", [((3000, 2000), (1000, 667)), ((6000, 4000), (800, 533))])
def test_a_mask_may_have_any_number_of_pixels(sizes):
    for mask_size, picture_size in (sizes, sizes[::-1]):
        kept = Unmasked(mask(*mask_size)).keep(Place(picture_size, 16, (4, 4)), SEED)
        assert kept.all()


def test_a_mask_is_looked_at_once(monkeypatch):
    rule, seeds = Unmasked(mask(white=(5, 5, 9, 9))), torch.arange(3)
    first = rule.keep(PLACE, SEED)
    other = rule.keep(PLACE._replace(grid_size=(2, 2)), SEED)
    monkeypatch.setattr(Image.Image, "convert", None)
    assert torch.equal(rule.keep(PLACE, seeds), first.expand(3, -1, -1))
    assert torch.equal(rule.keep(PLACE._replace(grid_size=(2, 2)), seeds), other.expand(3, -1, -1))


def test_a_pixel_decides_for_its_token_alone():
    for white, drawn in [((4, 8, 4, 8), (2, 1)), ((7, 11, 7, 11), (2, 1)), ((15, 0, 15, 0), (0, 3))]:
        kept = Unmasked(mask(white=white)).keep(PLACE, SEED)[0]
        assert (~kept).nonzero().tolist() == [list(drawn)]


def test_grey_goes_to_the_nearer_end():
    for grey, kept in [(0, True), (127, True), (128, False), (255, False)]:
        assert Unmasked(Image.new("L", (16, 16), grey)).keep(PLACE, SEED).all() == kept
    assert Unmasked(Image.new("1", (16, 16), 1)).keep(PLACE, SEED).sum() == 0
    assert Unmasked(Image.new("RGB", (16, 16), "black")).keep(PLACE, SEED).sum() == 16


@pytest.mark.parametrize(
    ("white", "kept", "unaware"),
    [
        ((4, 4, 11, 11), 12, 4),  # a hole
        ((0, 8, 15, 15), 8, 0),  # the lower half: in raster order
        ((0, 0, 15, 7), 8, 8),  # the upper half: nothing drawn knows of what is kept
        ((0, 0, 0, 0), 15, 1),
        ((15, 15, 15, 15), 15, 0),
        ((8, 0, 15, 15), 8, 6),  # the right half: its last two tokens come after all that is kept
    ],
)
def test_what_raster_order_cannot_honour_is_counted(white, kept, unaware):
    rule = Unmasked(mask(white=white))
    keep = rule.keep(PLACE, SEED)[0].flatten().tolist()
    assert sum(not here and any(keep[index:]) for index, here in enumerate(keep)) == unaware
    assert drawn_unaware(torch.tensor(keep).view(4, 4)) == unaware
    said = f"{unaware} of the {16 - kept} drawn come before kept ones in raster order, unaware of them"
    assert rule.notes(PLACE) == [f"{kept} of 16 tokens are kept"] + [said] * (unaware > 0)


def test_a_mask_that_keeps_nothing_is_plain_sampling_and_says_so(pipeline, tokens_of):
    original = Original.of(pipeline, photo(), Unmasked(mask(white=(0, 0, 15, 15))))
    assert original.notes == ["no token of the picture is kept whole: all 16 are drawn, as without it"]
    assert torch.equal(tokens_of("a red circle", given=original), tokens_of("a red circle"))


# Variations


def test_strength_goes_from_the_reconstruction_to_plain_sampling(pipeline, tokens_of):
    tokens = pipeline.encode(photo())
    none, all_ = (Original.of(pipeline, photo(), Variation(strength)) for strength in (0, 1))
    assert torch.equal(tokens_of("a red circle", n=2, given=none), tokens.expand(2, -1, -1))
    (reconstruction,) = to_pil_images(pipeline.image_tokenizer.decode(tokens[None]))
    assert np.array_equal(pipeline("a red circle", given=none)[0], reconstruction)
    assert torch.equal(tokens_of("a red circle", n=2, given=all_), tokens_of("a red circle", n=2))


def test_strength_is_the_probability_of_each_token_to_be_redrawn():
    place, seeds = Place((16, 16), 16, (8, 8)), torch.arange(400)
    for strength in (0.1, 0.5, 0.9):
        drawn = ~Variation(strength).keep(place, seeds)
        assert abs(drawn.float().mean() - strength) < 0.01
        assert (drawn.float().mean(dim=0) - strength).abs().max() < 0.1, "at every place"
    less, more = (Variation(strength).keep(place, seeds) for strength in (0.3, 0.6))
    assert (less | ~more).all(), "what is redrawn at less is redrawn at more"
    assert len({tuple(keep.flatten().tolist()) for keep in less}) == 400


# Whole pictures and files


def test_the_middle_square_is_encoded(pipeline):
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste(photo(10, 10), (10, 0))
    assert torch.equal(pipeline.encode(wide), pipeline.encode(photo(10, 10)))


def test_a_small_picture_is_enlarged_and_that_is_said(pipeline):
    original = Original.of(pipeline, photo(9, 30), FirstRows(8))
    assert original.notes == ["the picture is 9x30 pixels, enlarged to 16x16", "8 of 16 tokens are kept"]
    assert Original.of(pipeline, photo(16, 30), FirstRows(8)).notes == ["8 of 16 tokens are kept"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda: FirstRows(0), "0 rows of pixels are to be kept, expected at least 1"),
        (lambda: FirstRows(3), "3 rows of pixels are to be kept, expected at least 4, a row of tokens' number"),
        (lambda: FirstRows(17), "17 rows of pixels are to be kept, but pictures have 16"),
        (lambda: FirstRows(16), "all 16 tokens of the picture are to be kept"),
        (lambda: Unmasked(mask()), "all 16 tokens of the picture are to be kept"),
        (lambda: Unmasked(mask(16, 20, (0, 0, 1, 1))), "mask is 16x20, expected a square or .* which is 20x16"),
        (lambda: Unmasked(mask(40, 30, (0, 0, 1, 1))), "mask is 40x30, expected a square or .* which is 20x16"),
        (lambda: Unmasked(Image.new("RGBA", (16, 16))), "mask's mode is RGBA, expected one of 1, L, RGB"),
        (lambda: Variation(1.5), r"strength is 1\.5, expected 0 to 1"),
        (lambda: Variation(-0.1), r"strength is -0\.1"),
        (lambda: Variation(float("nan")), "strength is nan"),
    ],
)
def test_rules_that_cannot_be_followed(pipeline, rule, message):
    with pytest.raises(ValueError, match=message):
        Original.of(pipeline, photo(), rule())


def test_a_picture_of_another_mode_is_refused(pipeline):
    with pytest.raises(ValueError, match="mode is RGBA, expected RGB"):
        Original.of(pipeline, photo().convert("RGBA"), FirstRows(8))


@pytest.fixture
def files(tmp_path) -> Path:
    photo().save(tmp_path / "photo.png")
    mask(white=(5, 5, 9, 9)).save(tmp_path / "mask.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "photo.png").read_bytes()[:200])
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def test_originals_from_files(pipeline, files):
    rows = open_original(pipeline, files / "photo.png", keep_rows=8)
    masked = open_original(pipeline, files / "photo.png", mask=files / "mask.png")
    varied = open_original(pipeline, str(files / "photo.png"), strength=0.25)
    for original in (rows, masked, varied):
        assert torch.equal(original.tokens, pipeline.encode(photo()))
    assert torch.equal(masked(SEED), Original.of(pipeline, photo(), Unmasked(mask(white=(5, 5, 9, 9))))(SEED))
    assert (masked(SEED) == UNKNOWN).sum() == 4
    named = {"picture": "photo.png", "picture_hash": completion._named("", files / "photo.png")["_hash"]}
    assert rows.settings == named | {"use": "completion", "keep_rows": 8}
    assert varied.settings == named | {"use": "variation", "strength": 0.25}
    assert masked.settings.keys() == named.keys() | {"use", "mask", "mask_hash"}
    assert masked.settings["use"] == "completion"
    assert masked.settings["mask"] == "mask.png" and len(masked.settings["mask_hash"]) == 16
    photo(seed=1).save(files / "photo.png")
    assert open_original(pipeline, files / "photo.png", keep_rows=8).settings != rows.settings


def test_transparency_is_white(pipeline, files):
    """Of a picture as everywhere; of a mask, that is what is to be drawn, as where a hole was erased."""
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (4, 4, 12, 12))
    clear.save(files / "clear.png")
    original = open_original(pipeline, files / "clear.png", mask=files / "clear.png")
    black = Image.new("RGB", (16, 16))
    black.paste((255, 255, 255), (4, 4, 12, 12))
    assert torch.equal(original.tokens, pipeline.encode(black))
    assert original.notes[0] == "12 of 16 tokens are kept"


@pytest.mark.parametrize(
    ("picture", "rule", "message"),
    [
        ("nowhere.png", {"keep_rows": 8}, "nowhere.png: No such file"),
        ("torn.png", {"keep_rows": 8}, "torn.png: "),
        ("text.png", {"keep_rows": 8}, "text.png: not a PNG"),
        (".", {"keep_rows": 8}, "not a regular file"),
        ("photo.png", {"mask": "nowhere.png"}, "nowhere.png: No such file"),
        ("photo.png", {"mask": "torn.png"}, "torn.png: "),
        ("photo.png", {}, "expected exactly one of keep_rows, mask, strength; got none"),
        ("photo.png", {"keep_rows": 8, "strength": 0.0}, "got keep_rows and strength"),
    ],
)
def test_files_that_cannot_be_used(pipeline, files, picture, rule, message):
    rule = {name: files / value if name == "mask" else value for name, value in rule.items()}
    with pytest.raises(ValueError, match=message):
        open_original(pipeline, files / picture, **rule)
