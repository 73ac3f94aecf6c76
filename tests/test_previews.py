import numpy as np
import pytest
import torch
from PIL import Image

from completion import Original, Place, Unmasked, Variation
from data.transforms import to_pil_images
from pipeline import repeat
from previews import Previews, decode_known
from transformer.decoding import UNKNOWN
from transformer.sampling import SamplingConfig


def painted(indices: torch.Tensor) -> torch.Tensor:
    """A decoder: 2x2 pixels of each token's value / 10; (B, h, w) -> (B, 3, 2h, 2w)."""
    images = (indices / 10)[:, None].expand(-1, 3, -1, -1)
    return images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_unknown_tokens_are_grey_and_rows_below_are_not_decoded():
    tokens = torch.full((2, 4, 3), UNKNOWN)
    tokens[:, :2] = torch.arange(6).view(2, 3)
    tokens[1, 2, 0] = 7
    seen = []
    images = decode_known(lambda indices: seen.append(indices) or painted(indices), tokens, torch.full((4, 3), 9))
    assert torch.equal(images, painted(tokens).where(painted(tokens) >= 0, 0.5))
    assert [tuple(indices.shape) for indices in seen] == [(1, 3, 3)] * 2
    assert seen[0][0].tolist() == [[0, 1, 2], [3, 4, 5], [9, 9, 9]]


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5])
def test_pictures_are_shown_after_every_so_many_rows_and_at_the_end(pipeline, every):
    shown = []
    pictures = pipeline("a red circle", n=2, previews=Previews(lambda *at: shown.append(at), every))
    assert [batch for batch, _ in shown] == [slice(0, 2)] * len(shown)
    stages = [[np.asarray(stage[i]) for _, stage in shown] for i in range(2)]
    for of_picture, picture in zip(stages, pictures, strict=True):
        rows = [*range(every, 4, every), 4]
        assert [drawn_rows(stage) for stage in of_picture] == [4 * count for count in rows]
        assert np.array_equal(of_picture[-1], picture)


def drawn_rows(stage: np.ndarray) -> int:
    """Rows of pixels above the grey."""
    grey = (stage == 128).all(axis=(1, 2))
    rows = int((~grey).sum())
    assert grey[rows:].all()
    return rows


@pytest.mark.parametrize("given", [False, True])
def test_to_watch_changes_nothing(pipeline, given):
    original = Original(pipeline.encode(Image.new("RGB", (16, 16), "red")), PLACE, Variation(0.6)) if given else None
    captions, seeds = repeat(["a red circle", "a blue star"], 3, seed=1)
    config, batches = SamplingConfig(guidance_scale=1.5), []
    previews = Previews(lambda batch, pictures: batches.append((batch, len(pictures))))
    watched = pipeline.sample(captions, seeds, config, 4, given=original, previews=previews)
    assert torch.equal(watched, pipeline.sample(captions, seeds, config, 4, given=original))
    assert len(batches) > 4
    assert list(dict.fromkeys(map(str, batches))) == [str((slice(i, i + 3), 3)) for i in (0, 3)]


PLACE = Place((16, 16), 16, (4, 4))


def test_what_is_kept_below_is_shown_from_the_start(pipeline):
    mask = Image.new("L", (16, 16), 255)
    mask.paste(0, (4, 12, 8, 16))
    tokens = torch.arange(16).view(4, 4)
    shown = []
    previews = Previews(lambda _, pictures: shown.append(np.asarray(pictures[0])))
    pipeline("a red circle", given=Original(tokens, PLACE, Unmasked(mask)), previews=previews)
    first = shown[0]
    grey = (first == 128).all(axis=2)
    assert grey[4:12].all() and grey[12:, :4].all() and grey[12:, 8:].all()
    assert not grey[:4].all() and not grey[12:, 4:8].all()


def test_rows_that_are_given_are_shown_at_once(pipeline):
    """Of the first three rows, one showing; with `every` 2, none until the picture is finished."""
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 12, 16, 16))
    tokens = torch.arange(16).view(4, 4)
    given = Original(tokens, PLACE, Unmasked(mask))
    for every, count in ((1, 2), (2, 1)):
        shown = []
        pipeline("a", given=given, previews=Previews(lambda *at, shown=shown: shown.append(at), every))
        assert len(shown) == count
    (first,) = to_pil_images(decode_known(pipeline.image_tokenizer.decode, kept(tokens), tokens))
    assert drawn_rows(np.asarray(first)) == 12


def kept(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.where(torch.arange(4)[:, None] < 3, UNKNOWN)[None]


def test_previews_come_after_whole_rows():
    with pytest.raises(ValueError, match="every 0 rows of tokens were asked for, expected at least 1"):
        Previews(print, 0)
