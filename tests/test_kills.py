"""kill -9 at 20 random moments: what was trained in the end is what would have been trained anyway, to the last bit.

`python -m benchmarks.kills` does the same at length and with processes that a user would start.
"""

from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks.kills import Survived, differences, encode, scenarios, survive
from tests.zygote import Zygote

KILLS = {"gumbel": 7, "adversarial": 6, "prior": 7}


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.end()


@pytest.fixture(scope="module")
def killed(zygote, tmp_path_factory) -> Callable[[str], Survived]:
    """What becomes of a scenario; that of a prior trains on codes of the tokenizer that has survived its kills."""
    work, done = tmp_path_factory.mktemp("kills"), {}

    def killed(name: str) -> Survived:
        if name not in done:
            codes = None
            if name == "prior":
                killed("gumbel")
                codes = encode(work / "gumbel" / "parts", work / "codes")
            (work / name).mkdir()
            scenario = scenarios(work / "gumbel" / "parts", codes)[name]
            done[name] = survive(scenario, work / name, 30, KILLS[name], 0, zygote.start)
        return done[name]

    return killed


@pytest.mark.parametrize("name", KILLS)
def test_nothing_is_lost_or_another(name, killed):
    survived = killed(name)
    assert survived.wrong == ()
    assert survived.kills == KILLS[name]
    assert survived.values > 100


def test_the_comparison_finds_a_bit():
    ours = {"a": [torch.tensor([1.0, 2.0]), 3]}
    assert differences(ours, {"a": [torch.tensor([1.0, 2.0]), 3]}, "state") == []
    assert differences(ours, {"a": [torch.tensor([1.0, 2.0]).nextafter(torch.tensor(9.0)), 3]}, "state") == [
        "state/a/0"
    ]
    assert differences(ours, {"a": [torch.tensor([1.0, 2.0]), 4]}, "state") == ["state/a/1"]
    assert differences(ours, {"b": 0}, "state") == ["state"]
