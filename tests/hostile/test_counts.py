"""How many hostile inputs there are; docs/reliability.md says the number."""

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
    assert sum(map(len, different)) >= LEAST
