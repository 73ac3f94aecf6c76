"""A text tokenizer that is trained once on a folder of codes, and found there by every later run.

Training one on a hundred thousand captions takes many seconds. What was trained lies in FOLDER/text_tokenizers under a
name made of what it was trained on and of its own fingerprint, so that a damaged file is not taken for it.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from data.text import TextTokenizer
from whole_files import write_file

log = logging.getLogger(__name__)

TOKENIZERS = "text_tokenizers"


def trained_once(folder: Path, made_of: Sequence[object], train: Callable[[], TextTokenizer]) -> TextTokenizer:
    """The tokenizer in `folder` that was made of the same; else what `train` gives, which is kept there if it can be.

    Raises ValueError naming a file that is damaged.
    """
    name = hashlib.blake2b(json.dumps([str(each) for each in made_of]).encode(), digest_size=8).hexdigest()
    for path in sorted((folder / TOKENIZERS).glob(f"{name}-*.json")):
        tokenizer = TextTokenizer.load(path)
        if path.stem != f"{name}-{tokenizer.fingerprint}":
            raise ValueError(f"text tokenizer {path} is damaged, its entries are {tokenizer.fingerprint}: remove it")
        return tokenizer
    tokenizer = train()
    try:
        (folder / TOKENIZERS).mkdir(exist_ok=True)
        write_file(folder / TOKENIZERS / f"{name}-{tokenizer.fingerprint}.json", tokenizer.to_json().encode())
    except OSError as error:  # a folder that is only read, a full disk: the next run trains it again
        log.info("the text tokenizer is not kept for later runs: %s", error)
    return tokenizer
