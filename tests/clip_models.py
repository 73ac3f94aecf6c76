"""A CLIP-like model with random weights, small."""

import json
from pathlib import Path

import open_clip
import torch

from clip_scores import CONFIG

SIZES = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
PREPROCESS = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
WEIGHTS = "open_clip_pytorch_model.bin"


def write_clip_model(folder: Path) -> Path:
    """As the hubs hold them; returns the folder."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps({"model_cfg": SIZES, "preprocess_cfg": PREPROCESS}))
    torch.save(open_clip.CLIP(**SIZES).state_dict(), folder / WEIGHTS)
    return folder
