import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn as nn

from tests.vqvae.foreign.formats import DalleSizes


@contextmanager
def modules_with(classes: dict[str, type]) -> Iterator[None]:
    """`classes` by their dotted names can be pickled; afterwards there are no such modules."""
    added = set()
    for dotted, made in classes.items():
        module, _, made.__name__ = dotted.rpartition(".")
        made.__qualname__, made.__module__ = made.__name__, module
        for part in (module, module.partition(".")[0]):
            if part not in sys.modules:
                sys.modules[part] = ModuleType(part)
                added.add(part)
        setattr(sys.modules[module], made.__name__, made)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


@pytest.fixture
def save_with_classes() -> Callable[..., Path]:
    """save(thing, path, classes, zipped): torch.save while classes that nobody has exist."""

    def save(thing, path: Path, classes: dict[str, type], zipped: bool = True) -> Path:
        with modules_with(classes):
            torch.save(thing, path, _use_new_zipfile_serialization=zipped)
        return path

    return save


@pytest.fixture
def save_dalle(save_with_classes) -> Callable[..., Path]:
    """save(part, sizes, tensors, path): pickled modules, each with the attributes that the released ones have."""

    class Conv2d(nn.Module):
        def __init__(self, w, b) -> None:
            super().__init__()
            self.n_out, self.n_in, self.kw = w.shape[:3]
            self.use_float16, self.device, self.requires_grad = True, torch.device("cpu"), False
            self.w, self.b = nn.Parameter(w), nn.Parameter(b)

    class Block(nn.Module):
        def __init__(self, id_path, res_path, post_gain: float) -> None:
            super().__init__()
            self.n_layers, self.post_gain, self.id_path, self.res_path = 8, post_gain, id_path, res_path

    class Part(nn.Module):
        def __init__(self, blocks, sizes: DalleSizes) -> None:
            super().__init__()
            self.group_count, self.n_hid, self.vocab_size, self.blocks = 4, sizes.n_hid, sizes.codebook_size, blocks

    def save(part: str, sizes: DalleSizes, tensors, path: Path, zipped: bool = True, post_gain=None) -> Path:
        gain = 1 / (4 * sizes.n_blk_per_group) ** 2 if post_gain is None else post_gain

        def conv(name: str) -> Conv2d:
            return Conv2d(tensors[f"{name}.w"], tensors[f"{name}.b"])

        blocks = nn.Sequential()
        blocks.add_module("input", conv("blocks.input"))
        for g in range(1, 5):
            group = nn.Sequential()
            for b in range(1, sizes.n_blk_per_group + 1):
                name, res_path = f"blocks.group_{g}.block_{b}", nn.Sequential()
                for i in range(1, 5):
                    res_path.add_module(f"relu_{i}", nn.ReLU())
                    res_path.add_module(f"conv_{i}", conv(f"{name}.res_path.conv_{i}"))
                id_path = conv(f"{name}.id_path") if f"{name}.id_path.w" in tensors else nn.Identity()
                group.add_module(f"block_{b}", Block(id_path, res_path, gain))
            if g < 4:
                group.add_module("pool", nn.MaxPool2d(2) if part == "encoder" else nn.Upsample(scale_factor=2))
            blocks.add_module(f"group_{g}", group)
        output = nn.Sequential()
        output.add_module("relu", nn.ReLU())
        output.add_module("conv", conv("blocks.output.conv"))
        blocks.add_module("output", output)
        package = f"dall_e.{part}"
        classes = {"dall_e.utils.Conv2d": Conv2d, f"{package}.Block": Block, f"{package}.{part.capitalize()}": Part}
        return save_with_classes(Part(blocks, sizes), path, classes, zipped)

    return save
