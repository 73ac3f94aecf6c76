"""Models small enough that a test of a script costs a fraction of a second, with pictures that differ."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():  # kernels then run in Triton's interpreter; it is chosen when they are imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

import sample
from data.text import TextTokenizer
from pipeline import TextToImage
from transformer.config import PriorConfig
from transformer.model import Prior
from vqvae.config import DiscreteVAEConfig
from vqvae.model import DiscreteVAE

# Threads that share work this small mostly wait for each other: beside other work, a test of 0.8 s took 65 s.
if "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of scripts that a test starts
    torch.set_num_threads(1)

CAPTIONS = ["a red circle", "a blue star", "a small green square left of a large yellow ring", "no circle at all"]


SIZES = {
    "image_size": 16,
    "n_hid": 8,
    "n_init": 8,
    "n_groups": 3,
    "n_blk_per_group": 1,
    "codebook_size": 16,
    "quantizer": "vq",
}


def build_image_tokenizer(seed: int = 0, **overrides: Any) -> DiscreteVAE:
    torch.manual_seed(seed)
    return _shaken(DiscreteVAE(DiscreteVAEConfig(**SIZES | overrides))).eval()


def build_pipeline(seed: int = 0) -> TextToImage:
    """4 x 4 codes of 16, pictures of 16 x 16."""
    image_tokenizer = build_image_tokenizer(seed)
    text_tokenizer = TextTokenizer.train(CAPTIONS * 4, vocab_size=300)
    config = PriorConfig(
        text_vocab_size=text_tokenizer.vocab_size,
        text_len=24,
        codebook_size=16,
        grid_size=image_tokenizer.grid_size,
        n_layer=3,
        n_head=2,
        n_embd=16,
        conv_kernel=3,
    )
    return TextToImage(_shaken(Prior(config)).eval(), text_tokenizer, image_tokenizer)


def _shaken(model: torch.nn.Module) -> torch.nn.Module:
    """With starting values alone, all pictures are the same grey."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


@pytest.fixture(autouse=True)
def ctrl_c_restored() -> Iterator[None]:
    """Lightning leaves Ctrl-C ignored after a fit that it has ended, as does a shell that starts pytest beside it."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.SIG_IGN:
        handler = signal.default_int_handler
        signal.signal(signal.SIGINT, handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def pipeline() -> TextToImage:
    return build_pipeline()


@pytest.fixture(scope="session")
def shared_bundle(tmp_path_factory) -> Path:
    """A bundle to be read only."""
    folder = tmp_path_factory.mktemp("bundle") / "model"
    build_pipeline().save_pretrained(folder, data_fingerprint="0123456789abcdef")
    return folder


@pytest.fixture
def sample_command(shared_bundle, tmp_path) -> Callable[..., list[str]]:
    """Arguments of sample.py with which it draws into tmp_path/out."""

    def sample_command(*args: object, out: str = "out", model: Path | str | None = None) -> list[str]:
        return [*map(str, args), "--model", str(model or shared_bundle), "--out", str(tmp_path / out)]

    return sample_command


@pytest.fixture
def draw(sample_command, tmp_path) -> Callable[..., Path]:
    """Samples into tmp_path/out; returns the folder."""

    def draw(*args: object, out: str = "out", model: Path | None = None) -> Path:
        sample.sample(sample_command(*args, out=out, model=model))
        return tmp_path / out

    return draw


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """To be read only."""
    from tests.clip_models import write_clip_model  # imports open_clip, which most tests do without

    return write_clip_model(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture
def image_tokenizer_of() -> Callable[..., DiscreteVAE]:
    return build_image_tokenizer


@pytest.fixture
def precision_restored() -> Iterator[None]:
    """train.py sets the precision of matrix products for the whole process."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="session")
def tokenizer_run(tmp_path_factory) -> Path:
    """A run of train.py, to be read only, like the next one."""
    from tests.runs import fit  # imports Lightning, which most tests do without

    return fit("tokenizer", tmp_path_factory.mktemp("runs") / "tokenizer")


@pytest.fixture(scope="session")
def prior_run(tmp_path_factory, tokenizer_run) -> Path:
    from tests.runs import fit

    return fit("prior", tmp_path_factory.mktemp("runs") / "prior", f"--tokenizer={tokenizer_run}")


@pytest.fixture
def extra(tokenizer_run) -> dict[str, list[str]]:
    """What a run of each kind is to be given besides its settings."""
    return {"tokenizer": [], "prior": [f"--tokenizer={tokenizer_run}"]}
