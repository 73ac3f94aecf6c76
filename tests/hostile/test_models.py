"""A bundle with any part damaged is refused with a ValueError that names the part, and runs nothing."""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import TextToImage
from tests.hostile.models import BUNDLE, IMAGE_TOKENIZER, MODELS, PRIOR, TEXT_TOKENIZER, WEIGHTS, Hostile
from vqvae.folders import load_image_tokenizer, load_image_tokenizer_config
from vqvae.palette import Palette, PaletteConfig


@pytest.mark.parametrize("hostile", MODELS.values(), ids=MODELS.keys())
def test_refused_by_name(hostile: Hostile, shared_bundle: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bundle"
    shutil.copytree(shared_bundle, folder)
    hostile.damage(folder)
    with pytest.raises((ValueError, OSError), match=f"(?s){hostile.named}"):
        TextToImage.from_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([PRIOR, IMAGE_TOKENIZER, BUNDLE, TEXT_TOKENIZER, *WEIGHTS]), st.data())
def test_flipped_bits(shared_bundle: Path, tmp_path: Path, file: Path, data: st.DataObject):
    """In the header of the weights at least, where a flip is more than another number."""
    folder = tmp_path / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(shared_bundle, folder)
    content = bytearray((folder / file).read_bytes())
    for place in data.draw(st.lists(st.integers(0, 8 * min(len(content), 4000) - 1), min_size=1, max_size=4)):
        content[place // 8] ^= 1 << place % 8
    (folder / file).write_bytes(bytes(content))
    try:
        assert TextToImage.from_pretrained(folder)
    except ValueError as error:
        assert str(error).strip()


@pytest.mark.parametrize(
    "settings",
    [
        '{"kind": "palette", "image_size": 8.0}',
        '{"kind": "palette", "image_size": 4611686018427387904}',
        '{"kind": "palette", "codebook_size": 1e9}',
        '{"kind": "palette", "colours": 7}',
        '{"kind": ["palette"]}',
        '{"kind": "palette"}',
    ],
)
def test_palettes(settings: str, tmp_path: Path):
    Palette(PaletteConfig(image_size=8, codebook_size=4)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(settings)
    with pytest.raises(ValueError, match=r"config\.json|model\.safetensors"):
        load_image_tokenizer(tmp_path)
    if settings != '{"kind": "palette"}':
        with pytest.raises(ValueError, match=r"config\.json"):
            load_image_tokenizer_config(tmp_path)
