"""The language of the drawings: every phrasing is read back, and nothing is read that was not said."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.scene import (
    COLOURS,
    HELD_OUT,
    INVERSE,
    RELATIONS,
    SHAPES,
    SIZES,
    Item,
    Scene,
    caption_of,
    count_phrasings,
    parse_caption,
)

ITEMS = st.builds(Item, st.sampled_from(COLOURS), st.sampled_from(SHAPES), st.sampled_from((*SIZES, None)))
SCENES = st.one_of(
    st.builds(lambda item: Scene((item,)), ITEMS),
    st.builds(
        lambda a, b, relation: Scene((a, b), relation), ITEMS, ITEMS, st.one_of(st.none(), st.sampled_from(RELATIONS))
    ),
    st.builds(lambda a, b, c: Scene((a, b, c)), ITEMS, ITEMS, ITEMS),
)
A, B, C = Item("red", "circle", "small"), Item("orange", "star"), Item("blue", "ring", "large")


def without_sizes(scene: Scene) -> Scene:
    return Scene(tuple(Item(item.colour, item.shape) for item in scene.items), scene.relation)


@settings(max_examples=200, deadline=None)
@given(SCENES)
def test_every_phrasing_is_read_back(scene: Scene):
    for phrasing in range(count_phrasings(scene)):
        told = parse_caption(caption_of(scene, phrasing))
        assert told in (scene, scene.mirrored(), without_sizes(scene), without_sizes(scene.mirrored()))


@settings(max_examples=50, deadline=None)
@given(SCENES)
def test_the_first_phrasing_says_everything(scene: Scene):
    assert parse_caption(caption_of(scene)) == scene


@pytest.mark.parametrize(
    ("scene", "phrasing", "caption"),
    [
        (Scene((A,)), 0, "a small red circle"),
        (Scene((B,)), 0, "an orange star"),
        (Scene((A,)), 3, "small red circle"),
        (Scene((A,)), 4, "a red circle"),
        (Scene((A, B), "left of"), 1, "a drawing of a small red circle left of an orange star"),
        (Scene((A, B), "left of"), 5, "an orange star right of a small red circle"),
        (Scene((A, C), "above"), 9, "a blue ring below a red circle"),
        (Scene((A, B)), 2, "there are a small red circle and an orange star"),
        (Scene((A, B, C)), 0, "a small red circle, an orange star and a large blue ring"),
    ],
)
def test_captions_in_words(scene: Scene, phrasing: int, caption: str):
    assert caption_of(scene, phrasing) == caption


@pytest.mark.parametrize(
    ("caption", "scene"),
    [
        ("A Red  circle.", Scene((Item("red", "circle"),))),
        ("the small red circle to the left of an orange star", Scene((A, B), "left of")),
        ("a small red circle, an orange star, and a large blue ring", Scene((A, B, C))),
    ],
)
def test_captions_that_people_type(caption: str, scene: Scene):
    assert parse_caption(caption) == scene


@pytest.mark.parametrize(
    ("caption", "complaint"),
    [
        ("", "no item"),
        ("a red dog", "no item"),
        ("a red circle near a blue star", "near"),
        ("a red circle on a table", "on a table"),
        ("never a red circle", "never"),
        ("a red circle left of a blue star above a pink ring", "among 3 items"),
        ("a red circle, a blue star, a pink ring and a black heart", "4 items"),
    ],
)
def test_captions_outside_the_grammar_are_refused(caption: str, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        parse_caption(caption)


def test_impossible_scenes_are_refused():
    with pytest.raises(ValueError, match="colour='mauve'"):
        Item("mauve", "circle")
    with pytest.raises(ValueError, match="shape='blob'"):
        Item("red", "blob")
    with pytest.raises(ValueError, match="size='huge'"):
        Item("red", "circle", "huge")
    with pytest.raises(ValueError, match="0 items"):
        Scene(())
    with pytest.raises(ValueError, match="between 1 items"):
        Scene((A,), "above")
    with pytest.raises(ValueError, match="'beside'"):
        Scene((A, B), "beside")


@pytest.mark.parametrize("phrasing", [-1, 6])
def test_unknown_phrasings_are_refused(phrasing: int):
    with pytest.raises(ValueError, match=f"phrasing={phrasing}; expected 0 to 5"):
        caption_of(Scene((A,)), phrasing)


def test_relations_are_inverses():
    assert all(INVERSE[INVERSE[relation]] == relation != INVERSE[relation] for relation in RELATIONS)


def test_held_out_leaves_every_colour_and_shape_well_known():
    assert {colour for colour, _ in HELD_OUT} <= set(COLOURS)
    assert sorted(shape for _, shape in HELD_OUT) == sorted(SHAPES)
    assert len({colour for colour, _ in HELD_OUT}) == len(HELD_OUT)
    assert 0.08 <= len(HELD_OUT) / (len(COLOURS) * len(SHAPES)) <= 0.1
