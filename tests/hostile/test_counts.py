"""How many hostile inputs there are; docs/reliability.md says the number."""

import re
from pathlib import Path

from tests.hostile.captions import FOLDERS
from tests.hostile.models import MODELS
from tests.hostile.pickles import PICKLES
from tests.hostile.pictures import PICTURES
from tests.hostile.tars import SHARDS

CORPORA = {"pictures": PICTURES, "captions": FOLDERS, "models": MODELS, "pickles": PICKLES, "shards": SHARDS}
LEAST = 300


def test_so_many_and_no_two_alike():
    assert sum(map(len, CORPORA.values())) >= LEAST
    assert all(len(corpus) >= 60 for corpus in CORPORA.values())
    assert len({hostile.data for hostile in PICTURES.values()}) == len(PICTURES)
    assert len(set(PICKLES.values())) == len(PICKLES)
