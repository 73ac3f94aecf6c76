"""TextToImage: captions to pictures. The one library file that sees both models.

    from pipeline import TextToImage
    pictures = TextToImage.from_pretrained("runs/demo/prior/model")("a red circle", n=4, seed=0)  # list of PIL pictures

A bundle is a folder that holds all that sampling needs:

    config.json  model.safetensors    the prior
    tokenizer.json                    its text tokenizer
    image_tokenizer/                  its image tokenizer, a model folder of its own
    bundle.json                       fingerprints of the three and of the data, versions of the libraries
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from batching import batches_of
from data.text import TextTokenizer
from data.transforms import evaluation_crop, to_pil_images
from previews import Previews
from transformer.decoding import generate
from transformer.likelihood import prior_score
from transformer.model import Prior
from transformer.sampling import SamplingConfig
from transformer.serving import Weights, for_decoding
from vqvae.folders import load_image_tokenizer
from whole_files import write_object

BUNDLE, IMAGE_TOKENIZER, TEXT_TOKENIZER = "bundle.json", "image_tokenizer", "tokenizer.json"
LIBRARIES = ("torch", "torchvision", "tokenizers", "safetensors", "pytorch-lightning")
BATCH_SIZE = 32  # pictures sampled side by side unless told otherwise
PARTS = ("prior", "text_tokenizer", "image_tokenizer")

Given = Callable[[Tensor], Tensor]
"""From seeds, int64 (B,), to the tokens that pictures with them are given, int64 (B, h, w): UNKNOWN where they are to
be drawn. completion.Original is one."""


class ImageTokenizer(Protocol):
    """What the pipeline asks of an image tokenizer; it is an nn.Module with `save_pretrained` too."""

    codebook_size: int
    grid_size: tuple[int, int]
    config: Any
    """It has an `image_size`, the side in pixels of pictures of `grid_size` tokens."""

    def encode(self, images: Tensor) -> Tensor: ...
    def decode(self, indices: Tensor) -> Tensor: ...


def fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits that name a model's weights: equal for equal tensors, wherever they lie."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class Drawn(NamedTuple):
    """Pictures drawn side by side."""

    pictures: Tensor  # (B, 3, H, W) in [0, 1]
    likelihoods: Tensor | None  # float32 (B, 3) on the CPU, see transformer.decoding.generate; None unless asked for


class TextToImage:
    """A prior with the two tokenizers it was trained on.

    Raises ValueError where the sizes of the three do not fit.

    Attributes:
        weights: the form of the prior's weights, see transformer/serving.py.
        compile: whether steps of decoding are compiled, see transformer.decoding.generate.
    """

    def __init__(self, prior: Prior, text_tokenizer: TextTokenizer, image_tokenizer: ImageTokenizer) -> None:
        self.weights: Weights = "float32"
        self.compile = False
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
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        weights: Weights = "float32",
        compile: bool = False,
    ) -> "TextToImage":
        """The bundle that `save_pretrained` wrote, for drawing pictures: its prior can not be trained.

        Args:
            folder: where it lies.
            device: where to draw.
            weights: what the prior's weights are kept as: "float32", or to draw quicker "bfloat16" (compiled, or on a
                GPU) or "int8" (compiled, on a CPU).
            compile: have steps of decoding compiled, which pays for many pictures.

        Raises ValueError for files that are missing, damaged or not made for each other, or a device that is not there.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"no such folder: {folder}")
        device = usable_device(device)
        bundle = _read_bundle(folder)
        image_tokenizer = load_image_tokenizer(folder / IMAGE_TOKENIZER)
        pipeline = cls(Prior.from_pretrained(folder), TextTokenizer.load(folder / TEXT_TOKENIZER), image_tokenizer)
        pipeline._check_fingerprints(bundle)
        assert pipeline.fingerprint  # of the weights as they were; kept
        for_decoding(pipeline.prior, weights)
        pipeline.weights, pipeline.compile = weights, compile
        return pipeline.to(device)

    def save_pretrained(self, folder: str | Path, data_fingerprint: str | None = None) -> None:
        """Writes the bundle; what makes it one, bundle.json, goes as soon as the prior is written, and comes back last.

        Raises ValueError, before anything is touched, for a prior whose weights were rounded for decoding.
        """
        folder = Path(folder)
        self.prior.save_pretrained(folder)  # first: it may refuse, and a bundle that is there has to outlive that
        (folder / BUNDLE).unlink(missing_ok=True)
        self.image_tokenizer.save_pretrained(folder / IMAGE_TOKENIZER)
        self.text_tokenizer.save(folder / TEXT_TOKENIZER)
        bundle = self._fingerprints() | {
            "data": data_fingerprint,
            "versions": {name: version(name) for name in LIBRARIES},
        }
        write_object(folder / BUNDLE, bundle)

    def _fingerprints(self) -> dict[str, str]:
        return {
            "prior": fingerprint(self.prior),
            "text_tokenizer": self.text_tokenizer.fingerprint,
            "image_tokenizer": fingerprint(self.image_tokenizer),
        }

    def _check_fingerprints(self, expected: dict[str, str]) -> None:
        found = self._fingerprints()
        for part, digest in found.items():
            if expected[part] != digest:
                raise ValueError(
                    f"the {part.replace('_', ' ')} is {digest}, but {BUNDLE} says {expected[part]}: "
                    "it is not the one that the rest of the bundle was trained with"
                )

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the three parts together; the parts must not change afterwards."""
        return hashlib.blake2b(json.dumps(self._fingerprints()).encode(), digest_size=8).hexdigest()

    def to(self, device: str | torch.device) -> "TextToImage":
        """Moves both models. Raises ValueError where the device does not exist."""
        device = usable_device(device)
        self.prior.to(device)
        self.image_tokenizer.to(device)
        return self

    def __call__(
        self,
        prompt: str | Sequence[str],
        n: int = 1,
        seed: int = 0,
        keep: int | None = None,
        given: Given | None = None,
        previews: Previews | None = None,
        **settings: Any,
    ) -> list[Image.Image]:
        """n pictures of each caption, caption by caption; the i-th of each is drawn with seed + i.

        Or the best of them: so many as are to be kept, as the prior itself ranks them, best first.

        Args:
            prompt: a caption, or several.
            n: pictures a caption, at least 1.
            seed: a picture is a function of (weights, caption, seed, settings, given), however many are drawn with it.
            keep: at most n.
            given: what is to be kept of another picture, see completion.py.
            previews: who sees pictures while they are drawn.
            settings: temperature, top_k, top_p, min_p, guidance_scale, guidance_schedule: the fields of
                transformer.sampling.SamplingConfig.
        """
        captions = [prompt] if isinstance(prompt, str) else list(prompt)
        repeated, seeds = repeat(captions, n, seed)
        config = SamplingConfig(**settings)
        if keep is None:
            return to_pil_images(self.sample(repeated, seeds, config, given=given, previews=previews))
        if not 1 <= keep <= n:
            raise ValueError(f"keep is {keep}, expected 1 to n, which is {n}")
        batches = list(self.sample_batches(repeated, seeds, config, given=given, previews=previews, weigh=True))
        scores = prior_score(torch.cat([batch.likelihoods for batch in batches])).view(-1, n)
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, :keep]
        pictures = to_pil_images(torch.cat([batch.pictures for batch in batches]))
        return [pictures[i] for i in (best + n * torch.arange(len(best))[:, None]).flatten()]

    @torch.inference_mode()
    def sample(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        config: SamplingConfig,
        batch_size: int = BATCH_SIZE,
        progress: Callable[[int, int], None] | None = None,
        given: Given | None = None,
        previews: Previews | None = None,
    ) -> Tensor:
        """One picture for each caption and seed: (B, 3, H, W) in [0, 1]; `progress` gets (tokens done, of all).

        Raises ValueError where there are no captions, not as many seeds, `batch_size` is below 1 or a seed has more
        than 64 bits.
        """
        batches = self.sample_batches(captions, seeds, config, batch_size, progress, given, previews)
        return torch.cat([batch.pictures for batch in batches])

    @torch.inference_mode()
    def sample_batches(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        config: SamplingConfig,
        batch_size: int = BATCH_SIZE,
        progress: Callable[[int, int], None] | None = None,
        given: Given | None = None,
        previews: Previews | None = None,
        weigh: bool = False,
    ) -> Iterator[Drawn]:
        """What `sample` gives, in pieces of at most `batch_size` pictures, each as soon as it is drawn.

        With `weigh`, each comes with the likelihoods of its tokens, which are to be had at the price of guidance.
        Captions that follow one another and are equal come in one piece where they fit, see `batches_of`.

        Raises ValueError as `sample` does, when the first piece is asked for.
        """
        if not captions:
            raise ValueError("no captions: expected at least one")
        if len(seeds) != len(captions):
            raise ValueError(f"{len(seeds)} seeds, expected one for each of {len(captions)} captions")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        text_tokens, all_seeds = self.text_tokens(captions), _int64(seeds)
        total = len(captions) * self.prior.config.image_len
        grey = self.encode(Image.new("RGB", (1, 1), "grey")) if previews else None
        for chunk in batches_of(captions, batch_size):
            likelihoods = torch.zeros(chunk.stop - chunk.start, 3, device=text_tokens.device) if weigh else None
            kept = given(all_seeds[chunk]).to(text_tokens.device) if given else None
            indices = generate(
                self.prior,
                text_tokens[chunk],
                seeds=all_seeds[chunk],
                config=config,
                given=kept,
                likelihoods=likelihoods,
                compile=self.compile,
                progress=_scaled(progress, chunk, total) if progress else None,
                after_row=previews.after_row(chunk, self.image_tokenizer.decode, kept, grey) if previews else None,
            )
            # One at a time: convolutions over several pictures may round otherwise than over one.
            pictures = torch.cat([self.image_tokenizer.decode(picture[None]) for picture in indices])
            if previews:
                previews.show(chunk, to_pil_images(pictures))
            yield Drawn(pictures, None if likelihoods is None else likelihoods.cpu())

    def encode(self, picture: Image.Image) -> Tensor:
        """The tokens, int64 (h, w), of the middle square of a picture of any size; ValueError where it is not RGB."""
        image = evaluation_crop(picture, self.image_tokenizer.config.image_size)
        return self.image_tokenizer.encode(image[None].to(next(self.prior.parameters()).device))[0]

    def text_tokens(self, captions: Sequence[str]) -> Tensor:
        """(B, text_len - 1) int64 on the prior's device; captions that are too long lose their ends."""
        encoded = self.text_tokenizer.encode_batch(captions, self.prior.config.text_len)
        return encoded.text_tokens.to(next(self.prior.parameters()).device)


def repeat(captions: Sequence[str], n: int, seed: int) -> tuple[list[str], list[int]]:
    """Each caption n times with the seeds seed, seed + 1, ...

    Raises ValueError where n is below 1 or a seed has more than 64 bits.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected at least 1 picture a caption")
    _int64([seed, seed + n - 1])
    return [caption for caption in captions for _ in range(n)], [seed + i for _ in captions for i in range(n)]


def usable_device(device: str | torch.device) -> torch.device:
    """The device of that name. Raises ValueError where there is none such here."""
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).item()  # "meta" has tensors, but no numbers in them
    # AssertionError comes from a build without CUDA, NotImplementedError from "meta".
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"device {device} was asked for, but PyTorch cannot use it here: {why}") from error
    return device


def _int64(seeds: Sequence[int]) -> Tensor:
    outside = [seed for seed in seeds if not -(2**63) <= seed < 2**63]
    if outside:
        raise ValueError(f"seed {outside[0]} does not fit 64 bits, expected {-(2**63)} to {2**63 - 1}")
    return torch.tensor(seeds, dtype=torch.int64)


def _scaled(progress: Callable[[int, int], None], batch: slice, total: int) -> Callable[[int, int], None]:
    """From tokens done in each picture of a batch to tokens done in all pictures."""
    return lambda done, of: progress(batch.start * of + (batch.stop - batch.start) * done, total)


def _read_bundle(folder: Path) -> dict[str, Any]:
    path = folder / BUNDLE
    if not path.is_file():
        raise ValueError(
            f"{folder} is no bundle: {BUNDLE} is missing, so its export never finished or it is something else"
        )
    try:
        bundle = json.loads(path.read_text(encoding="utf-8"))
        missing = [part for part in PARTS if not isinstance(bundle[part], str)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    if missing:
        raise ValueError(f"{path} is damaged: {missing[0]} is no fingerprint")
    return bundle
