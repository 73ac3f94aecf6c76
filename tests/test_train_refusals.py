"""What train.py refuses, in one line and with exit code 2."""

import os
import pickle
import shutil
from collections.abc import Callable

import pytest
import torch

import cli
import train
from pipeline import fingerprint
from run_cli import CHECKPOINT
from tests.runs import MARKS, arguments, write_codes
from vqvae.folders import load_image_tokenizer

pytestmark = MARKS


@pytest.fixture
def fails(capsys) -> Callable[..., str]:
    """Runs the script as `python train.py` does, expects exit code 2, returns its one line on standard error."""

    def fails(*args: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.run(lambda: train.train(args[0], list(args[1:])))
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    return fails


def test_codes_of_another_tokenizer(fails, tokenizer_run, tmp_path):
    codes = write_codes(tmp_path / "codes", "0123456789abcdef")
    given = ["--data.drawings=null", f"--data.codes={codes}", f"--tokenizer={tokenizer_run}"]
    said = fails("prior", "fit", *arguments("prior", tmp_path / "run", *given))
    assert "0123456789abcdef" in said
    assert fingerprint(load_image_tokenizer(tokenizer_run / "model")) in said


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_of_another_tokenizer(fails, command, tokenizer_run, prior_run, image_tokenizer_of, tmp_path):
    """Of the same sizes, or the weights would not fit."""
    own = load_image_tokenizer(tokenizer_run / "model")
    other = image_tokenizer_of(seed=1, image_size=32)
    other.save_pretrained(tmp_path / "other")
    args = arguments("prior", prior_run, f"--tokenizer={tmp_path / 'other'}", "--ckpt_path=last")
    said = fails("prior", command, *args)
    assert f"trained on codes of tokenizer {fingerprint(own)}, --tokenizer is {fingerprint(other)}" in said


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_tokenizer_with_weights_in_another_precision(fails, tmp_path, precision):
    said = fails("tokenizer", "fit", *arguments("tokenizer", tmp_path / "run", f"--trainer.precision={precision}"))
    assert "a tokenizer trains in 32-true, bf16-mixed or 16-mixed, not with weights in torch." in said


@pytest.mark.parametrize("name", ["trainer", "model.optim", "data.loading"])
def test_one_value_in_the_place_of_many(fails, name, tmp_path):
    said = fails("tokenizer", "fit", *arguments("tokenizer", tmp_path / "run", f"--{name}", "5"))
    assert said == f"error: {name} is '5', expected a file of its settings, or each by its name: --{name}.NAME VALUE"


@pytest.mark.parametrize("name", ["limit_train_batches", "limit_val_batches"])
def test_one_batch_or_all_of_them(fails, name, tmp_path):
    """1 and 1.0 are the same to the parser, but not to the Trainer."""
    for value in ("1", "1.0"):
        said = fails("tokenizer", "fit", *arguments("tokenizer", tmp_path / "run", f"--trainer.{name}={value}"))
        assert f"trainer.{name} is 1, a single batch or all of them" in said


def test_a_run_is_not_overwritten(fails, tokenizer_run):
    assert "holds a run already: go on with --ckpt_path last" in fails(
        "tokenizer", "fit", *arguments("tokenizer", tokenizer_run)
    )


def test_a_run_is_not_overwritten_from_another_checkpoint(fails, tokenizer_run, tmp_path):
    other = shutil.copyfile(tokenizer_run / CHECKPOINT, tmp_path / "other.ckpt")
    before = (tokenizer_run / CHECKPOINT).read_bytes()
    said = fails("tokenizer", "fit", *arguments("tokenizer", tokenizer_run, f"--ckpt_path={other}"))
    assert "holds a run already" in said
    assert "other.ckpt is not its last checkpoint" in said
    assert (tokenizer_run / CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_nothing_to_go_on_with(fails, tmp_path, command):
    for ckpt_path in ("nowhere.ckpt", *(["last"] if command == "validate" else [])):
        said = fails("tokenizer", command, *arguments("tokenizer", tmp_path / "run", f"--ckpt_path={ckpt_path}"))
        assert "no checkpoint" in said
        assert f"{ckpt_path.removesuffix('.ckpt')}.ckpt" in said


class _Hostile:
    def __reduce__(self) -> tuple:
        return os.system, ("exit 1",)


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_by_name_that_is_damaged_or_hostile(fails, command, tokenizer_run, tmp_path):
    half, pickled, archived = (tmp_path / f"{name}.ckpt" for name in ("half", "pickled", "archived"))
    content = (tokenizer_run / CHECKPOINT).read_bytes()
    half.write_bytes(content[: len(content) // 2])
    pickled.write_bytes(pickle.dumps(_Hostile()))
    torch.save({"state_dict": {}, "global_step": _Hostile()}, archived)
    for path in (half, pickled, archived):
        said = fails("tokenizer", command, *arguments("tokenizer", tmp_path / "run", f"--ckpt_path={path}"))
        assert f"{path} is damaged or no training checkpoint: " in said
        assert "weights_only" not in said
    assert f"it asks for {os.system.__module__}.system, expected tensors and plain values" in said


def test_half_a_checkpoint(fails, tokenizer_run, tmp_path):
    run = shutil.copytree(tokenizer_run, tmp_path / "run")
    path = run / CHECKPOINT
    for content in (path.read_bytes()[: path.stat().st_size // 2], b"", b"no checkpoint"):
        path.write_bytes(content)
        said = fails("tokenizer", "fit", *arguments("tokenizer", run, "--ckpt_path=last"))
        assert "last.ckpt is damaged or no training checkpoint" in said
    torch.save([1, 2], path)
    assert "last.ckpt is damaged" in fails("tokenizer", "fit", *arguments("tokenizer", run, "--ckpt_path=last"))


def test_weights_alone_are_no_checkpoint_to_go_on_from(fails, tokenizer_run, tmp_path):
    checkpoint = torch.load(tokenizer_run / CHECKPOINT, weights_only=True)
    path = tmp_path / "weights.ckpt"
    args = arguments("tokenizer", tmp_path / "run", f"--ckpt_path={path}")
    torch.save({"state_dict": checkpoint["state_dict"]}, path)
    said = fails("tokenizer", "fit", *args)
    assert "weights but no pytorch-lightning_version, global_step, optimizer_states, loops: expected" in said
    assert "weights but no pytorch-lightning_version, global_step: expected" in fails("tokenizer", "validate", *args)
    del checkpoint["optimizer_states"]
    torch.save(checkpoint, path)
    assert "weights.ckpt holds weights but no optimizer_states: expected" in fails("tokenizer", "fit", *args)


def test_a_checkpoint_of_another_model(fails, tokenizer_run):
    wider = arguments("tokenizer", tokenizer_run, "--ckpt_path=last", "--model.vae.n_hid=12")
    said = fails("tokenizer", "fit", *wider)
    assert "is of another model" in said
    assert "expected (12," in said


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model.reconstruction=squared_error", "model.reconstruction was logit_laplace and is squared_error"),
        ('--model.vae.quantizer_options={"decay": 0.5}', "model.vae.quantizer_options.decay was None and is 0.5"),
    ],
)
def test_a_checkpoint_of_the_same_shapes_but_another_meaning(fails, option, said, tokenizer_run):
    before = (tokenizer_run / "config.yaml").read_bytes()
    assert said in fails("tokenizer", "fit", *arguments("tokenizer", tokenizer_run, "--ckpt_path=last", option))
    assert (tokenizer_run / "config.yaml").read_bytes() == before


def test_unknown_words(fails, tmp_path):
    run = arguments("tokenizer", tmp_path / "run")
    assert "expected tokenizer or prior, got 'painter'" in fails("painter", "fit")
    assert "{fit,validate}" in fails("tokenizer")
    assert "unknown config 'nosuch'" in fails("tokenizer", "fit", "--config", "nosuch")
    assert "--model.vae.n_hidd" in fails("tokenizer", "fit", *run, "--model.vae.n_hidd=8")
    assert "model.vae.n_hid" in fails("tokenizer", "fit", *run, "--model.vae.n_hid=wide")
    assert "n_hid is 7, expected a multiple of 4" in fails("tokenizer", "fit", *run, "--model.vae.n_hid=7")
    assert "unknown quantizer 'rvq'" in fails("tokenizer", "fit", *run, "--model.vae.quantizer=rvq")


def test_devices_and_precisions_that_are_not_there(fails, tmp_path):
    run = arguments("tokenizer", tmp_path / "run")
    assert "trainer.precision" in fails("tokenizer", "fit", *run, "--trainer.precision=17")
    if not torch.cuda.is_available():
        assert "gpu" in fails("tokenizer", "fit", *run, "--trainer.accelerator=gpu")


def test_unknown_presets(fails, tokenizer_run, tmp_path):
    run = arguments("prior", tmp_path / "run", f"--tokenizer={tokenizer_run}")
    assert "preset is 'huge', expected one of dalle-12b" in fails("prior", "fit", *run, "--model.prior.preset=huge")


def test_configs_that_are_none(fails, tmp_path):
    config = tmp_path / "config.yaml"
    for content, said in [("trainer: {", "config"), ("trainer:\n  max_stepss: 3\n", "trainer.max_stepss")]:
        config.write_text(content)
        assert said in fails("tokenizer", "fit", "--config", str(config))


def test_tokenizers_that_are_not_there(fails, tmp_path):
    run = arguments("prior", tmp_path / "run")
    assert "error: --tokenizer is missing" in fails("prior", "fit", *run)
    assert "error: no such folder: " in fails("prior", "fit", *run, f"--tokenizer={tmp_path / 'nowhere'}")
    assert "holds no model" in fails("prior", "fit", *run, f"--tokenizer={tmp_path}")


def test_a_text_tokenizer_that_is_not_there(fails, tokenizer_run, tmp_path):
    run = arguments("prior", tmp_path / "run", f"--tokenizer={tokenizer_run}")
    said = fails("prior", "fit", *run, "--data.text.tokenizer=nowhere.json")
    assert said.startswith("error: text tokenizer nowhere.json not found")


def test_a_prior_is_no_image_tokenizer(fails, prior_run, tmp_path):
    said = fails("prior", "fit", *arguments("prior", tmp_path / "run", f"--tokenizer={prior_run}"))
    assert "config.json is no discrete VAE's" in said


def test_half_a_tokenizer(fails, tokenizer_run, tmp_path):
    half = shutil.copytree(tokenizer_run / "model", tmp_path / "half")
    (half / "model.safetensors").unlink()
    assert "model.safetensors" in fails("prior", "fit", *arguments("prior", tmp_path / "run", f"--tokenizer={half}"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gradient_clip_val=-1", "trainer.gradient_clip_val is -1.0, expected at least 0, or null"),
        ("gradient_clip_val=.nan", "trainer.gradient_clip_val is nan, expected at least 0, or null"),
        ("max_steps=0", "trainer.max_steps is 0, expected at least 1, or -1 for no limit"),
        ("val_check_interval=00:10:00", "trainer.val_check_interval is '00:10:00', expected a number of batches"),
        ("max_epochs=0", "trainer.max_epochs is 0, expected at least 1, or -1 for no limit"),
    ],
)
def test_settings_of_the_trainer_that_train_nothing(fails, given, message, tmp_path):
    said = fails("tokenizer", "fit", *arguments("tokenizer", tmp_path / "run", f"--trainer.{given}"))
    assert said.startswith(f"error: {message}")


@pytest.mark.parametrize("section", ["trainer: 5", "model:", "data: [1]", "ema: text"])
def test_a_section_of_a_config_that_is_no_mapping(fails, section, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(section)
    said = fails("tokenizer", "fit", f"--config={config}", *arguments("tokenizer", tmp_path / "run"))
    assert f"{config} is no config: {section.partition(':')[0]} is " in said
