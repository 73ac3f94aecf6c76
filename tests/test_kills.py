"""kill -9 at 20 random moments: what was trained in the end is what would have been trained anyway, to the last bit.

`python -m benchmarks.kills` does the same at length and with processes that a user would start.
"""

from collections.abc import Iterator

import pytest
import torch

from benchmarks.kills import differences, scenarios, survive
from pipeline import fingerprint
from tests.runs import MARKS, write_codes
from tests.zygote import Zygote
from vqvae.folders import load_image_tokenizer

pytestmark = MARKS

KILLS = {"gumbel": 7, "adversarial": 6, "prior": 7}
STEPS = 30


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.end()


@pytest.mark.parametrize("name", KILLS)
def test_nothing_is_lost_or_another(name, zygote, tokenizer_run, tmp_path):
    codes = write_codes(tmp_path / "codes", fingerprint(load_image_tokenizer(tokenizer_run / "model")))
    scenario = scenarios(tokenizer_run, codes)[name]
    survived = survive(scenario, tmp_path, STEPS, KILLS[name], 0, zygote.start)
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
