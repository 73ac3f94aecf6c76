import pytest

from data.prepare.wording import Style, article, slug, stable_fraction, stable_order, styled_captions, with_article

FLAT = Style(name="flat style", phrase="a flat drawing of {}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red apple", "red-apple"),
        ("Côte d’Ivoire", "cote-divoire"),
        ("flag: Côte d’Ivoire", "flag-cote-divoire"),
        ("one o’clock", "one-oclock"),
        ("Bosnia & Herzegovina", "bosnia-and-herzegovina"),
        ("A button (blood type)", "a-button-blood-type"),
        ("St. Helena", "st-helena"),
    ],
)
def test_slug(text, expected):
    assert slug(text) == expected


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("red apple", "a red apple"),
        ("apple", "an apple"),
        ("hourglass", "an hourglass"),
        ("unicorn", "a unicorn"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("umbrella", "an umbrella"),
        ("cactus", "a cactus"),
        ("rhinoceros", "a rhinoceros"),
        ("compass", "a compass"),
        ("face with tears of joy", "a face with tears of joy"),
        ("ring", "a ring"),
        ("grapes", "grapes"),
        ("bowling", "bowling"),
        ("bread", "bread"),
        ("men holding hands", "men holding hands"),
        ("Mount Fuji", "Mount Fuji"),
        ("three o'clock", "three o'clock"),
        ("family, man, woman", "family, man, woman"),
    ],
)
def test_with_article(label, expected):
    assert with_article(label) == expected


def test_article_goes_by_sound_not_by_case():
    assert article("Anjou pear") == "an Anjou pear"
    assert article("Galia melon") == "a Galia melon"


def test_captions_of_a_red_apple():
    captions = styled_captions("red apple", FLAT, ["fruit"], countable=True)
    assert captions == (
        "red apple, flat style",
        "a red apple, flat style",
        "a flat drawing of a red apple",
        "red apple, fruit, flat style",
        "a red apple",
    )


def test_tags_come_two_a_caption_and_bring_news_only():
    tags = ["apple", "red", "fruit", "food", "diet", "healthy", "11:00", "〒", "tv", "paradise"]
    captions = styled_captions("red apple", FLAT, tags, countable=True)
    tagged = [caption.split(", ")[1:-1] for caption in captions if caption.startswith("red apple, ")][1:]
    assert [len(words) for words in tagged] == [2, 2]
    used = {word for words in tagged for word in words}
    assert len(used) == 4
    assert used <= {"fruit", "food", "diet", "healthy", "paradise"}


def test_styles_choose_different_tags_but_always_the_same():
    tags = [f"tag{letter}" for letter in "abcdefghij"]
    other = Style(name="3D render", phrase="a 3D render of {}")
    flat, again = (styled_captions("red apple", FLAT, tags, countable=True) for _ in range(2))
    assert flat == again == styled_captions("red apple", FLAT, tags[::-1], countable=True)
    rendered = styled_captions("red apple", other, tags, countable=True)
    assert [caption.split(", ")[1:-1] for caption in flat] != [caption.split(", ")[1:-1] for caption in rendered]


def test_uncountable_and_doubled_captions():
    captions = styled_captions("input numbers", FLAT, [], countable=False)
    assert captions == ("input numbers, flat style", "a flat drawing of input numbers", "input numbers")


def test_style_folder():
    assert Style(name="3D render", phrase="{}").folder == "3d-render"


def test_stable_fraction_is_a_known_constant():
    assert stable_fraction("split/red-apple") == pytest.approx(0.2991394474, abs=1e-9)
    assert 0 <= min(map(stable_fraction, map(str, range(1000)))) < 0.01
    assert 0.99 < max(map(stable_fraction, map(str, range(1000)))) < 1


def test_stable_order_ignores_the_order_given():
    assert stable_order(["a", "b", "c"], "x") == stable_order(["c", "a", "b"], "x")
    orders = {tuple(stable_order(["a", "b", "c"], str(seed))) for seed in range(50)}
    assert len(orders) == 6
