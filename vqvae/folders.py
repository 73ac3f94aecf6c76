"""Image tokenizers from their model folders, whatever their kind."""

from pathlib import Path

from model_files import CONFIG, load_config
from vqvae import palette
from vqvae.config import DiscreteVAEConfig
from vqvae.model import DiscreteVAE
from vqvae.palette import Palette, PaletteConfig

KINDS: dict[str | None, type[DiscreteVAE] | type[Palette]] = {None: DiscreteVAE, palette.KIND: Palette}


def load_image_tokenizer_config(folder: str | Path) -> DiscreteVAEConfig | PaletteConfig:
    """Sizes of the image tokenizer in a model folder, without its weights: image_size, grid_size, codebook_size.

    Raises ValueError naming the file that is missing, damaged or of no known kind.
    """
    return _class_of(folder).load_config(folder)


def load_image_tokenizer(folder: str | Path) -> DiscreteVAE | Palette:
    """The image tokenizer in a model folder, frozen. Raises ValueError naming the file that is missing or damaged."""
    return _class_of(folder).from_pretrained(folder).requires_grad_(False)


def _class_of(folder: str | Path) -> type[DiscreteVAE] | type[Palette]:
    kind = load_config(folder).get("kind")
    if not isinstance(kind, str | None) or kind not in KINDS:
        known = ", ".join(str(name) for name in KINDS if name is not None)
        raise ValueError(f"{Path(folder) / CONFIG} is of kind {kind!r}, expected {known} or none, a discrete VAE's")
    return KINDS[kind]
