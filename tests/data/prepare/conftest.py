"""Tiny packages with the inner layout of the real ones, made on the spot and pinned by their own hash."""

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.prepare.packages import Package, sha256_of

Content = bytes | str | list | dict
SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">
  <rect x="4" y="4" width="8" height="8" fill="{}"/></svg>"""
RDF = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
  xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:cc="http://web.resource.org/cc/" viewBox="0 0 16 16"><metadata>
  <rdf:RDF><cc:Work rdf:about=""><dc:title>{title}</dc:title><dc:subject><rdf:Bag>{keywords}</rdf:Bag></dc:subject>
  <dc:publisher><cc:Agent><dc:title>Open Clip Art Library</dc:title></cc:Agent></dc:publisher>
  <dc:creator><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:creator></cc:Work></rdf:RDF></metadata>
  {body}</svg>"""


class Fakes:
    """Writes packages into `folder`; each method returns the `Package` that pins what it wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def npm(self, name: str, files: Mapping[str, Content]) -> Package:
        file = f"{name.removeprefix('@').replace('/', '-')}-1.0.0.tgz"
        (self.folder / file).write_bytes(tar(files, "w:gz"))
        return self._pin("npm", name, file)

    def wheel(self, name: str, files: Mapping[str, Content]) -> Package:
        file = f"{name}-1.0.0-py3-none-any.whl"
        with zipfile.ZipFile(self.folder / file, "w") as opened:
            for path, content in files.items():
                opened.writestr(path, to_bytes(content))
        return self._pin("pip", name, file)

    def deb(self, name: str, files: Mapping[str, Content]) -> Package:
        file = f"{name}_1.0.0_all.deb"
        parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": tar(files, "w:xz")}
        (self.folder / file).write_bytes(ar(parts))
        return self._pin("apt", name, file)

    def _pin(self, client: str, name: str, file: str) -> Package:
        digest = sha256_of(self.folder / file)
        return Package(client=client, name=name, version="1.0.0", file=file, sha256=digest, licence="MIT")

    @staticmethod
    def svg(colour: str = "red") -> str:
        return SVG.format(colour)

    @staticmethod
    def clip_art(title: str, author: str = "Jo Doe", keywords: str = "", body: str | None = None) -> str:
        items = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords.split())
        body = body or f'<!-- {title} --><circle cx="8" cy="8" r="{5 + len(title) / 100}"/>'
        return RDF.format(title=title, author=author, keywords=items, body=body)

    @staticmethod
    def picture(
        colour: object = "red", size: tuple[int, int] = (16, 16), form: str = "PNG", mode: str = "RGB"
    ) -> bytes:
        file = io.BytesIO()
        Image.new(mode, size, colour).save(file, format=form)
        return file.getvalue()

    @staticmethod
    def noise(seed: int, size: tuple[int, int], form: str = "PNG") -> bytes:
        file = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, format=form)
        return file.getvalue()


def to_bytes(content: Content) -> bytes:
    if isinstance(content, bytes):
        return content
    return (content if isinstance(content, str) else json.dumps(content)).encode()


def tar(files: Mapping[str, Content], mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as opened:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(to_bytes(content))
            opened.addfile(info, io.BytesIO(to_bytes(content)))
    return file.getvalue()


def ar(parts: Mapping[str, bytes]) -> bytes:
    """An `ar` archive as dpkg-deb writes it: contents begin at even offsets."""
    out = b"!<arch>\n"
    for name, content in parts.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        out += b"\n" * (len(content) % 2)
    return out


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    return Fakes(tmp_path / "packages")


@pytest.fixture
def no_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """No npm, pip or apt-get to be found, as on a machine without them."""
    monkeypatch.setenv("PATH", "")
