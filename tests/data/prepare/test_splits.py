from collections import Counter

import pytest

from data.prepare.splits import HELD_OUT_PAIRS, MIN_PICTURES, MIN_STYLES, Pair, family, held_out_pairs, split_of

STYLES = [f"style {number}" for number in range(5)]


@pytest.mark.parametrize(
    ("concept", "expected"),
    [
        ("woman-astronaut", "astronaut"),
        ("man-astronaut", "astronaut"),
        ("astronaut", "astronaut"),
        ("person-tipping-hand", "tipping-hand"),
        ("woman-walking-facing-right", "walking"),
        ("men-holding-hands", "holding-hands"),
        ("family-man-woman-boy", "family"),
        ("woman", "woman"),
        ("old-man", "old-man"),
        ("mango", "mango"),
        ("snowman", "snowman"),
        ("red-apple", "red-apple"),
    ],
)
def test_family(concept, expected):
    assert family(concept) == expected


def test_a_family_is_in_one_split():
    names = ["astronaut", "cook", "elf", "farmer", "mage", "pilot", "running", "swimming", "with-beard", "vampire"]
    for name in names:
        assert len({split_of(f"{who}{name}") for who in ("", "man-", "woman-", "person-")}) == 1


def test_shares_of_the_splits():
    splits = Counter(split_of(f"concept {number}") for number in range(20_000))
    assert splits["val"] / 20_000 == pytest.approx(0.03, abs=0.005)
    assert splits["test"] / 20_000 == pytest.approx(0.03, abs=0.005)


def grid(concepts, styles=STYLES):
    return [Pair(concept, style) for concept in concepts for style in styles]


CONCEPTS = [f"concept-of-{word}" for word in "abcdefghijklmnopqrstuvwxyz"] + [f"thing{n}x" for n in range(400)]


def test_held_out_pairs_are_of_training_concepts_and_one_each():
    pairs = held_out_pairs(grid(CONCEPTS))
    assert len(pairs) == HELD_OUT_PAIRS
    assert len({pair.concept for pair in pairs}) == HELD_OUT_PAIRS
    assert {split_of(pair.concept) for pair in pairs} == {"train"}
    assert {pair.style for pair in pairs} == set(STYLES)


def test_held_out_pairs_do_not_depend_on_the_order():
    assert held_out_pairs(grid(CONCEPTS)) == held_out_pairs(grid(CONCEPTS[::-1], STYLES[::-1]))


def test_rare_concepts_are_not_held_out():
    rare = grid([f"rare-{n}" for n in range(100)], STYLES[: MIN_STYLES - 1])
    assert not {pair.concept for pair in held_out_pairs(grid(CONCEPTS) + rare, 10_000)} & {p.concept for p in rare}


def test_rare_styles_are_not_held_out():
    rare = [Pair(concept, "rare style") for concept in CONCEPTS[: MIN_PICTURES - 1]]
    assert "rare style" not in {pair.style for pair in held_out_pairs(grid(CONCEPTS) + rare, 10_000)}
    common = [Pair(concept, "rare style") for concept in CONCEPTS[:MIN_PICTURES]]
    assert "rare style" in {pair.style for pair in held_out_pairs(grid(CONCEPTS) + common, 10_000)}


def test_concepts_with_kin_are_not_held_out():
    """A held-out woman-scientist would be no composition while the man-scientist of that style is trained on."""
    kin = grid([f"{who}scientist-{letter}" for who in ("", "man-", "woman-") for letter in "abcdefghijklmnopqrst"])
    held_out = {pair.concept for pair in held_out_pairs(grid(CONCEPTS) + kin, 10_000)}
    assert held_out and not any("scientist" in concept for concept in held_out)


def test_flags_are_not_held_out():
    flags = grid([f"flag-of-{n}" for n in range(100)])
    assert not any(pair.concept.startswith("flag-") for pair in held_out_pairs(grid(CONCEPTS) + flags, 10_000))
