"""train.py in this process, on tiny models: what a run leaves behind, how it stops and goes on, and what it refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import cli
import train
from data.codes import CodesWriter
from model_files import load_config
from pipeline import TextToImage, fingerprint, load_image_tokenizer
from transformer.training import PriorSystem
from vqvae.training import TokenizerSystem

ROOT = Path(__file__).parent.parent
STEPS_AN_EPOCH = 6

SHARED = {
    "data.drawings": {"size": 32, "count": 64},
    "data.loading": {"batch_size": 8, "workers": 0, "val_fraction": 0.2},
    "trainer.accelerator": "cpu",
    "trainer.max_steps": 4,
    "trainer.num_sanity_val_steps": 0,
    "ema.decay": 0.9,
}
SETTINGS = {
    "tokenizer": SHARED
    | {
        "data.image_size": 32,
        "model.vae": {"n_hid": 8, "n_init": 8, "n_groups": 3, "n_blk_per_group": 1, "codebook_size": 16},
        "model.vae.quantizer": "vq",
        "model.optim.lr": 1e-3,
    },
    "prior": SHARED
    | {
        "data.text": {"text_len": 24, "vocab_size": 300},
        "model.prior": {"n_layer": 2, "n_head": 1, "n_embd": 16},
        "model.optim": {"decay": "cosine", "warmup_steps": 2, "lr": 1e-2},
    },
}

OF_LIGHTNING = ("(?s).*instantiate_classes.*", "(?s).*only one JsonargparseDeprecationWarning.*")
pytestmark = [pytest.mark.filterwarnings(f"ignore:{message}") for message in (*train.NOISE, *OF_LIGHTNING)]


@pytest.fixture(autouse=True, scope="module")
def precision_restored():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def arguments(kind: str, run: Path, *extra: str) -> list[str]:
    settings = [f"--{name}={json.dumps(v) if isinstance(v, dict) else v}" for name, v in SETTINGS[kind].items()]
    return [f"--run={run}", *settings, *extra]


def fit(kind: str, run: Path, *extra: str) -> Path:
    train.train(kind, ["fit", *arguments(kind, run, *extra)])
    return run


def checkpoint_of(run: Path) -> dict:
    return torch.load(run / train.CHECKPOINT, weights_only=True)


@pytest.fixture(scope="module")
def tokenizer_run(tmp_path_factory) -> Path:
    """To be read only, like the next one."""
    return fit("tokenizer", tmp_path_factory.mktemp("runs") / "tokenizer")


@pytest.fixture(scope="module")
def prior_run(tmp_path_factory, tokenizer_run) -> Path:
    return fit("prior", tmp_path_factory.mktemp("runs") / "prior", f"--tokenizer={tokenizer_run}")


@pytest.fixture
def extra(tokenizer_run) -> dict[str, list[str]]:
    return {"tokenizer": [], "prior": [f"--tokenizer={tokenizer_run}"]}


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


# ---- what a run leaves behind


def files(folder: Path) -> set[str]:
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {re.sub(r"events\.out\.tfevents.*", "events", path) for path in paths}


RUN_FILES = {"config.yaml", "checkpoints/last.ckpt", "tensorboard/events", "tensorboard/hparams.yaml"}
MODEL_FILES = {"model/config.json", "model/model.safetensors"}
BUNDLE_FILES = {"model/bundle.json", "model/tokenizer.json"}
BUNDLE_FILES |= {f"model/image_tokenizer/{name}" for name in ("config.json", "model.safetensors")}


def test_files_of_a_run(tokenizer_run, prior_run):
    assert files(tokenizer_run) == RUN_FILES | MODEL_FILES
    assert files(prior_run) == RUN_FILES | MODEL_FILES | BUNDLE_FILES


def test_the_exported_tokenizer_has_the_averaged_weights(tokenizer_run):
    checkpoint = checkpoint_of(tokenizer_run)
    exported = load_image_tokenizer(tokenizer_run / "model").state_dict()
    averaged = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
    trained = {name.removeprefix("model."): tensor for name, tensor in checkpoint["current_model_state"].items()}
    assert all(torch.equal(exported[name], averaged[name]) for name in exported)
    assert not all(torch.equal(exported[name], trained[name]) for name in exported)


def test_the_exported_prior_is_a_complete_bundle(tokenizer_run, prior_run):
    pipeline = TextToImage.from_pretrained(prior_run / "model")
    averaged = checkpoint_of(prior_run)["state_dict"]
    assert all(torch.equal(tensor, averaged[f"prior.{name}"]) for name, tensor in pipeline.prior.state_dict().items())
    assert fingerprint(pipeline.image_tokenizer) == fingerprint(load_image_tokenizer(tokenizer_run / "model"))
    bundle = json.loads((prior_run / "model" / "bundle.json").read_text())
    assert re.fullmatch("[0-9a-f]{16}", bundle["data"])
    (picture,) = pipeline("a red circle")
    assert picture.size == (32, 32)


def test_sizes_that_others_fix_are_taken_from_them(prior_run):
    config = TextToImage.from_pretrained(prior_run / "model").prior.config
    assert (config.codebook_size, config.grid_size, config.text_len, config.text_vocab_size) == (16, (8, 8), 24, 300)


def test_the_saved_config_says_how_it_was_trained_and_repeats_it(tokenizer_run, tmp_path):
    saved = yaml.safe_load((tokenizer_run / "config.yaml").read_text())
    assert saved["trainer"]["max_steps"] == 4
    assert saved["trainer"]["precision"] == cli.default_precision("cpu")
    assert saved["model"]["vae"]["quantizer"] == "vq"
    assert saved["ckpt_path"] is None
    train.train("tokenizer", ["fit", "--config", str(tokenizer_run / "config.yaml"), "--run", str(tmp_path / "again")])
    ours, theirs = checkpoint_of(tokenizer_run), checkpoint_of(tmp_path / "again")
    assert_equal(ours["state_dict"], theirs["state_dict"])


def test_the_command_line_outdoes_the_config_and_its_precision_stays(tokenizer_run, tmp_path):
    config = ["--config", str(tokenizer_run / "config.yaml"), "--run", str(tmp_path / "run")]
    (other,) = {"32-true", "bf16-mixed"} - {cli.default_precision("cpu")}
    train.train("tokenizer", ["fit", *config, "--trainer.max_steps=1", f"--trainer.precision={other}"])
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (saved["trainer"]["max_steps"], saved["trainer"]["precision"]) == (1, other)
    assert checkpoint_of(tmp_path / "run")["global_step"] == 1


def test_none_in_a_saved_config_stays_none(tmp_path):
    """A null that takes the place of a default must not be left out, or the repeated run is another one."""
    fit("tokenizer", tmp_path / "run", "--model.optim.decay_steps=null")
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["model"]["optim"]["decay_steps"] is None


@pytest.mark.parametrize("kind", ["tokenizer", "prior"])
def test_pictures_are_drawn_with_the_averaged_weights(kind, tmp_path, extra, monkeypatch):
    """At a validation in the middle, when other weights are being trained."""
    seen = {}

    def draw(self, system):
        seen[system.global_step] = {name: tensor.clone() for name, tensor in system.state_dict().items()}
        assert not system.training
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr({"tokenizer": train.TokenizerCLI, "prior": train.PriorCLI}[kind], "draw", draw)
    steps = f"--trainer.max_steps={STEPS_AN_EPOCH}"
    fit(kind, tmp_path / "run", *extra[kind], steps)
    assert_equal(seen[STEPS_AN_EPOCH], checkpoint_of(tmp_path / "run")["state_dict"])


@pytest.mark.parametrize(("kind", "name"), [("tokenizer", "reconstructions"), ("prior", "samples")])
def test_pictures_of_the_training(kind, name, tmp_path, extra):
    run = fit(kind, tmp_path / "run", *extra[kind], f"--trainer.max_steps={2 * STEPS_AN_EPOCH}")
    drawn = sorted(path.name for path in (run / "pictures").iterdir())
    assert drawn == [f"{name}-0000006.png", f"{name}-0000012.png"], "the first, and after the last step"


def test_a_trial_run_leaves_nothing(tmp_path):
    fit("tokenizer", tmp_path / "run", "--trainer.fast_dev_run=true")
    assert not (tmp_path / "run").exists()


def test_the_last_values_come_back(tmp_path):
    metrics = train.train("tokenizer", ["fit", *arguments("tokenizer", tmp_path / "run", "--trainer.max_steps=6")])
    assert {"train/loss", "val/psnr"} <= metrics.keys()
    assert all(isinstance(value, float) for value in metrics.values())


# ---- stopping and going on


@pytest.fixture
def ctrl_c_at(monkeypatch) -> Callable[..., None]:
    """Presses Ctrl-C during the training step number `step`, counted from 1, `times` times."""

    def ctrl_c_at(step: int, times: int = 1) -> None:
        left = [signal.SIGINT] * times
        for system in (TokenizerSystem, PriorSystem):
            original = system.training_step

            def pressed(self, *args, original=original):
                while self.global_step == step - 1 and left:
                    left.pop()
                    signal.raise_signal(signal.SIGINT)
                return original(self, *args)

            monkeypatch.setattr(system, "training_step", pressed)

    return ctrl_c_at


def assert_equal(ours, theirs, path: str = "") -> None:
    assert type(ours) is type(theirs), path
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), path
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), path
        for name in ours:
            assert_equal(ours[name], theirs[name], f"{path}/{name}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), path
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{path}/{i}")
    else:
        assert ours == theirs, path


PARTS = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step")


@pytest.mark.parametrize(
    ("kind", "stop"), [("tokenizer", 4), ("tokenizer", STEPS_AN_EPOCH), ("prior", STEPS_AN_EPOCH), ("prior", 9)]
)
def test_a_resumed_run_equals_one_that_was_not_interrupted(kind, stop, tmp_path, extra, ctrl_c_at, monkeypatch):
    steps = [*extra[kind], "--trainer.max_steps=14", "--trainer.precision=32-true"]
    whole = fit(kind, tmp_path / "whole", *steps)
    with monkeypatch.context():
        ctrl_c_at(stop)
        with pytest.raises(KeyboardInterrupt):
            fit(kind, tmp_path / "parts", *steps)
    monkeypatch.undo()
    assert checkpoint_of(tmp_path / "parts")["global_step"] == stop
    parts = fit(kind, tmp_path / "parts", *steps, "--ckpt_path=last")
    for part in PARTS:
        assert_equal(checkpoint_of(whole)[part], checkpoint_of(parts)[part], part)
    assert (whole / "model" / "model.safetensors").read_bytes() == (parts / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("stop", "validate"), [(6, []), (5, ["--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=4"])]
)
@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric")
def test_a_step_size_that_follows_the_validations_survives_a_resume(stop, validate, tmp_path, extra, ctrl_c_at):
    """The epoch ends after the resume, its validation was before."""
    plateau = [*extra["prior"], "--trainer.max_steps=8", "--model.optim.decay=plateau", *validate]
    ctrl_c_at(stop)
    with pytest.raises(KeyboardInterrupt):
        fit("prior", tmp_path / "run", *plateau)
    fit("prior", tmp_path / "run", *plateau, "--ckpt_path=last")
    assert checkpoint_of(tmp_path / "run")["global_step"] == 8


def test_ctrl_c_ends_with_a_checkpoint_and_a_model(tmp_path, ctrl_c_at, capsys, caplog):
    ctrl_c_at(3)
    caplog.set_level("INFO")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: fit("tokenizer", tmp_path / "run", "--trainer.max_steps=100"))
    assert stop.value.code == 130
    assert files(tmp_path / "run") == RUN_FILES | MODEL_FILES, "no picture: a last validation could take minutes"
    assert checkpoint_of(tmp_path / "run")["global_step"] == 3
    said = capsys.readouterr()
    assert "stopping after this step" in said.err
    assert "--ckpt_path last goes on" in caplog.text
    assert "Traceback" not in said.err
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_stops_at_once(tmp_path, ctrl_c_at, capsys):
    ctrl_c_at(3, times=2)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: fit("tokenizer", tmp_path / "run"))
    signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    assert stop.value.code == 130
    assert not (tmp_path / "run" / train.CHECKPOINT).exists()
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"


def test_a_run_that_is_over_is_exported_again(tokenizer_run, tmp_path, capsys):
    run = shutil.copytree(tokenizer_run, tmp_path / "run")
    shutil.rmtree(run / "model")
    fit("tokenizer", run, "--ckpt_path=last")
    assert (run / "model" / "model.safetensors").read_bytes() == (
        tokenizer_run / "model" / "model.safetensors"
    ).read_bytes()


def test_epochs_end_a_run_too(tmp_path):
    run = fit("tokenizer", tmp_path / "run", "--trainer.max_steps=-1", "--trainer.max_epochs=1")
    assert checkpoint_of(run)["global_step"] == STEPS_AN_EPOCH


def test_accumulated_gradients_are_never_split_by_a_checkpoint(tmp_path, ctrl_c_at):
    ctrl_c_at(1)
    with pytest.raises(KeyboardInterrupt):
        fit("tokenizer", tmp_path / "run", "--trainer.accumulate_grad_batches=3")
    checkpoint = checkpoint_of(tmp_path / "run")
    assert checkpoint["global_step"] == 1
    assert checkpoint["TokenizerData"]["position"] == 3 * 8


def test_validate_measures_the_last_checkpoint(tokenizer_run, capsys):
    metrics = train.train("tokenizer", ["validate", *arguments("tokenizer", tokenizer_run)])
    assert {"val/loss", "val/psnr", "val/codes_used"} <= metrics.keys()
    named = ["validate", f"--config={tokenizer_run / 'config.yaml'}", f"--ckpt_path={tokenizer_run / train.CHECKPOINT}"]
    assert train.train("tokenizer", named) == metrics
    assert files(tokenizer_run) == RUN_FILES | MODEL_FILES, "it writes nothing"


def test_validate_of_a_prior(prior_run, extra):
    assert "val/loss_image" in train.train("prior", ["validate", *arguments("prior", prior_run, *extra["prior"])])


def test_a_prior_trains_on_codes(tokenizer_run, prior_run, tmp_path):
    codes = write_codes(tmp_path / "codes", fingerprint(load_image_tokenizer(tokenizer_run / "model")))
    run = fit(
        "prior", tmp_path / "run", f"--tokenizer={tokenizer_run}", "--data.drawings=null", f"--data.codes={codes}"
    )
    assert files(run) == RUN_FILES | MODEL_FILES | BUNDLE_FILES


def write_codes(folder: Path, of: str) -> Path:
    with CodesWriter(folder, of, codebook_size=16, grid_size=(8, 8)) as writer:
        keys = [f"{i}" for i in range(100)]
        codes = torch.randint(16, (100, 8, 8), generator=torch.Generator().manual_seed(0))
        writer.add(keys, [[f"a red circle {key}"] for key in keys], [None] * 100, codes)
    return folder


# ---- refusals


def test_codes_of_another_tokenizer(fails, tokenizer_run, tmp_path):
    codes = write_codes(tmp_path / "codes", "0123456789abcdef")
    given = ["--data.drawings=null", f"--data.codes={codes}", f"--tokenizer={tokenizer_run}"]
    said = fails("prior", "fit", *arguments("prior", tmp_path / "run", *given))
    assert "0123456789abcdef" in said
    assert fingerprint(load_image_tokenizer(tokenizer_run / "model")) in said


def test_a_run_is_not_overwritten(fails, tokenizer_run):
    assert "holds a run already: go on with --ckpt_path last" in fails(
        "tokenizer", "fit", *arguments("tokenizer", tokenizer_run)
    )


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_nothing_to_go_on_with(fails, tmp_path, command):
    for ckpt_path in ("last", "nowhere.ckpt"):
        said = fails("tokenizer", command, *arguments("tokenizer", tmp_path / "run", f"--ckpt_path={ckpt_path}"))
        assert "no checkpoint" in said
        assert f"{ckpt_path.removesuffix('.ckpt')}.ckpt" in said


def test_half_a_checkpoint(fails, tokenizer_run, tmp_path):
    run = shutil.copytree(tokenizer_run, tmp_path / "run")
    path = run / train.CHECKPOINT
    for content in (path.read_bytes()[: path.stat().st_size // 2], b"", b"no checkpoint"):
        path.write_bytes(content)
        said = fails("tokenizer", "fit", *arguments("tokenizer", run, "--ckpt_path=last"))
        assert "last.ckpt is damaged or no training checkpoint" in said
    torch.save([1, 2], path)
    assert "last.ckpt is damaged" in fails("tokenizer", "fit", *arguments("tokenizer", run, "--ckpt_path=last"))


def test_a_checkpoint_of_another_model(fails, tokenizer_run):
    wider = arguments("tokenizer", tokenizer_run, "--ckpt_path=last", "--model.vae.n_hid=12")
    said = fails("tokenizer", "fit", *wider)
    assert "is of another model" in said
    assert "expected (12," in said


def test_unknown_words(fails, tmp_path):
    run = arguments("tokenizer", tmp_path / "run")
    assert "expected tokenizer or prior, got 'painter'" in fails("painter", "fit")
    assert "{fit,validate}" in fails("tokenizer")
    assert "unknown config 'nosuch'" in fails("tokenizer", "fit", "--config", "nosuch")
    assert "--model.vae.n_hidd" in fails("tokenizer", "fit", *run, "--model.vae.n_hidd=8")
    assert "model.vae.n_hid" in fails("tokenizer", "fit", *run, "--model.vae.n_hid=wide")
    assert "n_hid is 7, expected a multiple of 4" in fails("tokenizer", "fit", *run, "--model.vae.n_hid=7")
    assert "unknown quantizer 'fsq'" in fails("tokenizer", "fit", *run, "--model.vae.quantizer=fsq")


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


def test_help_and_print_config(capsys):
    for args in (["tokenizer", "fit", "--help"], ["prior", "fit", "--help"], ["prior", "--help"]):
        with pytest.raises(SystemExit) as stop:
            train.train(args[0], args[1:])
        assert stop.value.code == 0
    assert "usage: train.py prior" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        train.train("tokenizer", ["fit", *arguments("tokenizer", Path("run")), "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["vae"]["codebook_size"] == 16


def test_a_config_by_name(capsys):
    (name, *_) = sorted(path.stem for path in (train.CONFIGS / "tokenizer").glob("*.yaml"))
    for config in (["--config", name], [f"--config={name}"], ["-c", name]):
        with pytest.raises(SystemExit):
            train.train("tokenizer", ["fit", *config, "--data.folder", "pictures", "--print_config"])
        expected = yaml.safe_load((train.CONFIGS / "tokenizer" / f"{name}.yaml").read_text())
        assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_steps"] == expected["trainer"]["max_steps"]


# ---- as other processes


def test_ctrl_c_in_a_terminal_reaches_the_workers_too_and_loses_nothing(tmp_path):
    run = tmp_path / "run"
    args = arguments("tokenizer", run, "--trainer.max_steps=100000", "--data.loading.workers=1")
    script = subprocess.Popen(
        [sys.executable, ROOT / "train.py", "tokenizer", "fit", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a process group of its own, as a shell gives it
    )
    while not list(run.glob("pictures/*.png")) and script.poll() is None:
        time.sleep(0.1)
    assert script.poll() is None, script.stdout.read()
    os.killpg(script.pid, signal.SIGINT)
    said, _ = script.communicate(timeout=60)
    assert script.returncode == 130, said
    assert "Traceback" not in said
    assert said.count("stopping after this step") == 1
    assert load_config(run / "model")["codebook_size"] == 16
    assert checkpoint_of(run)["global_step"] >= STEPS_AN_EPOCH


def test_two_devices(tokenizer_run, tmp_path):
    devices = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=3"]
    args = arguments("prior", tmp_path / "run", f"--tokenizer={tokenizer_run}", *devices)
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "prior", "fit", *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model: ") == 1, "the first device alone exports"
    assert files(tmp_path / "run") >= RUN_FILES | MODEL_FILES | BUNDLE_FILES
    TextToImage.from_pretrained(tmp_path / "run" / "model")
