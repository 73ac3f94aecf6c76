"""TextToImage: captions to pictures. The one library file that sees both models.

    from pipeline import TextToImage
    pictures = TextToImage.from_pretrained("runs/demo/model")("a red circle", n=4, seed=0)   # list of PIL pictures

A bundle is a folder that holds all that sampling needs:

    config.json  model.safetensors    the prior
    tokenizer.json                    its text tokenizer
    image_tokenizer/                  its image tokenizer, a model folder of its own
    bundle.json                       fingerprint of the image tokenizer and of the data, versions of the libraries
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

from data.text import TextTokenizer
from transformer.model import Prior
from transformer.sampling import SamplingConfig, generate
from vqvae.config import DiscreteVAEConfig
from vqvae.model import DiscreteVAE

BUNDLE, IMAGE_TOKENIZER, TEXT_TOKENIZER = "bundle.json", "image_tokenizer", "tokenizer.json"
LIBRARIES = ("torch", "torchvision", "tokenizers", "safetensors", "pytorch-lightning")
BATCH_SIZE = 32  # pictures sampled side by side unless told otherwise


class ImageTokenizer(Protocol):
    """What the pipeline asks of an image tokenizer."""

    codebook_size: int
    grid_size: tuple[int, int]

    def encode(self, images: Tensor) -> Tensor: ...
    def decode(self, indices: Tensor) -> Tensor: ...


def fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits that name a model's weights: equal for equal tensors, wherever they lie."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_image_tokenizer_config(folder: str | Path) -> DiscreteVAEConfig:
    """Sizes of the image tokenizer in a model folder, without its weights."""
    return DiscreteVAE.load_config(folder)


def load_image_tokenizer(folder: str | Path) -> DiscreteVAE:
    """The image tokenizer in a model folder, frozen. Raises ValueError naming the file that is missing or damaged."""
    return DiscreteVAE.from_pretrained(folder).requires_grad_(False)


class TextToImage:
    """A prior with the two tokenizers it was trained on.

    Raises ValueError where the sizes of the three do not fit.
    """

    def __init__(self, prior: Prior, text_tokenizer: TextTokenizer, image_tokenizer: ImageTokenizer) -> None:
        pairs = {
            "codebook_size": (prior.config.codebook_size, image_tokenizer.codebook_size),
            "grid_size": (tuple(prior.config.grid_size), tuple(image_tokenizer.grid_size)),
        }
        for name, (of_prior, of_tokenizer) in pairs.items():
            if of_prior != of_tokenizer:
                raise ValueError(f"{name} of the prior is {of_prior}, of the image tokenizer {of_tokenizer}")
        if text_tokenizer.vocab_size > prior.config.text_vocab_size:
            raise ValueError(
                f"the text tokenizer has {text_tokenizer.vocab_size} entries, the prior {prior.config.text_vocab_size}"
            )
        self.prior, self.text_tokenizer, self.image_tokenizer = prior, text_tokenizer, image_tokenizer

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> "TextToImage":
        """The bundle that `save_pretrained` wrote.

        Raises ValueError for files that are missing, damaged or not made for each other, or a device that is not there.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"no such folder: {folder}")
        bundle = _read_bundle(folder)
        image_tokenizer = load_image_tokenizer(folder / IMAGE_TOKENIZER)
        check_fingerprint(bundle["image_tokenizer"], image_tokenizer)
        text_tokenizer = TextTokenizer.load(folder / TEXT_TOKENIZER)
        return cls(Prior.from_pretrained(folder), text_tokenizer, image_tokenizer).to(device)

    def save_pretrained(self, folder: str | Path, data_fingerprint: str | None = None) -> None:
        """Writes the bundle; the file that makes it one, bundle.json, comes last."""
        folder = Path(folder)
        self.prior.save_pretrained(folder)
        self.image_tokenizer.save_pretrained(folder / IMAGE_TOKENIZER)
        self.text_tokenizer.save(folder / TEXT_TOKENIZER)
        bundle = {
            "image_tokenizer": fingerprint(self.image_tokenizer),
            "prior": fingerprint(self.prior),
            "data": data_fingerprint,
            "versions": {name: version(name) for name in LIBRARIES},
        }
        beside = folder / f".{BUNDLE}.part"
        beside.write_text(json.dumps(bundle, indent=2) + "\n", encoding="utf-8")
        beside.replace(folder / BUNDLE)

    def to(self, device: str | torch.device) -> "TextToImage":
        """Moves both models. Raises ValueError where the device does not exist."""
        device = torch.device(device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {device} was asked for, but PyTorch finds no GPU here")
        self.prior.to(device)
        self.image_tokenizer.to(device)
        return self

    def __call__(
        self,
        prompt: str | Sequence[str],
        n: int = 1,
        seed: int = 0,
        config: SamplingConfig = SamplingConfig(),  # noqa: B008 frozen
        **settings: Any,
    ) -> list[Image.Image]:
        """n pictures of each caption, caption by caption; the i-th of each is drawn with seed + i.

        Args:
            prompt: a caption, or several.
            n: pictures a caption, at least 1.
            seed: a picture is a function of (weights, caption, seed, settings), however many are drawn with it.
            config: how tokens are drawn; or by its fields:
            settings: temperature, top_k, top_p, guidance_scale.
        """
        captions = [prompt] if isinstance(prompt, str) else list(prompt)
        if not captions:
            raise ValueError("no captions: expected at least one")
        if n < 1:
            raise ValueError(f"n is {n}, expected at least 1")
        config = SamplingConfig(**settings) if settings else config
        repeated = [caption for caption in captions for _ in range(n)]
        seeds = [seed + i for _ in captions for i in range(n)]
        return [to_pil_image(picture.cpu()) for picture in self.sample(repeated, seeds, config)]

    @torch.inference_mode()
    def sample(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        config: SamplingConfig,
        batch_size: int = BATCH_SIZE,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """One picture for each caption and seed: (B, 3, H, W) in [0, 1]; `progress` gets (tokens done, of all)."""
        pictures, per_picture = [], self.prior.config.image_len
        for start in range(0, len(captions), batch_size):
            chunk = slice(start, start + batch_size)
            text_tokens = self.text_tokens(captions[chunk])
            count = len(text_tokens)

            def report(done: int, _: int, start: int = start, count: int = count) -> None:
                progress(start * per_picture + done * count, len(captions) * per_picture)

            indices = generate(
                self.prior,
                text_tokens,
                seeds=torch.tensor(seeds[chunk], dtype=torch.int64),
                config=config,
                progress=report if progress else None,
            )
            pictures.append(self.image_tokenizer.decode(indices))
        return torch.cat(pictures)

    def text_tokens(self, captions: Sequence[str]) -> Tensor:
        """(B, text_len - 1) int64 on the prior's device; captions that are too long lose their ends."""
        encoded = self.text_tokenizer.encode_batch(captions, self.prior.config.text_len)
        return encoded.text_tokens.to(next(self.prior.parameters()).device)


def check_fingerprint(expected: str, image_tokenizer: nn.Module) -> None:
    """Raises ValueError where the image tokenizer is not the one a prior was trained on."""
    found = fingerprint(image_tokenizer)
    if found != expected:
        raise ValueError(
            f"the prior was trained on the image tokenizer {expected}, this one is {found}: its codes mean other things"
        )


def _read_bundle(folder: Path) -> dict[str, Any]:
    path = folder / BUNDLE
    if not path.is_file():
        raise ValueError(
            f"{folder} is no bundle: {BUNDLE} is missing, so its export never finished or it is something else"
        )
    try:
        bundle = json.loads(path.read_text(encoding="utf-8"))
        bundle["image_tokenizer"], bundle["prior"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    return bundle
