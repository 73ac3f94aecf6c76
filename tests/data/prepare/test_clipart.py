import pytest

from data.prepare.build import Rejects
from data.prepare.clipart import ROOT, Work, clipart_pieces, label_of, read_work, title_words, useful_keywords


def work(title, path="food/thing_01.svg", author="Nicu Buculei", keywords=()):
    return Work(path=path, svg="<svg/>", title=title, author=author, keywords=tuple(keywords))


@pytest.mark.parametrize(
    ("title", "path", "files", "label"),
    [
        ("Football ball", "sports/football_ball_brice_01.svg", 1, "football ball"),
        ("bee3", "bugs/bee3_mimooh_01.svg", 1, "bee"),
        ("SmartCard", "computer/smartcard_alberto_01.svg", 1, "smart card"),
        ("glace_06_bw", "food/glace_06_bw_jean-victor__01.svg", 1, "glace in black and white"),
        ("Burrito (B and W)", "food/burrito_bw_ganson.svg", 1, "burrito in black and white"),
        ("tree - RPG map elements", "map/tree_-_rpg_map_elements_03.svg", 15, "tree"),
        ("Flute in C", "music/flute_ganson.svg", 1, "flute"),
        ("Rubik's Cube", "toys/rubik_s_cube_petri_lumme_01.svg", 1, "rubik's cube"),
        ("Clipart by Nicu Buculei - pear", "fruit/lemon1.svg", 10, "lemon"),
        ("Various Cliparts", "unsorted/paper_face.svg", 115, "paper face"),
        ("AIGA_Symbol_Signs", "map/aiga_coffee_shop1.svg", 122, "coffee shop"),
        ("Homes Clipart", "homes/home10.svg", 20, "home"),
        ("Lightning", "weather/lightning_jon_phillips_01.svg", 11, "lightning"),
        ("", "sports/beachball_v0.1.svg", 50, "beachball"),
        ("Nicu Buculei", "food/soup_bowl.svg", 1, "soup bowl"),
        ("Nicu Buculei", "food/nicu_buculei_01.svg", 1, ""),
        ("Cheese by HASH(0x89c79d4) me@here.org", "food/x.svg", 1, "cheese"),
        ("Togo", "signs_and_symbols/flags/africa/togo.svg", 1, "flag of togo"),
        ("Togo Flag", "signs_and_symbols/flags/africa/togo.svg", 1, "togo flag"),
    ],
)
def test_label_of(title, path, files, label):
    assert label_of(work(title, path), files) == label


def test_titles_in_other_languages_give_way_to_keywords():
    horse = work("Cavallo", author="Architetto Francesco Rollandin", keywords=("mammal", "horse"))
    assert label_of(horse, 1) == "horse"
    assert label_of(work("Zucca", author="Architetto Francesco Rollandin", keywords=("food",)), 1) == ""


def test_words_end_where_the_author_begins():
    assert title_words("mouse_pointer_wolfram_es_03", "Wolfram Esser") == ["mouse", "pointer"]
    assert title_words("mouse_pointer_wolfram_es_03", "Someone Else") == ["mouse", "pointer", "wolfram", "es"]


def test_keywords_that_say_something():
    found = useful_keywords(work("Apple", keywords=("fruit", "hash", "signs_and_symbols", "11", "nicu", "red apple")))
    assert found == ["fruit"]


def test_rdf_is_read(fakes):
    found = read_work("food/apple.svg", fakes.clip_art("Red Apple", "Jo Doe", "Fruit food").encode())
    assert (found.title, found.author, found.keywords) == ("Red Apple", "Jo Doe", ("fruit", "food"))
    assert read_work("food/apple.svg", b"<svg") is None
    assert read_work("food/apple.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>').title == ""


def test_pieces_and_rejects(fakes):
    files = {
        "food/apple_01.svg": fakes.clip_art("Red Apple", keywords="fruit food", body='<circle cx="8" cy="8" r="6"/>'),
        "fruit/apple_02.svg": fakes.clip_art("Red Apple", author="Al", body='<circle   cx="8" cy="8" r="6"/>'),
        "geography/spain.svg": fakes.clip_art("Spain"),
        "food/menu.svg": fakes.clip_art("Menu", body="<text>eat</text>"),
        "food/photo.svg": fakes.clip_art("Photo", body='<image width="1" height="1"/>'),
        "food/john_doebler_01.svg": fakes.clip_art("John Doebler", author="John Doebler"),
        "people/stripper.svg": fakes.clip_art("Stripper"),
        "food/long.svg": fakes.clip_art("One two three four five six seven eight"),
        "food/broken.svg": "<svg",
        "shapes/stars/star_94pt35step.svg": fakes.clip_art("star"),
        "computer/icons/flat-theme/x.svg": fakes.clip_art("icon"),
        "food/readme.txt": "no drawing",
    }
    package = fakes.deb("openclipart-svg", {f"./{ROOT}{name}": content for name, content in files.items()})
    rejects = Rejects()
    pieces = {piece.file_name: piece for piece in clipart_pieces(fakes.folder / package.file, rejects)}
    assert sorted(pieces) == ["clip-art/food/apple_01.png", "clip-art/geography/spain.png"]
    apple = pieces["clip-art/food/apple_01.png"]
    assert apple.captions[:3] == ("red apple, clip art", "a red apple, clip art", "clip art of a red apple")
    assert (apple.concept, apple.licence) == ("red-apple", "public domain")
    assert pieces["clip-art/geography/spain.png"].captions[0] == "spain, clip art"
    assert not any("a spain" in caption for caption in pieces["clip-art/geography/spain.png"].captions)
    assert rejects.counts == {
        "generated, a part, or an icon theme": 2,
        "twin of another": 1,
        "needs fonts": 1,
        "embeds pixels": 1,
        "no title, or none in English": 1,
        "marks, persons, unsuitable": 1,
        "title too long": 1,
        "not well-formed": 1,
    }


def test_black_and_white_is_the_same_concept(fakes):
    files = {
        "food/burrito.svg": fakes.clip_art("Burrito", author="Al"),
        "food/burrito_bw.svg": fakes.clip_art("Burrito (B and W)", author="Al"),
    }
    package = fakes.deb("openclipart-svg", {f"./{ROOT}{name}": content for name, content in files.items()})
    pieces = clipart_pieces(fakes.folder / package.file, Rejects())
    assert [piece.concept for piece in pieces] == ["burrito", "burrito"]
    assert pieces[1].captions[0] == "burrito in black and white, clip art"
