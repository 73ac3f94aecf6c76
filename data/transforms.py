"""How a picture becomes the square that a model sees: the two augmentations of DALL-E and the crop for evaluation.

The numbers are those of https://arxiv.org/abs/2102.12092 (its appendix, "preprocessing"), where the models see 256
pixels; for another `size` they scale with it. A step that would not change the picture is left out by arithmetic: a
picture that is already `size` x `size` costs only its conversion (and the tokenizer's flip).

They take a PIL picture of mode RGB and give a float tensor (3, size, size) in [0, 1], `to_pil_images` the other way
round. All are pure: what is random is drawn from `generator`.
"""

import math
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from data.pictures import place_of

Square = tuple[int, int, int]  # left, top, side, in the pixels of the file
RESERVE = 1.45  # with less, views are further from those of the whole picture (docs/log.md); 12 megapixels come at 1/8


def tokenizer_augmentation(image: Image.Image, size: int, generator: torch.Generator) -> Tensor:
    """Random square of the short side s, resized to t in [min(s, 9/8 size), min(s, 3/2 size)]; random crop; flip.

    A picture whose s is below `size` is enlarged to it. Returns (3, size, size).
    """
    square = _random_square(image, 0.0, 1.0, generator)
    side = _draw(_target(square, size, 9 / 8), _target(square, size, 3 / 2), generator)
    image = _random_crop(_resized(image, square, side), size, generator)
    return _to_tensor(F.horizontal_flip(image) if _draw(0, 1, generator) else image)


def prior_augmentation(image: Image.Image, size: int, generator: torch.Generator) -> Tensor:
    """Near-centred square of the short side s; resized to min(s, 9/8 size); random crop; no flip.

    The square begins at 3/8 to 5/8 of what the long side has too much. No flip: pictures hold text, and captions say
    left and right. A picture whose s is below `size` is enlarged to it. Returns (3, size, size).
    """
    square = _random_square(image, 3 / 8, 5 / 8, generator)
    return _to_tensor(_random_crop(_resized(image, square, _target(square, size, 9 / 8)), size, generator))


def evaluation_crop(image: Image.Image, size: int) -> Tensor:
    """Centred square of the short side, resized. Nothing is random. Returns (3, size, size)."""
    return _to_tensor(_resized(image, middle_square(place_of(image).size), size))


# What each resizes to at most, in sizes.
_LARGEST: dict[Callable[..., Tensor], float] = {
    tokenizer_augmentation: 3 / 2,
    prior_augmentation: 9 / 8,
    evaluation_crop: 1,
}


def least_side(size: int, transform: Callable[..., Tensor]) -> int | None:
    """What `Source.image` is to be asked for: how many pixels a side `transform` needs to give (3, size, size).

    That is RESERVE times the largest side that it resizes to: averaging then smooths over how the decoder
    has reduced. None, all pixels, for a transform that is none of the above.
    """
    largest = _LARGEST.get(transform)
    return None if largest is None else math.ceil(RESERVE * round(largest * size))


def middle_square(size: tuple[int, int]) -> tuple[int, int, int]:
    """Of a picture of size (width, height), what `evaluation_crop` keeps: (left, top, side), in pixels."""
    side = min(size)
    left, top = ((length - side) // 2 for length in size)
    return left, top, side


def to_pil_images(images: Tensor) -> list[Image.Image]:
    """Images (B, 3, H, W) in [0, 1] as PIL pictures, each value rounded to the nearest of 256."""
    values = (images.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(image) for image in values.permute(0, 2, 3, 1).numpy()]


def _target(square: Square, size: int, ratio: float) -> int:
    return max(size, min(square[2], round(ratio * size)))


def _random_square(image: Image.Image, low: float, high: float, generator: torch.Generator) -> Square:
    """Square of the short side; begins at `low` to `high` (fractions of the surplus) on the long one."""
    lengths = place_of(image).size
    side = min(lengths)
    left, top = (_draw(int(low * (n - side)), int(high * (n - side)), generator) for n in lengths)
    return left, top, side


def _random_crop(image: Image.Image, size: int, generator: torch.Generator) -> Image.Image:
    left, top = (_draw(0, n - size, generator) for n in image.size)
    return _crop(image, left, top, size)


def _crop(image: Image.Image, left: int, top: int, side: int) -> Image.Image:
    return image if image.size == (side, side) else F.crop(image, top, left, side, side)


def _resized(image: Image.Image, square: Square, side: int) -> Image.Image:
    """A square of a picture at another size: averages the areas of its pixels; enlarged, where those would show as
    blocks, by bicubic interpolation.

    A picture that its decoder reduced has been averaged already, to pixels that are not much smaller than the new ones.
    Whole ones of those, the nearest to an area, would lie a little beside it: Hamming's window weighs them smoothly.
    """
    place = place_of(image)
    if place.scale < 1:
        left, top, length = square
        box = (place.left + place.scale * left, place.top + place.scale * top)
        length *= place.scale
        return image.resize((side, side), Image.Resampling.HAMMING, (*box, box[0] + length, box[1] + length))
    image = _crop(image, *square)
    if image.width == side:
        return image
    mode = InterpolationMode.BOX if side < image.width else InterpolationMode.BICUBIC
    return F.resize(image, [side, side], interpolation=mode)


def _draw(low: int, high: int, generator: torch.Generator) -> int:
    """Uniform in low .. high, both ends included."""
    return low if low == high else int(torch.randint(low, high + 1, (), generator=generator))


def _to_tensor(image: Image.Image) -> Tensor:
    if image.mode != "RGB":
        raise ValueError(f"the picture's mode is {image.mode}, expected RGB")
    return F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)
