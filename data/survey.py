"""What a set of samples holds, in numbers: sizes of pictures, lengths of captions, splits, and what repeats itself."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data.codes import CodesSource
from data.near_duplicates import LEAST_SIDE, near_duplicates, picture_hash
from data.pictures import PictureError, place_of
from data.rejects import Rejected
from data.source import Source
from data.split import Keyed
from data.threads import in_threads
from data.waiting import with_progress

QUANTILES = {"least": 0.0, "5%": 0.05, "half": 0.5, "95%": 0.95, "most": 1.0}
SHOWN = 20  # files that a survey names
BARS = 12  # of a histogram


def survey_captions(source: Keyed, rows: Sequence[int], count_tokens: Callable[[str], int] | None) -> dict[str, Any]:
    """How many captions these samples have, and how long they are in characters and, where it is counted, in tokens."""
    texts, unreadable = [], []
    for row in rows:
        try:
            texts.append(source.captions(row))
        except ValueError as error:
            unreadable.append(str(error))
    captions = [text for each in texts for text in each]
    found = {
        "captions": len(captions),
        "pictures without": sum(not each for each in texts),
        "a picture": spread_of([len(each) for each in texts]),
        "different": len(set(captions)),
        "characters": spread_of([len(text) for text in captions]),
    }
    found |= _of_unreadable(unreadable)
    return found | ({} if count_tokens is None else {"tokens": spread_of(list(map(count_tokens, captions)))})


def _of_unreadable(errors: Sequence[str]) -> dict[str, Any]:
    return {"unreadable": len(errors), "first unreadable": errors[:SHOWN]} if errors else {}


def survey_splits(source: Keyed) -> dict[str, int]:
    """Samples of each split that the source itself declares."""
    splits = Counter(source.split(row) for row in range(len(source)))
    return {split or "none of its own": count for split, count in splits.most_common()}


def survey_pictures(source: Source, rows: Sequence[int], most_bits: int) -> dict[str, Any]:
    """Widths, heights and aspect ratios of these pictures, which are decoded for it; broken ones; near duplicates.

    `most_bits` of 64 may differ in near duplicates (near_duplicates.py).
    """

    def look(row: int) -> tuple[int, int, int] | str:
        try:
            image = source.image(row, LEAST_SIDE)
        except (PictureError, Rejected) as error:
            return str(error)
        return *place_of(image).size, picture_hash(image)

    seen = in_threads(look, rows)  # decoding releases the interpreter's lock
    looks = list(with_progress(seen, len(rows), "pictures", done="looked at", things="pictures"))
    broken = [look for look in looks if isinstance(look, str)]
    sound = [(row, look) for row, look in zip(rows, looks, strict=True) if not isinstance(look, str)]
    sizes = np.array([look[:2] for _, look in sound], np.int64).reshape(-1, 2)
    repeated = near_duplicates(np.array([look[2] for _, look in sound], np.uint64), most_bits)
    pairs = np.flatnonzero(repeated >= 0).tolist()
    return {
        "looked at": len(rows),
        "width": spread_of(sizes[:, 0].tolist()),
        "height": spread_of(sizes[:, 1].tolist()),
        "width over height": spread_of((sizes[:, 0] / sizes[:, 1]).tolist()),
        "broken": len(broken),
        "first broken": broken[:SHOWN],
        "near duplicates": len(pairs),
        "first near duplicates": [[source.key(sound[i][0]) for i in (pair, repeated[pair])] for pair in pairs[:SHOWN]],
    }


def survey_codes(source: CodesSource, rows: Sequence[int]) -> dict[str, Any]:
    """Which tokenizer made the codes, and how many different ones these pictures have."""
    counts, unreadable = np.zeros(source.codebook_size, np.int64), []
    for row in rows:
        try:
            codes = source.codes(row)
        except ValueError as error:
            unreadable.append(str(error))
            continue
        counts += np.bincount(codes.flatten().numpy(), minlength=source.codebook_size)
    shares = counts[counts > 0] / max(1, counts.sum())
    found = {
        "tokenizer": source.fingerprint,
        "grid": list(source.grid_size),
        "codebook": source.codebook_size,
        "looked at": len(rows),
        "codes in use": int((counts > 0).sum()),
        "perplexity": round(float(np.exp(-(shares * np.log(shares)).sum())), 1),
    }
    return found | _of_unreadable(unreadable)


def spread_of(values: Sequence[float]) -> dict[str, Any]:
    """Quantiles, the mean and a histogram of numbers, whose bars are as wide as each other on a scale of ratios.

    {} of no numbers.
    """
    if not values:
        return {}
    array = np.asarray(values, np.float64)
    found = {name: _short(np.quantile(array, q, method="nearest")) for name, q in QUANTILES.items()}
    low, high = max(array.min(), 1e-3), max(array.max(), 1e-3)
    edges = np.geomspace(low, high, BARS + 1) if high > low else np.array([low, high])
    counts, _ = np.histogram(array.clip(low, high), np.unique(edges) if high > low else 1)
    bars = {"edges": [_short(edge) for edge in edges], "counts": counts.tolist()}
    return found | {"mean": _short(array.mean()), "histogram": bars}


def _short(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(f"{value:.4g}")
