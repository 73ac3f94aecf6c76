import json
import math

from data.split import split_by_key
from evaluation.shared import choose, which_split, write_report


def test_what_json_has_no_number_for_is_null(tmp_path):
    report = {"a": math.nan, "b": [{"c": (1.5, -math.inf)}, "NaN", None, 3]}
    write_report(report, tmp_path / "out")
    text = (tmp_path / "out" / "report.json").read_text()
    assert json.loads(text) == {"a": None, "b": [{"c": [1.5, None]}, "NaN", None, 3]}
    assert math.isnan(report["a"]), "what is reported to the caller stays"


def test_the_choice_of_pictures():
    class Source:
        def __len__(self) -> int:
            return 10

        def split(self, index: int) -> str | None:
            return "test" if index % 2 else None

        def key(self, index: int) -> str:
            return str(index)

    assert choose(Source(), "test", None, 0.1) == [1, 3, 5, 7, 9]
    assert choose(Source(), None, 5, 0.1) == [0, 2, 4, 6, 8]
    assert choose(Source(), "test", 99, 0.1) == [1, 3, 5, 7, 9]
    held_back = choose(Source(), "val", None, 0.5)
    assert held_back == split_by_key(Source(), 0.5)[1].tolist()
    assert choose(Source(), "train", None, 0.5) == sorted({0, 2, 4, 6, 8} - {*held_back})


def test_what_is_said_of_the_split():
    assert which_split({"split": "val", "data": "drawings"}) == "split val"
    assert which_split({"split": None, "data": "drawings"}) == "every split"  # another seed's were never trained on
    assert which_split({"split": None, "data": "pictures"}) == "every split, what it was trained on too"
