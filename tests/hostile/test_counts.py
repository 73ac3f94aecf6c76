"""How many hostile inputs there are: as many as docs/reliability.md says."""

import re
from pathlib import Path

from tests.hostile.captions import FOLDERS
from tests.hostile.code_folders import CODES
from tests.hostile.models import MODELS
from tests.hostile.pickles import PICKLES
from tests.hostile.pictures import PICTURES
from tests.hostile.prompts import PROMPTS
from tests.hostile.tars import SHARDS
from tests.hostile.yamls import YAMLS

CORPORA = {
    "pictures": PICTURES,
    "captions": FOLDERS,
    "models": MODELS,
    "pickles": PICKLES,
    "shards": SHARDS,
    "codes": CODES,
    "settings": YAMLS,
    "prompts": PROMPTS,
}
LEAST = 300


def test_so_many_different_ones():
    assert all(len(corpus) >= 20 for corpus in CORPORA.values())
    different = [
        {hostile.data for hostile in PICTURES.values()},
        {(*folder.files.items(), *folder.links.items()) for folder in FOLDERS.values()},
        {shard.content for shard in SHARDS.values()},
        set(PICKLES.values()),
        *(MODELS, CODES, YAMLS, PROMPTS),
    ]
    said = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    total, tried = sum(len(corpus) for corpus in CORPORA.values()), sum(map(len, different))
    assert f"| hostile inputs tried | {tried:,} different ones |" in said and tried >= LEAST
    of_each = {name: int(count) for name, count in re.findall(r"^\| (\w+) \| (\d+) \|", said, re.MULTILINE)}
    assert of_each == {name: len(corpus) for name, corpus in CORPORA.items()} and sum(of_each.values()) == total
