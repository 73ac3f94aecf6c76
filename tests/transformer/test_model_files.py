import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import model_files
import whole_files
from transformer.model import Prior


@pytest.fixture
def folder(make_prior, tmp_path):
    make_prior().save_pretrained(tmp_path / "prior")
    return tmp_path / "prior"


@pytest.mark.parametrize("block", ["paper", "modern"])
def test_round_trip(make_prior, make_batch, tmp_path, block):
    prior = make_prior(block=block, attend_pads=False, conv_wrap="clamped")
    prior.save_pretrained(tmp_path / "new" / "prior")
    loaded = Prior.from_pretrained(tmp_path / "new" / "prior")
    assert loaded.config == prior.config
    assert not loaded.training
    assert loaded.state_dict().keys() == prior.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in prior.state_dict().items())
    torch.testing.assert_close(loaded(*make_batch()), prior(*make_batch()), atol=0, rtol=0)


def test_two_files_and_nothing_left_over(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_others_may_read_what_the_umask_lets_them(folder):
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_saving_again_replaces(make_prior, folder):
    prior = make_prior(n_layer=2)
    prior.save_pretrained(folder)
    assert Prior.from_pretrained(folder).config == prior.config


@pytest.mark.parametrize("renames", [0, 1])
def test_a_save_that_is_cut_between_its_renames_mixes_nothing(make_prior, folder, monkeypatch, renames):
    """The kernel is in the settings alone: old weights with new settings would load, and be another model."""
    replace, left = Path.replace, [None] * renames

    def cut(self, target):
        if not left:
            raise OSError("cut")
        left.pop()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(OSError, match="cut"):
        make_prior(conv_kernel=5).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"no file .*config\.json"):
        Prior.from_pretrained(folder)


def test_a_disk_that_is_full_only_when_it_is_to_keep_the_weights_leaves_the_old_ones(make_prior, folder, monkeypatch):
    """As network file systems and quotas say it."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patched:

        def full(descriptor: int) -> None:
            if "safetensors" in Path(f"/proc/self/fd/{descriptor}").readlink().name:
                raise OSError(28, "No space left on device")

        patched.setattr(whole_files.os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*model\.safetensors'"):
            make_prior(n_layer=2).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_a_killed_save_left_goes_with_the_next(make_prior, folder, monkeypatch):
    """Killed right before, or in the middle of, what brings the weights to the disk."""
    for cut in ("save_file", "sync"):
        with monkeypatch.context() as patched:

            def end(*args, cut=cut, **settings) -> None:
                if cut == "save_file":
                    (folder / ".tmpA1b2C3").write_bytes(b"half of what safetensors writes")
                raise KeyboardInterrupt

            patched.setattr(model_files, cut, end)
            patched.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # which a kill does not come to
            with pytest.raises(KeyboardInterrupt):
                make_prior().save_pretrained(folder)
    assert len(list(folder.iterdir())) > 4
    make_prior().save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"no file .*{name}"):
        Prior.from_pretrained(folder)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*nowhere.*config\.json"):
        Prior.from_pretrained(tmp_path / "nowhere")


def test_half_a_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        Prior.from_pretrained(folder)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_broken_settings_are_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        Prior.from_pretrained(folder)


@pytest.mark.parametrize(("key", "value"), [("n_heads", 4), ("n_layer", 0), ("n_layer", "many")])
def test_wrong_settings_are_named(folder, key, value):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {key: value}))
    with pytest.raises(ValueError, match=r"config\.json is no prior's: .*" + ("n_heads" if key == "n_heads" else "")):
        Prior.from_pretrained(folder)


def test_tensors_that_do_not_fit_are_named(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["embedding.bos"]
    tensors["surplus"] = torch.zeros(1)
    tensors["image_head.weight"] = torch.zeros(14, 16)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit") as caught:
        Prior.from_pretrained(folder)
    for problem in (
        "embedding.bos is missing",
        "surplus is unknown",
        "image_head.weight is (14, 16), expected (13, 16)",
    ):
        assert problem in str(caught.value)
