"""Normalisation, byte-level BPE, and dropout merges against the library's own."""

import json
import random
import sys
import unicodedata
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.text import BYTES, JOINERS, PAD, TextTokenizer, is_visible, merge, normalise, pad
from transformer import embeddings

CAPTIONS = [
    f"a {size} {colour} {shape} left of the {colour} {shape}s, une étoile 漢字漢字"
    for size in ("small", "large")
    for colour in ("red", "green", "purple")
    for shape in ("circle", "star", "triangle", "🚀 rocket")
]
TOKENIZER = TextTokenizer.train(CAPTIONS, 320)
ANY_TEXT = st.text(max_size=60) | st.text("aestr lircg漢字é🚀\u200d\u0301\x00\n", max_size=60)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("  A  Red\tCircle\n", "a red circle"),
        ("ﬁne ①½", "fine 11⁄2"),
        ("cafe\u0301", "café"),
        ("ＦＵＬＬ　ＷＩＤＴＨ", "full width"),
        ("a\x00b\x07c\u200bd\ufeff\u202ee", "abcde"),
        ("soft\u00adhyphen", "softhyphen"),
        ("a\u2028b\x85c", "a b c"),
        ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
        ("lone \ud800 half", "lone half"),
        ("ΑΣ", "ας"),
        ("\n \x00", ""),
    ],
)
def test_normalise(caption, expected):
    assert normalise(caption) == expected


@given(ANY_TEXT)
@settings(deadline=None)
def test_normalise_is_idempotent_and_clean(caption):
    once = normalise(caption)
    assert normalise(once) == once
    assert once == once.strip() and "  " not in once
    assert once == unicodedata.normalize("NFKC", once)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in once)


@pytest.mark.parametrize(
    "caption", ["", " \n", "\u200b", "\u2060\ufeff", "\u200d", "\u200c \u200d", "\x00\x01", "\ud800"]
)
def test_nothing_to_be_seen(caption):
    assert not is_visible(caption)
    assert is_visible(f"{caption}a")


def test_what_is_visible_outlives_normalisation():
    for character in map(chr, range(sys.maxunicode + 1)):
        assert is_visible(character) == bool(normalise(character).strip(" " + JOINERS))


@given(ANY_TEXT)
@settings(deadline=None)
def test_decode_inverts_encode(caption):
    ids = TOKENIZER.encode(caption)
    assert TOKENIZER.decode(ids) == normalise(caption)
    assert all(0 <= i < TOKENIZER.vocab_size for i in ids)


@given(ANY_TEXT, st.sampled_from([0.1, 0.5, 1.0]), st.integers(0, 2**31))
@settings(deadline=None)
def test_decode_inverts_encode_with_dropout(caption, dropout, seed):
    assert TOKENIZER.decode(TOKENIZER.encode(caption, dropout=dropout, generator=seeded(seed))) == normalise(caption)


def merged_by_us(tokenizer: TextTokenizer, text: str, dropout: float, draws: random.Random) -> list[int]:
    """Our merge loop, also where the tokenizer would leave the work to the library."""
    words = tokenizer._library.pre_tokenizer.pre_tokenize_str(text)
    return [tokenizer._vocab[part] for word, _ in words for part in merge(word, tokenizer._ranks, dropout, draws)]


@given(ANY_TEXT)
@settings(max_examples=300, deadline=None)
def test_our_merges_without_dropout_are_the_librarys(caption):
    text = normalise(caption)
    assert merged_by_us(TOKENIZER, text, 0.0, random.Random(0)) == (TOKENIZER.encode(text) if text else [])


def test_our_merges_are_the_librarys_on_what_it_was_trained_on():
    for caption in CAPTIONS:
        ids = merged_by_us(TOKENIZER, normalise(caption), 0.0, random.Random(0))
        assert ids == TOKENIZER.encode(caption)
        assert len(ids) < len(caption.encode()) / 2  # the merges did something


def algorithm_1(word: str, ranks: dict, dropout: float, draws: random.Random) -> list[str]:
    """BPE dropout as the paper writes it: each step draws for every possible merge."""
    parts = list(word)
    while True:
        possible = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
        survivors = [candidate for candidate in possible if draws.random() >= dropout]
        if not survivors:
            return parts
        _, i = min(survivors)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_dropout_is_that_of_the_paper_in_distribution():
    ranks = {("a", "b"): 0, ("c", "d"): 1, ("ab", "cd"): 2, ("b", "c"): 3, ("bc", "d"): 4, ("a", "bcd"): 5}
    n, draws = 20_000, random.Random(0)
    frequency: dict[str, list[int]] = {}
    for _ in range(n):
        for which, algorithm in enumerate((algorithm_1, merge)):
            frequency.setdefault(" ".join(algorithm("abcd", ranks, 0.4, draws)), [0, 0])[which] += 1
    assert len(frequency) >= 6
    for paper, ours in frequency.values():
        spread = (paper + ours) ** 0.5  # standard deviation of the difference of two counts
        assert abs(paper - ours) < 4 * spread


def test_dropout_is_a_function_of_the_generator():
    caption = CAPTIONS[0]
    plain = TOKENIZER.encode(caption)
    drawn = [tuple(TOKENIZER.encode(caption, dropout=0.3, generator=seeded(seed))) for seed in range(20)]
    assert drawn == [tuple(TOKENIZER.encode(caption, dropout=0.3, generator=seeded(seed))) for seed in range(20)]
    assert len(set(drawn)) > 10
    assert TOKENIZER.encode(caption, dropout=0.0, generator=seeded(1)) == plain
    letters = len((" " + normalise(caption)).encode())
    assert len(TOKENIZER.encode(caption, dropout=1.0, generator=seeded(1))) == letters
    assert len(plain) < sum(map(len, drawn)) / 20 < letters


def test_a_long_word_is_merged_quickly():
    assert len(TOKENIZER.encode("漢字" * 5000, dropout=0.1, generator=seeded())) > 1000  # n^2 would take minutes


def test_words_have_the_same_ids_wherever_they_stand():
    first, last = TOKENIZER.encode("red star"), TOKENIZER.encode("star red")
    assert first[-len(TOKENIZER.encode("star")) :] == last[: len(TOKENIZER.encode("star"))]


def test_special_looking_text_is_text():
    for caption in ("<pad>", "[bos]", "<|endoftext|>", "!", "\u0120"):
        assert TOKENIZER.decode(TOKENIZER.encode(caption)) == normalise(caption)
    assert TOKENIZER.encode("") == TOKENIZER.encode(" \n") == []


@given(ANY_TEXT)
@settings(deadline=None)
def test_no_caption_is_taken_for_a_pad(caption):
    """The prior tells pads by their number; both rooms state it, for neither imports the other."""
    assert PAD == embeddings.PAD
    ids = TOKENIZER.encode(caption)
    tokens = TOKENIZER.encode_batch([caption], len(ids) + 3).text_tokens
    assert embeddings.text_lengths(tokens).tolist() == [1 + len(ids)]


def test_encode_batch_pads_and_counts_what_it_cuts():
    captions = ["", "a red circle", CAPTIONS[0], "x" * 40]
    tokens = TOKENIZER.encode_batch(captions, 9)
    assert tokens.text_tokens.shape == (4, 8)
    assert tokens.text_tokens.dtype == torch.int64
    assert tokens.truncated == 2 == TOKENIZER.count_longer(captions, 9)
    for row, caption in zip(tokens.text_tokens.tolist(), captions, strict=True):
        ids = TOKENIZER.encode(caption)[:8]
        assert row == ids + [PAD] * (8 - len(ids))
    assert tokens.text_tokens[0].eq(PAD).all()
    assert TOKENIZER.decode(tokens.text_tokens[1].tolist()) == "a red circle"


@given(st.lists(ANY_TEXT, max_size=4), st.integers(2, 40))
@settings(deadline=None)
def test_what_is_counted_is_what_is_cut(captions, text_len):
    assert TOKENIZER.count_longer(captions, text_len) == TOKENIZER.encode_batch(captions, text_len).truncated


def test_encode_batch_with_dropout_draws_row_after_row():
    captions = CAPTIONS[:3]
    generator = seeded(5)
    rows = [TOKENIZER.encode(caption, dropout=0.5, generator=generator) for caption in captions]
    tokens = TOKENIZER.encode_batch(captions, 200, dropout=0.5, generator=seeded(5))
    assert torch.equal(tokens.text_tokens, pad(rows, 200).text_tokens)
    assert tokens.truncated == 0


def test_exactly_full_is_not_truncated():
    assert pad([[1, 2, 3]], 4).truncated == 0
    assert pad([[1, 2, 3]], 3).truncated == 1
    assert pad([], 4).text_tokens.shape == (0, 3)


def test_a_cut_character_does_not_break_decoding():
    ids = TextTokenizer.train(["x"], 256).encode("漢")
    assert len(ids) == 4  # a space and three bytes
    assert TOKENIZER.decode([]) == ""
    assert TextTokenizer.train(["x"], 256).decode(ids[:3]) == "\ufffd"


def test_training_is_deterministic_and_gives_the_size_asked_for():
    assert TextTokenizer.train(iter(CAPTIONS), 320).to_json() == TOKENIZER.to_json()
    assert TextTokenizer.train(CAPTIONS, 300).vocab_size == 300
    assert TextTokenizer.train(CAPTIONS, 256).vocab_size == BYTES
    exhausted = TextTokenizer.train(CAPTIONS, 16_384)
    assert 320 < exhausted.vocab_size < 400
    assert TextTokenizer.train([], 300).vocab_size == BYTES


def test_fingerprint():
    again, other = TextTokenizer.train(CAPTIONS, 320), TextTokenizer.train(CAPTIONS, 319)
    assert TOKENIZER.fingerprint == again.fingerprint != other.fingerprint
    assert len(TOKENIZER.fingerprint) == 16


def test_a_larger_vocabulary_needs_fewer_tokens():
    lengths = [len(TextTokenizer.train(CAPTIONS, size).encode(CAPTIONS[0])) for size in (256, 290, 320)]
    assert lengths[0] > lengths[1] > lengths[2]


def test_save_and_load(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        loaded = TextTokenizer.load(path)
        assert loaded.to_json() == TOKENIZER.to_json()
        assert loaded.fingerprint == TOKENIZER.fingerprint
        assert [loaded.encode(c) for c in CAPTIONS] == [TOKENIZER.encode(c) for c in CAPTIONS]
        assert loaded.encode(CAPTIONS[0], dropout=0.3, generator=seeded()) == TOKENIZER.encode(
            CAPTIONS[0], dropout=0.3, generator=seeded()
        )


def changed(**parts) -> str:
    return json.dumps(json.loads(TOKENIZER.to_json()) | parts)


ADDED = {
    "id": 3,
    "content": "<pad>",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
        (TOKENIZER.to_json()[:-200], "cannot be read"),
        (changed(added_tokens=[ADDED]), "no added tokens"),
        (changed(normalizer={"type": "Lowercase"}), "no normalizer"),
        (changed(pre_tokenizer=None), "BPE model on bytes"),
        (changed(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}), "got WordLevel"),
        (changed(model={"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}), "254 are missing"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        TextTokenizer.load(path)
    assert str(path) in str(error.value)


def with_settings(part: str, **values) -> str:
    content = json.loads(TOKENIZER.to_json())
    return changed(**{part: (content[part] or {}) | values})


TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
PADDING = {"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None} | {
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "a",
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_settings("model", dropout=0.5), r"model\.dropout is 0\.5, expected None"),
        (with_settings("model", ignore_merges=True), r"model\.ignore_merges is True, expected False"),
        (with_settings("model", end_of_word_suffix="x"), r"model\.end_of_word_suffix is x, expected None"),
        (changed(truncation=TRUNCATION), "truncation is .*'max_length': 3.*, expected None"),
        (changed(padding=PADDING), r"padding is .*'Fixed': 20.*, expected None"),
        (with_settings("pre_tokenizer", add_prefix_space=False), "pre_tokenizer is .*'add_prefix_space': False"),
        (with_settings("pre_tokenizer", use_regex=False), "pre_tokenizer is .*'use_regex': False.*, expected"),
        (
            changed(post_processor={"type": "ByteLevel"} | {"add_prefix_space": True, "trim_offsets": False}),
            "post_proc",
        ),
        (changed(decoder=None), "decoder is None, expected .*ByteLevel"),
    ],
)
def test_settings_that_give_other_ids_are_refused(tmp_path, content, message):
    """The fingerprint names entries and merges: with these it would be the same, and the ids or the text others."""
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        TextTokenizer.load(tmp_path)


def test_ids_with_a_gap_are_refused(tmp_path):
    content = json.loads(TOKENIZER.to_json())
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"][last] += 5
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="ids 0 to 319"):
        TextTokenizer.load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.json not found"):
        TextTokenizer.load(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json not found"):
        TextTokenizer.load(tmp_path)


def test_bad_arguments():
    with pytest.raises(ValueError, match="vocab_size is 255, expected at least 256"):
        TextTokenizer.train(CAPTIONS, 255)
    with pytest.raises(ValueError, match="text_len is 1, expected at least 2"):
        TOKENIZER.encode_batch(["a"], 1)
    with pytest.raises(ValueError, match=r"dropout is 1\.5"):
        TOKENIZER.encode("a", dropout=1.5, generator=seeded())
    with pytest.raises(ValueError, match="no generator"):
        TOKENIZER.encode("a", dropout=0.1)
    with pytest.raises(ValueError, match="no generator"):
        TOKENIZER.encode_batch(["a"], 5, dropout=0.1)
