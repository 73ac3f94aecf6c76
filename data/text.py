"""Captions to BPE ids and back.

Byte-level byte-pair encoding (Sennrich et al., https://arxiv.org/abs/1508.07909; on bytes: Radford et al., 2019) of the
`tokenizers` library: its smallest entries are the 256 bytes, so no character is unknown. DALL-E
(https://arxiv.org/abs/2102.12092) uses 16,384 entries on lower-cased captions and 10% BPE dropout (Provilkov et al.,
https://arxiv.org/abs/1910.13267). The library cannot seed its dropout, so `TextTokenizer` merges by itself when there
is dropout; without it the library does the work.

BOS and the pads of the positions are no entries of this vocabulary (`transformer/embeddings.py` owns them), and unused
positions hold PAD, which is negative: nothing that a caption says can collide with them.
"""

import hashlib
import heapq
import json
import random
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from whole_files import write_file

PAD = -1  # fills unused text positions; BPE ids are not negative
BYTES = 256
JOINERS = "\u200c\u200d"  # they shape Persian words and emoji ("family"): the only format characters that are kept


class Tokens(NamedTuple):
    """Captions as one tensor."""

    text_tokens: Tensor  # (B, text_len - 1) int64, PAD where there is no text
    truncated: int  # how many captions were cut


def normalise(caption: str) -> str:
    """One spelling for each caption: NFKC, lower case, single spaces, no controls.

    Control and format characters and lone surrogates go (but joiners stay), every run of white space becomes one
    space. Idempotent.
    """
    seen = caption if caption.isprintable() else "".join(filter(_is_kept, caption))
    lower = unicodedata.normalize("NFKC", seen).lower()
    return " ".join(unicodedata.normalize("NFKC", lower).split())


def _is_kept(character: str) -> bool:
    return character.isspace() or character in JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs")


def is_visible(caption: str) -> bool:
    """Whether `normalise` leaves more of a caption than white space and joiners."""
    return any(_is_kept(c) and not c.isspace() and c not in JOINERS for c in caption)


def pad(ids: Sequence[Sequence[int]], text_len: int) -> Tokens:
    """Put lists of ids into one tensor of `text_len - 1` columns (BOS takes position 0), cutting those that are longer.

    Raises ValueError where `text_len` leaves no room for text.
    """
    if text_len < 2:
        raise ValueError(f"text_len is {text_len}, expected at least 2: one position for BOS and one for text")
    room = text_len - 1
    text_tokens = torch.full((len(ids), room), PAD)  # (B, text_len - 1)
    for row, row_ids in zip(text_tokens, ids, strict=True):
        kept = torch.tensor(row_ids[:room], dtype=torch.int64)
        row[: len(kept)] = kept
    return Tokens(text_tokens, truncated=sum(len(row_ids) > room for row_ids in ids))


class TextTokenizer:
    """Byte-level BPE over normalised captions.

    Every word, the first one too, is spelt with the space before it, so that it has the same ids wherever it stands.

    Args:
        library_tokenizer: as `train` or `load` makes it: BPE model, byte-level pre-tokenizer, no added tokens.
    """

    def __init__(self, library_tokenizer: Tokenizer) -> None:
        self._library = library_tokenizer
        self._read_tables(json.loads(library_tokenizer.to_str()))

    def _read_tables(self, content: dict) -> None:
        """Raises ValueError where the entries are not what our own merge loop and the model's embedding rely on."""
        model, splitter = content["model"], content["pre_tokenizer"] or {}
        if model["type"] != "BPE" or splitter.get("type") != "ByteLevel":
            raise ValueError(f"expected a BPE model on bytes, got {model['type']} on {splitter.get('type')}")
        if content["added_tokens"] or content["normalizer"]:
            raise ValueError("expected no added tokens and no normalizer: BOS and pads live outside the vocabulary")
        _check_settings(content)
        self._vocab: dict[str, int] = model["vocab"]
        if missing := set(pre_tokenizers.ByteLevel.alphabet()) - self._vocab.keys():
            raise ValueError(f"expected all {BYTES} bytes in the vocabulary, {len(missing)} are missing")
        if set(self._vocab.values()) != set(range(len(self._vocab))):
            raise ValueError(f"expected the ids 0 to {len(self._vocab) - 1}, got others")
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int = 16_384) -> "TextTokenizer":
        """Learn the merges from captions; the same captions give the same entries.

        The vocabulary is smaller than `vocab_size` where the captions run out of pairs that occur twice.
        Raises ValueError where `vocab_size` does not hold the 256 bytes.
        """
        if vocab_size < BYTES:
            raise ValueError(f"vocab_size is {vocab_size}, expected at least {BYTES}: one entry for each byte")
        library = _untrained()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        library.train_from_iterator(map(normalise, captions), trainer)
        return cls(library)

    @property
    def vocab_size(self) -> int:
        """Number of entries; BOS and pads are not among them."""
        return len(self._vocab)

    def encode(self, caption: str, *, dropout: float = 0.0, generator: torch.Generator | None = None) -> list[int]:
        """Ids of a caption, as many as it needs; [] for an empty one.

        Args:
            caption: any text; it is normalised here.
            dropout: chance of a possible merge to be passed over, each time it is considered; in [0, 1].
            generator: what dropout draws from (one number a caption); needed where `dropout` is positive.
        """
        _check_dropout(dropout, generator)
        text = normalise(caption)
        if not text:
            return []
        if dropout == 0.0:
            return self._library.encode(text).ids
        draws = random.Random(int(torch.randint(2**62, (), generator=generator)))
        words = self._library.pre_tokenizer.pre_tokenize_str(text)
        return [self._vocab[part] for word, _ in words for part in merge(word, self._ranks, dropout, draws)]

    def encode_batch(
        self,
        captions: Sequence[str],
        text_len: int,
        *,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tokens:
        """Captions as (B, text_len - 1) ids, PAD after the last one, and the number that had to be cut.

        Raises ValueError where `text_len` leaves no room for text.
        """
        _check_dropout(dropout, generator)
        if dropout == 0.0:
            return pad(self._encode_many(captions), text_len)
        return pad([self.encode(caption, dropout=dropout, generator=generator) for caption in captions], text_len)

    def count_longer(self, captions: Iterable[str], text_len: int) -> int:
        """How many captions `encode_batch` would cut."""
        room = text_len - 1
        # An entry is a byte or more, the space in front is one: what is short enough so need not be encoded.
        perhaps = [text for text in map(normalise, captions) if 1 + len(text.encode()) > room]
        return sum(len(ids) > room for ids in self._encode_many(perhaps))

    def _encode_many(self, captions: Iterable[str]) -> list[list[int]]:
        texts = [normalise(caption) for caption in captions]
        encodings = self._library.encode_batch_fast(texts)
        return [encoding.ids if text else [] for text, encoding in zip(texts, encodings, strict=True)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, pads passed over; bytes that are no UTF-8 (a cut caption's end) become U+FFFD."""
        return self._library.decode([i for i in ids if i != PAD]).removeprefix(" ")

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the entries and merges: the same for tokenizers that give the same ids."""
        entries = sorted(self._vocab, key=self._vocab.__getitem__)
        return hashlib.blake2b(json.dumps([entries, list(self._ranks)]).encode(), digest_size=8).hexdigest()

    def to_json(self) -> str:
        """The content of `tokenizer.json`."""
        return self._library.to_str(pretty=True)

    @classmethod
    def from_json(cls, content: str) -> "TextTokenizer":
        """Of what `tokenizer.json` holds. Raises ValueError, or an exception of the library, where it is not ours."""
        return cls(Tokenizer.from_str(content))

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`, the library's own format."""
        write_file(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> "TextTokenizer":
        """Read `tokenizer.json`, or a folder's. Raises ValueError naming the file where it is missing or not ours."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"text tokenizer {path} not found: expected a tokenizer.json")
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"text tokenizer {path} cannot be read: {error}") from error


def _untrained() -> Tokenizer:
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    library.decoder = decoders.ByteLevel()
    return library


def _check_settings(content: dict) -> None:
    """ValueError where the library would make other ids of the same entries and merges than ours, or other text."""
    ours = json.loads(_untrained().to_str())
    parts = ("truncation", "padding", "pre_tokenizer", "post_processor", "decoder")
    wrong = [f"{part} is {content[part]}, expected {ours[part]}" for part in parts if content[part] != ours[part]]
    for name in ours["model"].keys() - {"vocab", "merges"}:
        found, expected = content["model"].get(name), ours["model"][name]
        if found != expected:
            wrong.append(f"model.{name} is {found}, expected {expected}")
    if wrong:
        raise ValueError("; ".join(sorted(wrong)))


def _check_dropout(dropout: float, generator: torch.Generator | None) -> None:
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"dropout is {dropout}, expected a probability from 0 to 1")
    if dropout > 0.0 and generator is None:
        raise ValueError(f"dropout is {dropout} but no generator was given to draw from")


def merge(word: str, ranks: dict[tuple[str, str], int], dropout: float, draws: random.Random) -> list[str]:
    """Merge the letters of a word, lowest rank first, each candidate passed over with probability `dropout`.

    Algorithm 1 of https://arxiv.org/abs/1910.13267, lazily: at each step the candidates are drawn for in order of rank
    only until one survives; those passed over compete again in the next step; where none survives, the word is done.
    A queue keeps it at n log n for a word of n letters (Chinese captions are one long word).
    """
    parts: list[str | None] = list(word)  # None where a part has been merged into one on its left
    left, right = list(range(-1, len(parts) - 1)), list(range(1, len(parts) + 1))
    queue: list[tuple[int, int, str, str]] = []

    def consider(i: int) -> None:
        j = right[i] if i >= 0 else len(parts)
        if j < len(parts) and (rank := ranks.get((parts[i], parts[j]))) is not None:
            heapq.heappush(queue, (rank, i, parts[i], parts[j]))

    for i in range(len(parts) - 1):
        consider(i)
    passed_over = []
    while queue:
        candidate = heapq.heappop(queue)
        _, i, first, second = candidate
        j = right[i]
        if parts[i] != first or j >= len(parts) or parts[j] != second:
            continue  # a neighbour took part in another merge since
        if draws.random() < dropout:
            passed_over.append(candidate)
            continue
        parts[i], parts[j] = first + second, None
        right[i] = right[j]
        if right[j] < len(parts):
            left[right[j]] = i
        for waiting in passed_over:
            heapq.heappush(queue, waiting)
        passed_over.clear()
        consider(left[i])
        consider(i)
    return [part for part in parts if part is not None]
