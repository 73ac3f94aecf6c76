"""What is set about reading samples and about captions; checked when it is made."""

from dataclasses import dataclass
from typing import Literal

from data.text import BYTES


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How samples are chosen and read.

    Attributes:
        batch_size: samples a batch, per device.
        workers: processes that read, for training and for validation each; 0 reads in the main process.
        seed: of the order, the augmentation, the choice of captions and BPE dropout; a signed 64-bit integer.
        val_fraction: of the samples without a split of their own, held back for validation by a hash of the key.
        val_count: validation uses at most so many samples, evenly spread over the split.
        max_rejected: the largest fraction of a folder's files or of shards' samples that may be unusable, in [0, 1]; of
            streamed ones, of what a device has fetched, or of its share of an epoch while that is more.
        report: a JSON file that is given the list of them; train.py's is RUN/rejects.json. What only reading finds to
            be broken is added to a file beside it, RUN/rejects-found.jsonl.
    """

    batch_size: int = 32
    workers: int = 2
    seed: int = 0
    val_fraction: float = 0.02
    val_count: int = 2_048
    max_rejected: float = 0.05
    report: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.val_count < 1:
            raise ValueError(f"batch_size={self.batch_size}, val_count={self.val_count}, expected at least 1 each")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers}, expected 0 or more")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction={self.val_fraction}, expected a fraction from 0 to below 1")
        if not 0 <= self.max_rejected <= 1:
            raise ValueError(f"max_rejected={self.max_rejected}, expected a fraction from 0 to 1 (0.05 is 5%)")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}, expected -2**63 to 2**63 - 1: it is mixed as 64 bits")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How captions become tokens.

    Attributes:
        text_len: positions of the text, BOS included; a caption has at most one token less.
        vocab_size: entries of the BPE that is trained on the training captions where `tokenizer` is None. It gets fewer
            where the captions run out of pairs to merge.
        tokenizer: a tokenizer.json, or the folder that holds it, to be used as it is.
        bpe_dropout: chance of a merge to be passed over in training, in [0, 1]; 0.1 in the paper.
        captions: "any" draws one of a picture's captions each time, "first" takes its first one.
    """

    text_len: int = 256
    vocab_size: int = 16_384
    tokenizer: str | None = None
    bpe_dropout: float = 0.1
    captions: Literal["any", "first"] = "any"

    def __post_init__(self) -> None:
        if self.text_len < 2:
            raise ValueError(f"text_len={self.text_len}, expected at least 2: BOS and one token")
        if self.vocab_size < BYTES:
            raise ValueError(f"vocab_size={self.vocab_size}, expected at least {BYTES}: one entry for each byte")
        if not 0 <= self.bpe_dropout <= 1:
            raise ValueError(f"bpe_dropout={self.bpe_dropout}, expected a probability from 0 to 1")
        if self.captions not in ("any", "first"):
            raise ValueError(f"captions={self.captions!r}, expected 'any' or 'first'")
