"""Folders of codes that are out to hurt: what is done to a sound one, and the file that the error has to name.

What is forged carries the sums and sizes that it should, as whoever wants to hurt would write it.
"""

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from data.code_manifest import MANIFEST
from data.code_shards import sealed, sums_of
from tests.hostile.models import DEEP, DIGITS, Damage, Hostile, changed, cut, replaced

SHARD = Path("000000.safetensors")
MANIFEST_FILE = Path(MANIFEST)


def forged(change: Callable[[dict[str, np.ndarray], dict[str, Any]], object]) -> Damage:
    """The first shard with other tensors or another header, and the manifest that belongs to it."""

    def damage(folder: Path) -> None:
        with safe_open(folder / SHARD, "np") as file:
            said = json.loads(file.metadata()["shard"])
            arrays = {name: file.get_tensor(name) for name in file.offset_keys()}
        change(arrays, said)
        with suppress(KeyError, IndexError, TypeError, ValueError):  # there are none of what is so wrong
            arrays["sums"] = sums_of(arrays)
        content = sealed({name: value for name, value in said.items() if name not in ("tables", "digest")}, arrays)
        (folder / SHARD).write_bytes(content)
        with safe_open(folder / SHARD, "np") as file:
            digest = json.loads(file.metadata()["shard"])["digest"]
        changed(MANIFEST_FILE, lambda manifest: manifest["shards"][0].update(bytes=len(content), digest=digest))(folder)

    return damage


def in_shard(name: str, place: int, value: int) -> Damage:
    return forged(lambda arrays, said: arrays[name].reshape(-1).__setitem__(place, value))


def manifests() -> Iterator[tuple[str, Hostile]]:
    contents = {
        "empty": b"",
        "a list": b"[]",
        "null": b"null",
        "nothing in it": b"{}",
        "not JSON": b"codes",
        "utf-16": '{"kind": "codes"}'.encode("utf-16"),
        "lists in lists": b"[" * DEEP + b"]" * DEEP,
        "objects in objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        "a number of ten thousand digits": b'{"kind": ' + DIGITS.encode() + b"}",
    }
    for name, content in contents.items():
        yield f"manifest: {name}", Hostile(replaced(MANIFEST_FILE, content), MANIFEST)
    yield "manifest: half of it", Hostile(cut(MANIFEST_FILE, 0.5), MANIFEST)
    yield "manifest: not there", Hostile(lambda folder: (folder / MANIFEST).unlink(), f"{MANIFEST}|half-made|no folder")
    wrong = {
        "-1": -1,
        "0": 0,
        "a fraction": 1.5,
        "a text": "8",
        "a list": [8],
        "null": None,
        "true": True,
        "2^62": 2**62,
    }
    for key in ("codebook_size", "image_size", "crops", "count", "rows_per_shard", "grid_size"):
        for name, value in wrong.items():
            if (key, name) in {("image_size", "2^62"), ("rows_per_shard", "2^62")}:
                continue  # which is strange, and hurts nobody
            yield (
                f"manifest: {key} is {name}",
                Hostile(changed(MANIFEST_FILE, _setting(key, value)), f"{MANIFEST}|safetensors"),
            )
    for key in ("kind", "fingerprint", "shards", "bare", "seed"):
        yield f"manifest: no {key}", Hostile(changed(MANIFEST_FILE, lambda found, key=key: found.pop(key)), MANIFEST)
        yield f"manifest: {key} is an object", Hostile(changed(MANIFEST_FILE, _setting(key, {})), MANIFEST)
    for name in (
        "../elsewhere.safetensors",
        "/etc/passwd",
        "..",
        "",
        "a\0b",
        "x" * 5000,
        "nothing.safetensors",
        7,
        None,
    ):
        yield (
            f"manifest: a shard called {str(name)[:40]!r}",
            Hostile(changed(MANIFEST_FILE, _entry("name", name)), "codes"),
        )
    for key, values in {"pictures": (-1, 10**12, 1.5, "2"), "bytes": (0, -1, "x"), "digest": (7, "0" * 32)}.items():
        for value in values:
            yield (
                f"manifest: {key} of a shard is {value!r}",
                Hostile(changed(MANIFEST_FILE, _entry(key, value)), "codes"),
            )
    yield (
        "manifest: a shard twice",
        Hostile(changed(MANIFEST_FILE, lambda found: found["shards"].append(found["shards"][0])), MANIFEST),
    )
    yield "manifest: entry of nobody", Hostile(changed(MANIFEST_FILE, _entry("surprise", 1)), MANIFEST)


def _setting(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda found: found.update({key: value})


def _entry(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda found: found["shards"][0].update({key: value})


def shards() -> Iterator[tuple[str, Hostile]]:
    named = str(SHARD)
    for part in (0.0, 0.01, 0.5, 0.99):
        yield f"shard: {part:.0%} of it", Hostile(cut(SHARD, part), named)
    yield "shard: not there", Hostile(lambda folder: (folder / SHARD).unlink(), named)
    header = b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"
    same_size = lambda content: lambda folder: _of_the_same_size(folder, content)  # noqa: E731
    yield "shard: header of lists in lists", Hostile(same_size(struct.pack("<Q", len(header)) + header), named)
    yield "shard: header of eight exabytes", Hostile(same_size(struct.pack("<Q", 2**63)), named)
    yield "shard: zeros", Hostile(same_size(b""), named)
    said = {
        "lists in lists": "[" * DEEP + "]" * DEEP,
        "a list": "[]",
        "a number of ten thousand digits": '{"recipe": ' + DIGITS + "}",
        "nothing": "{}",
        "not JSON": "shard",
    }
    for name, text in said.items():
        yield f"shard: it says {name} of itself", Hostile(_saying(text), named)
    forgeries: dict[str, Damage] = {
        "a code that the tokenizer has not": in_shard("codes", 0, 60_000),
        "a split that is none": in_shard("splits", 0, 7),
        "strings that begin behind the end": in_shard("firsts", 0, 2**40),
        "strings without an end": in_shard("firsts", 1, 2**63),
        "bounds behind the end": in_shard("bounds", 1, 2**63),
        "bounds that go back": in_shard("bounds", 1, 2**40),
        "keys that are no UTF-8": in_shard("strings", 0, 0xFF),
        "another dtype": forged(lambda arrays, said: arrays.update(codes=arrays["codes"].astype(np.int32))),
        "another shape": forged(lambda arrays, said: arrays.update(codes=arrays["codes"][:1])),
        "one axis": forged(lambda arrays, said: arrays.update(codes=arrays["codes"].reshape(-1))),
        "no strings": forged(lambda arrays, said: arrays.update(strings=np.empty(0, np.uint8))),
        "no bounds": forged(lambda arrays, said: arrays.update(bounds=np.empty(0, np.uint64))),
        "no firsts": forged(lambda arrays, said: arrays.update(firsts=np.empty(0, np.uint64))),
        "a tensor less": forged(lambda arrays, said: arrays.pop("strings")),
        "a tensor more": forged(lambda arrays, said: arrays.update(more=np.zeros(1))),
        "bare as a number": forged(lambda arrays, said: said.update(bare=7)),
        "a setting of nobody": forged(lambda arrays, said: said.update(surprise=7)),
    }
    for name, damage in forgeries.items():
        yield f"shard: {name}", Hostile(damage, named)


def _of_the_same_size(folder: Path, content: bytes) -> None:
    size = (folder / SHARD).stat().st_size
    (folder / SHARD).write_bytes(content[:size].ljust(size, b"\0"))


def _saying(text: str) -> Damage:
    def damage(folder: Path) -> None:
        with safe_open(folder / SHARD, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.offset_keys()}
        content = save(arrays, {"shard": text})
        (folder / SHARD).write_bytes(content)
        changed(MANIFEST_FILE, lambda manifest: manifest["shards"][0].update(bytes=len(content)))(folder)

    return damage


GROUPS: tuple[Callable[[], Iterator[tuple[str, Hostile]]], ...] = (manifests, shards)
CODES: dict[str, Hostile] = {name: hostile for group in GROUPS for name, hostile in group()}
