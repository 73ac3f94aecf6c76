"""train.py with a perceptual loss and a discriminator."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from tests.runs import MARKS, MODEL_FILES, ROOT, RUN_FILES, arguments, checkpoint_of, files_in, fit
from vqvae.folders import load_image_tokenizer
from vqvae.lpips import LPIPS, file_name

pytestmark = MARKS


@pytest.fixture(scope="module")
def losses(tmp_path_factory) -> list[str]:
    """Arguments, with random weights of LPIPS."""
    folder = tmp_path_factory.mktemp("lpips")
    save_file(LPIPS("alex").state_dict(), folder / file_name("alex"), metadata={"kind": "lpips", "net": "alex"})
    return [
        f'--model.perceptual={{"weights": "{folder}", "net": "alex"}}',
        '--model.adversarial={"start_step": 2, "head_start": 1, "warmup_steps": 2, "width": 8, "n_layers": 1}',
        "--model.vae.pixels=signed",
        "--model.reconstruction=l1",
    ]


def test_a_run_that_goes_on(losses, tmp_path):
    """It ends as the one without a break, the weight average included; the model holds nothing of the judge."""
    whole = fit("tokenizer", tmp_path / "whole", *losses, "--trainer.max_steps=6", "--model.optim.decay_steps=6")
    parts = tmp_path / "parts"
    fit("tokenizer", parts, *losses, "--trainer.max_steps=3", "--model.optim.decay_steps=6")
    fit("tokenizer", parts, *losses, "--trainer.max_steps=6", "--model.optim.decay_steps=6", "--ckpt_path=last")
    of_whole, of_parts = checkpoint_of(whole), checkpoint_of(parts)
    assert of_whole["global_step"] == of_parts["global_step"] == 6
    assert len(of_whole["optimizer_states"]) == 2
    for part in ("state_dict", "current_model_state"):
        for name, tensor in of_whole[part].items():
            assert torch.equal(tensor, of_parts[part][name]), name
    model = load_image_tokenizer(whole / "model")
    assert not any("adversary" in name or "lpips" in name for name in model.state_dict())


def test_two_devices(losses, tmp_path):
    devices = ["--trainer.devices=2", "--trainer.strategy=ddp_find_unused_parameters_true", "--trainer.max_steps=4"]
    watched = "--trainer.callbacks+=tests.same_weights.SameWeights"
    args = arguments("tokenizer", tmp_path / "run", *losses, *devices, watched)
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "tokenizer", "fit", *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tensors are alike on 2 devices" in done.stdout
    assert files_in(tmp_path / "run") >= RUN_FILES | MODEL_FILES


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("gradient_clip_val=1.0", "gradient_clip_val is 1.0, .* expected null; model.adversarial.gradient_clip_val"),
        ("accumulate_grad_batches=2", "accumulate_grad_batches is 2, .* expected 1"),
    ],
)
def test_what_the_trainer_cannot_do_beside_a_discriminator(losses, tmp_path, setting, said):
    with pytest.raises(ValueError, match=f"trainer.{said}"):
        fit("tokenizer", tmp_path / "run", *losses, f"--trainer.{setting}")


def test_a_discriminator_that_never_judges_is_told(losses, tmp_path, caplog):
    late = losses[1].replace('"start_step": 2', '"start_step": 4')
    fit("tokenizer", tmp_path / "run", losses[0], late, *losses[2:])
    assert "never judges: it starts at step 4, the run ends at 4" in caplog.text


def test_missing_weights_are_told_before_anything_is_done(losses, tmp_path):
    with pytest.raises(ValueError, match=r"no file .*lpips-vgg.safetensors: .* convert it once: python -m vqvae"):
        fit("tokenizer", tmp_path / "run", *losses[1:], f"--model.perceptual.weights={tmp_path}")
    assert not (tmp_path / "run").exists()
