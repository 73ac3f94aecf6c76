"""A source whose pictures tell their index, and datamodules that read it."""

import torch
from PIL import Image

from data.datamodule import PriorData, TokenizerData
from data.settings import Loading, TextConfig

COLOURS = ("red", "green", "blue", "grey")


class Fake:
    """Flat pictures whose colour tells their index; two captions each."""

    def __init__(self, n: int = 40, size: tuple[int, int] = (20, 12), val: int = 4, word: str = "thing") -> None:
        self.n, self.size, self.val, self.word = n, size, val, word

    def __len__(self) -> int:
        return self.n

    def key(self, index: int) -> str:
        return f"{index}.png"

    def image(self, index: int, least: int | None = None) -> Image.Image:
        image = Image.new("RGB", self.size, (index, 0, 0))
        image.putpixel((self.size[0] // 2, self.size[1] // 2), (index, 255, 0))
        return image

    def captions(self, index: int) -> tuple[str, ...]:
        return (f"a {COLOURS[index % 4]} {self.word} number {index}", f"{COLOURS[index % 4]} no. {index}")

    def split(self, index: int) -> str | None:
        return "val" if index < self.val else "train"

    def identity(self) -> tuple[str]:
        return (repr((self.n, self.size, self.val, self.word)),)


def tokenizer_data(source: Fake | None = None, **loading) -> TokenizerData:
    data = TokenizerData(folder="fake", image_size=8, loading=Loading(**({"batch_size": 4, "workers": 0} | loading)))
    data.open_source = lambda: source or Fake()
    return data


def prior_data(source: Fake | None = None, text: dict | None = None, **loading) -> PriorData:
    text_config = TextConfig(**({"text_len": 16, "vocab_size": 300} | (text or {})))
    settings = Loading(**({"batch_size": 4, "workers": 0} | loading))
    data = PriorData(folder="fake", image_size=8, text=text_config, loading=settings)
    data.open_source = lambda: source or Fake()
    return data


def epochs_of(data, n: int = 2) -> list[dict]:
    """The batches of the first epochs, one after the other."""
    data.setup()
    loader = data.train_dataloader()
    return [batch for _ in range(n) for batch in loader]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name] for name in a
    )
