"""Flags are many, and alike in every style: only a share of them stays in a set."""

from collections import defaultdict
from collections.abc import Sequence

from data.prepare.build import Piece, Rejects
from data.prepare.wording import stable_order

FLAG_SHARE = 0.05  # flags for every other picture, at most


def cap_flags(pieces: Sequence[Piece], rejects: Rejects) -> list[Piece]:
    """Keeps whole flag concepts, in a stable order, until they make `FLAG_SHARE` of the other pieces."""
    flags = defaultdict(list)
    for piece in pieces:
        if piece.concept.startswith("flag-"):
            flags[piece.concept].append(piece)
    room = FLAG_SHARE * (len(pieces) - sum(map(len, flags.values())))
    kept: set[str] = set()
    for concept in stable_order(list(flags), "flags"):
        room -= len(flags[concept])
        if room < 0:
            break
        kept.add(concept)
    for piece in pieces:
        if piece.concept in flags and piece.concept not in kept:
            rejects.add("flag above the cap", piece.file_name)
    return [piece for piece in pieces if piece.concept not in flags or piece.concept in kept]
