"""Model folders that are out to hurt: what is done to a sound bundle, and the file that the error has to name.

A bundle (pipeline.py) holds the folders of two models, a text tokenizer and a manifest, so everything that is read of a
model is in it.
"""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

Damage = Callable[[Path], None]

PRIOR, IMAGE_TOKENIZER = Path("config.json"), Path("image_tokenizer/config.json")
BUNDLE, TEXT_TOKENIZER = Path("bundle.json"), Path("tokenizer.json")
WEIGHTS = (Path("model.safetensors"), Path("image_tokenizer/model.safetensors"))
DEEP, DIGITS = 100_000, "9" * 10_000


class Hostile(NamedTuple):
    damage: Damage
    named: str  # what the error's message has to hold


def replaced(file: Path, content: bytes | str) -> Damage:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / file).write_bytes(data) and None


def changed(file: Path, change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        settings = json.loads((folder / file).read_text("utf-8"))
        change(settings)
        (folder / file).write_text(json.dumps(settings), "utf-8")

    return damage


def with_value(file: Path, key: str, value: object) -> Damage:
    return changed(file, lambda settings: settings.update({key: value}))


def cut(file: Path, part: float) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: int(part * len(data))])

    return damage


def files() -> Iterator[tuple[str, Hostile]]:
    """What can be wrong with any file of JSON."""
    contents = {
        "empty": b"",
        "zeros": bytes(100),
        "a list": b"[]",
        "a number": b"7",
        "null": b"null",
        "a text": b'"settings"',
        "not JSON": b"n_layer: 4",
        "utf-16": '{"n_layer": 4}'.encode("utf-16"),
        "latin-1": '{"naïve": 4}'.encode("latin-1"),
        "lists in lists": b"[" * DEEP + b"]" * DEEP,
        "objects in objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        "a number of ten thousand digits": b'{"n_layer": ' + DIGITS.encode() + b"}",
        "nothing in it": b"{}",
        "a pickle": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch MARKER\x85R.",
    }
    for file in (PRIOR, IMAGE_TOKENIZER, BUNDLE, TEXT_TOKENIZER):
        for name, content in contents.items():
            # The defaults are a model too, one whose weights these are not.
            named = "safetensors" if content == b"{}" and file in (PRIOR, IMAGE_TOKENIZER) else str(file)
            yield f"{file}: {name}", Hostile(replaced(file, content), named)
        yield f"{file}: half of it", Hostile(cut(file, 0.5), str(file))
        yield f"{file}: not there", Hostile(lambda folder, file=file: (folder / file).unlink(), file.name)
        yield f"{file}: a folder", Hostile(_folder_in_place(file), file.name)
        yield f"{file}: a link to itself", Hostile(_link_in_place(file, file.name), file.name)
        yield f"{file}: a link to endless zeros", Hostile(_link_in_place(file, "/dev/zero"), file.name)


def _folder_in_place(file: Path) -> Damage:
    def damage(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return damage


def _link_in_place(file: Path, target: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to(target)

    return damage


def sizes() -> Iterator[tuple[str, Hostile]]:
    """Settings whose values are none, or are those of a model that no machine holds."""
    wrong = {"-1": -1, "0": 0, "a fraction": 1.5, "a text": "8", "a list": [8], "an object": {"n": 8}, "true": True}
    wrong |= {"NaN": float("nan"), "infinity": float("inf"), "a billion": 10**9, "2^62": 2**62, "2^200": 2**200}
    for key in ("n_layer", "n_embd", "text_len", "text_vocab_size", "conv_kernel"):
        for name, value in wrong.items():
            yield f"prior's {key} is {name}", Hostile(with_value(PRIOR, key, value), "config.json|model.safetensors")
    for key in ("image_size", "n_hid", "n_groups", "n_blk_per_group", "codebook_size"):
        for name, value in wrong.items():
            damage = with_value(IMAGE_TOKENIZER, key, value)
            yield (
                f"image tokenizer's {key} is {name}",
                Hostile(damage, "image_tokenizer/(config.json|model.safetensors)"),
            )
    yield "prior's setting that nobody knows", Hostile(with_value(PRIOR, "surprise", 1), "surprise")
    yield (
        "image tokenizer's setting that nobody knows",
        Hostile(with_value(IMAGE_TOKENIZER, "__class__", 1), "__class__"),
    )
    for value in ([4], [4, 4, 4], [4, -4], ["4", "4"], "44", 4, None, [10**9, 10**9], [[4], [4]]):
        damage = with_value(PRIOR, "grid_size", value)
        yield f"prior's grid_size is {value}", Hostile(damage, "config.json|model.safetensors")
    for key, value in {
        "preset": "../../etc",
        "block": "os.system",
        "masks": 7,
        "conv_wrap": None,
        "attend_pads": "no",
    }.items():
        yield f"prior's {key} is {value!r}", Hostile(with_value(PRIOR, key, value), "config.json")
    options: dict[str, object] = {
        "network": "os", "quantizer": "__init__", "pixels": [], "kind": "builtins.eval", "post_gain": float("nan"),
    }  # fmt: skip
    for key, value in options.items():
        yield (
            f"image tokenizer's {key} is {value!r}",
            Hostile(with_value(IMAGE_TOKENIZER, key, value), str(IMAGE_TOKENIZER)),
        )
    for value in ("x", [1], {"codebook_dim": 10**12}, {"codebook_dim": -1}, {"codebook_dim": []}, {"self": 1}, {"": 1}):
        damage = with_value(IMAGE_TOKENIZER, "quantizer_options", value)
        yield f"quantizer_options are {value}", Hostile(damage, "image_tokenizer/(config.json|model.safetensors)")


def manifests() -> Iterator[tuple[str, Hostile]]:
    for part in ("prior", "text_tokenizer", "image_tokenizer"):
        yield (
            f"bundle without {part}",
            Hostile(changed(BUNDLE, lambda settings, part=part: settings.pop(part)), "bundle.json"),
        )
        yield f"{part} is a number", Hostile(with_value(BUNDLE, part, 7), "bundle.json")
        yield f"{part} is another", Hostile(with_value(BUNDLE, part, "0" * 16), "bundle.json says 0000")


def weights() -> Iterator[tuple[str, Hostile]]:
    def header(content: bytes, rest: bytes = b"", length: int | None = None) -> bytes:
        return struct.pack("<Q", len(content) if length is None else length) + content + rest

    def entry(**changes: object) -> bytes:
        values = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
        return header(json.dumps({"a": values}).encode(), bytes(8))

    contents = {
        "empty": b"",
        "eight zeros": bytes(8),
        "no header": header(b"{}"),
        "header of eight exabytes": header(b"{}", length=2**63),
        "header of all bits": header(b"{}", length=2**64 - 1),
        "header longer than the file": header(b"{}", length=1000),
        "header of a hundred megabytes": header(b"{}" + b" " * 100, length=10**8),
        "header that is no JSON": header(b"weights"),
        "header that is a list": header(b"[]"),
        "header of lists in lists": header(b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"),
        "header in latin-1": header('{"ä":1}'.encode("latin-1")),
        "numbers that nobody knows": entry(dtype="F31"),
        "complex numbers": entry(dtype="C64", shape=[1]),
        "numbers of 4 bits": entry(dtype="F4", shape=[16]),
        "no shape": entry(shape=None),
        "shape of -2": entry(shape=[-2]),
        "shape of 2^62 by 2^62": entry(shape=[2**62, 2**62]),
        "shape larger than its bytes": entry(shape=[3]),
        "begins behind its end": entry(data_offsets=[8, 0]),
        "ends behind the file": entry(shape=[4], data_offsets=[0, 16]),
        "begins before the file": entry(data_offsets=[-8, 0]),
        "metadata that are no texts": header(b'{"__metadata__": {"a": 1}}'),
        "a pickle": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch MARKER\x85R.",
        "a zip archive": b"PK\x03\x04" + bytes(100),
    }
    for file in WEIGHTS:
        for name, content in contents.items():
            yield f"{file}: {name}", Hostile(replaced(file, content), str(file))
        for part in (0.001, 0.1, 0.5, 0.999):
            yield f"{file}: {part:.1%} of it", Hostile(cut(file, part), str(file))
        yield f"{file}: not there", Hostile(lambda folder, file=file: (folder / file).unlink(), str(file))
        for name, change in _changes_of_tensors().items():
            yield f"{file}: {name}", Hostile(_with_tensors(file, change), f"{file}|bundle.json")


def _with_tensors(file: Path, change: Callable[[dict[str, torch.Tensor], str], object]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors, next(name for name, tensor in tensors.items() if tensor.ndim > 1))
        save_file(tensors, folder / file)

    return damage


def _changes_of_tensors() -> dict[str, Callable[[dict[str, torch.Tensor], str], object]]:
    return {
        "one tensor less": lambda tensors, name: tensors.pop(name),
        "one tensor more": lambda tensors, name: tensors.update(surplus=torch.zeros(1)),
        "another name": lambda tensors, name: tensors.update({name.upper(): tensors.pop(name)}),
        "another shape": lambda tensors, name: tensors.update({name: tensors[name][:1].contiguous()}),
        "turned": lambda tensors, name: tensors.update({name: tensors[name].flatten()}),
        "no values": lambda tensors, name: tensors.update({name: torch.empty(0)}),
        "not a number": lambda tensors, name: tensors[name].view(-1)[:1].fill_(float("nan")),
        "infinity": lambda tensors, name: tensors[name].view(-1)[-1:].fill_(float("inf")),
        "one number changed": lambda tensors, name: tensors[name].view(-1)[:1].add_(1),
        "no tensors": lambda tensors, name: tensors.clear(),
    }


def text_tokenizers() -> Iterator[tuple[str, Hostile]]:
    """Beside what any JSON can have: what the library reads and we cannot use, and what it falls over."""

    def model(key: str, value: object) -> Damage:
        return changed(TEXT_TOKENIZER, lambda content: content["model"].update({key: value}))

    damages: dict[str, Damage] = {
        "no model": changed(TEXT_TOKENIZER, lambda content: content.pop("model")),
        "words for pairs": model("type", "WordLevel"),
        "no such model": model("type", "os.system"),
        "no vocabulary": model("vocab", {}),
        "vocabulary as a list": model("vocab", ["a"]),
        "ids that are texts": model("vocab", {"a": "0"}),
        "negative ids": model("vocab", {"a": -1}),
        "ids of 2^40": model("vocab", {"a": 2**40}),
        "one id twice": changed(TEXT_TOKENIZER, lambda content: content["model"]["vocab"].update({"!": 5})),
        "merges of what is not there": model("merges", [["q", "nothing of the kind"]]),
        "merges of three": model("merges", [["a", "b", "c"]]),
        "merges as numbers": model("merges", [1, 2]),
        "dropout beyond 1": model("dropout", 7.0),
        "added tokens": with_value(TEXT_TOKENIZER, "added_tokens", [{"id": 0, "content": "<bos>"}]),
        "padding": with_value(TEXT_TOKENIZER, "padding", {"strategy": {"Fixed": 2**60}}),
        "a normalizer": with_value(TEXT_TOKENIZER, "normalizer", {"type": "Lowercase"}),
        "a pattern that never ends": with_value(
            TEXT_TOKENIZER, "normalizer", {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}
        ),
        "a pattern that is none": with_value(
            TEXT_TOKENIZER, "normalizer", {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}
        ),
        "no splitter": with_value(TEXT_TOKENIZER, "pre_tokenizer", None),
        "another splitter": with_value(TEXT_TOKENIZER, "pre_tokenizer", {"type": "Whitespace"}),
        "a version of tomorrow": with_value(TEXT_TOKENIZER, "version", "99"),
    }
    for name, damage in damages.items():
        yield f"text tokenizer: {name}", Hostile(damage, "tokenizer.json")


GROUPS: tuple[Callable[[], Iterator[tuple[str, Hostile]]], ...] = (files, sizes, manifests, weights, text_tokenizers)
MODELS: dict[str, Hostile] = {name: hostile for group in GROUPS for name, hostile in group()}
