"""How well pictures show a caption, by a CLIP-like model that open_clip reads from local files (the extra `clip`).

The score is the cosine of the angle between the embeddings of the caption and of a picture
(https://arxiv.org/abs/2103.00020), as DALL-E's paper ranks its candidates (https://arxiv.org/abs/2102.12092, section
2.6). Nothing is downloaded: models are refused of which open_clip would look for a part on the web, as it does for text
towers of Hugging Face, and where only a checkpoint is given, for tokenizers of it.
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

BATCH_SIZE = 64
CONFIG = "open_clip_config.json"


class ClipScores:
    """Scores of pictures for a caption, in [-1, 1].

    Args:
        path: a folder with open_clip_config.json and weights, as the hubs hold them; or a checkpoint of open_clip.
        architecture: of a checkpoint, open_clip's name for it, such as ViT-B-32. None for a folder, which says it.
        device: where the model is to be.

    Raises ValueError where open_clip is not installed, or what lies there is not a model of it or not all of one.
    """

    def __init__(self, path: str | Path, architecture: str | None = None, device: str | torch.device = "cpu") -> None:
        path = Path(path)
        open_clip = _import_open_clip()
        name, weights = _name_and_weights(path, architecture, open_clip.list_models())
        _refuse_the_web(path, _text_config(open_clip, name, path))
        try:
            self.model, self._transform = open_clip.create_model_from_pretrained(name, weights, device=device)
            self._tokenize = open_clip.get_tokenizer(name)
        except pickle.UnpicklingError as error:  # whose message is advice to run whatever code the file holds
            raise ValueError(f"{path} cannot be read as a model of open_clip: its weights are no tensors") from error
        except Exception as error:  # a damaged file runs into anything
            why = " ".join(str(error).split())
            raise ValueError(f"{path} cannot be read as a model of open_clip: {why}") from error
        self.model.eval()
        self.device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, caption: str, pictures: Sequence[Image.Image]) -> Tensor:
        """Of pictures of any size, at least one: float32 (N,) on the CPU."""
        text = self.model.encode_text(self._tokenize([caption]).to(self.device), normalize=True)  # (1, D)
        scores = []
        for start in range(0, len(pictures), BATCH_SIZE):
            images = torch.stack([self._transform(picture) for picture in pictures[start : start + BATCH_SIZE]])
            scores.append(self.model.encode_image(images.to(self.device), normalize=True) @ text[0])
        return torch.cat(scores).float().cpu().nan_to_num(nan=-1.0)  # which sorting would put first


def _import_open_clip() -> ModuleType:
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(
            f"ranking by CLIP needs open_clip (pip install -e '.[clip]' -c constraints.txt): {error}"
        ) from error
    return open_clip


def _text_config(open_clip: ModuleType, name: str, path: Path) -> Mapping[str, Any]:
    """What the model's configuration says of its text part; nothing where it says nothing, as open_clip will find."""
    if not path.is_dir():
        return open_clip.get_model_config(name).get("text_cfg", {})
    try:
        return json.loads((path / CONFIG).read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    except (ValueError, KeyError, TypeError):
        return {}


def _refuse_the_web(path: Path, text: Mapping[str, Any]) -> None:
    if tower := text.get("hf_model_name"):
        raise ValueError(f"the text tower of {path} is {tower} of Hugging Face, which would be fetched: not supported")
    if (tokenizer := text.get("hf_tokenizer_name")) and not path.is_dir():
        raise ValueError(
            f"the tokenizer of {path} is {tokenizer} of Hugging Face, which would be fetched: "
            f"expected a folder with {CONFIG}, the weights and the tokenizer's files"
        )


def _name_and_weights(path: Path, architecture: str | None, known: Sequence[str]) -> tuple[str, str | None]:
    """What open_clip calls them."""
    if path.is_dir():
        if architecture is not None:
            raise ValueError(f"an architecture, {architecture}, is given for the folder {path}, whose {CONFIG} says it")
        if not (path / CONFIG).is_file():
            raise ValueError(f"{path} is no folder of a CLIP model: {CONFIG} is missing")
        return f"local-dir:{path}", None
    if not path.is_file():
        raise ValueError(f"no such file or folder: {path}")
    if architecture not in known:  # another name might be looked for on the web
        asked = "no architecture is given" if architecture is None else f"the architecture is {architecture}"
        raise ValueError(f"{asked} for the checkpoint {path}, expected a name that open_clip knows, such as ViT-B-32")
    return architecture, str(path)
