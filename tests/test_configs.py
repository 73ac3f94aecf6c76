"""Every config in configs/ is one that train.py takes; those of the paper say what the paper says."""

import json
import shlex
from dataclasses import asdict
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace

import train
from config_files import CONFIGS
from transformer.config import PRESETS as PRIOR_PRESETS
from vqvae.config import DiscreteVAEConfig
from vqvae.lpips import LPIPS

TOKENIZER_PRESETS = ("openai", "base", "small", "tiny")  # there are only the files
PRESETS = {"tokenizer": TOKENIZER_PRESETS, "prior": tuple(PRIOR_PRESETS)}
FILES = [(path.parent.name, path.stem) for path in sorted(CONFIGS.glob("*/*.yaml"))]
NAMED = [(kind, name) for kind, names in PRESETS.items() for name in names]
CODES_OF = {"tiny": "tiny", "small": "small"}  # the tokenizer that a prior is meant for; the paper's for the others


class _Parsed(Exception):
    """Thrown in the place of a run, with its settings and its parts."""


def text_of(kind: str, name: str) -> str:
    return (CONFIGS / kind / f"{name}.yaml").read_text(encoding="utf-8")


def tokenizer_config(name: str) -> DiscreteVAEConfig:
    """From the file alone, which is to say all that makes the model."""
    config = yaml.safe_load(text_of("tokenizer", name))
    return DiscreteVAEConfig(image_size=config["data"]["image_size"], **config["model"]["vae"])


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """From (kind, config) to what train.py makes of it: the settings, and the parts with the weights left out."""

    def instantiate(cli: train.RunCLI) -> None:
        config = cli.config[cli.subcommand]
        with torch.device("meta"):
            parts = cli.parser.instantiate(cli.config)[cli.subcommand]
        raise _Parsed(config, parts)

    monkeypatch.setattr(train.RunCLI, "instantiate_classes", instantiate)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)  # would outlive the test
    monkeypatch.setattr(LPIPS, "from_pretrained", lambda folder, net: LPIPS(net))  # weights that nobody ships

    def parse(kind: str, name: str) -> tuple[Namespace, Namespace]:
        sources = {"tokenizer": "--data.folder", "prior": "--data.codes"}
        args = ["fit", "--config", name, "--run", str(tmp_path / "run")]
        if "\n  drawings:" not in text_of(kind, name):
            args += [sources[kind], str(tmp_path / "pictures")]
        if kind == "prior":
            tokenizer = tokenizer_config(CODES_OF.get(name, "openai"))
            (tmp_path / "config.json").write_text(json.dumps(asdict(tokenizer)))
            args += ["--tokenizer", str(tmp_path)]
        with pytest.raises(_Parsed) as stop:
            train.train(kind, args)
        return stop.value.args

    return parse


def samples_an_update(config: Namespace) -> int:
    trainer = config.trainer
    return trainer.num_nodes * trainer.devices * config.data.loading.batch_size * trainer.accumulate_grad_batches


def values(options: Any, expected: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in expected}


def test_every_preset_has_a_config():
    assert set(NAMED) <= set(FILES)


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_train_takes_it(parsed, kind, name):
    config, parts = parsed(kind, name)
    assert config.trainer.max_steps > 0 or "max_steps" not in text_of(kind, name)
    assert all(parameter.is_meta for parameter in parts.model.parameters())
    assert sum(parameter.numel() for parameter in parts.model.parameters()) > 0


@pytest.mark.parametrize(("kind", "name"), NAMED)
def test_its_head_gives_the_command_and_what_it_reached(kind, name):
    lines = text_of(kind, name).splitlines()
    head = [line.removeprefix("#").strip() for line in lines[: next(i for i, s in enumerate(lines) if s[:1] != "#")]]
    start = next(i for i, line in enumerate(head) if line.startswith("python train.py"))
    command = shlex.split(" ".join(head[start : head.index("", start)]).replace("\\ ", ""))
    assert command[:6] == ["python", "train.py", kind, "fit", "--config", name]
    assert all(arg.startswith("--") for arg in command[4::2])  # pairs of a name and a value
    assert any(line.startswith("For: ") for line in head)
    assert any(line.startswith("Reached: ") for line in head)


@pytest.mark.parametrize("name", TOKENIZER_PRESETS)
def test_a_tokenizer_is_what_its_file_says(parsed, name):
    given = yaml.safe_load(text_of("tokenizer", name))["model"]["vae"]
    assert given.keys() >= {"n_hid", "n_init", "n_groups", "n_blk_per_group", "codebook_size", "quantizer"}
    _, parts = parsed("tokenizer", name)
    model = parts.model.model
    assert model.config == tokenizer_config(name)
    side = model.config.image_size
    z_e = model.encode_vectors(torch.zeros(2, 3, side, side, device="meta"))
    assert z_e.shape == (2, model.quantizer.in_channels, *model.grid_size)
    maps = model.decoder(torch.zeros(2, model.quantizer.out_channels, *model.grid_size, device="meta"))
    assert maps.shape == (2, model.pixels.n_maps, side, side)


@pytest.mark.parametrize("name", PRIOR_PRESETS)
def test_a_prior_has_the_sizes_of_the_preset_it_is_called_after(parsed, name):
    _, parts = parsed("prior", name)
    assert values(parts.model.prior.config, PRIOR_PRESETS[name]) == PRIOR_PRESETS[name]


def test_the_papers_tokenizer(parsed):
    config, parts = parsed("tokenizer", "openai")
    assert samples_an_update(config) == 512
    assert config.trainer.max_steps == 3_000_000
    model = parts.model.model
    assert [sum(p.numel() for p in half.parameters()) for half in (model.encoder, model.decoder)] == [
        53_786_240,
        43_829_766,
    ]
    optim = {"lr": 1e-4, "min_lr": 1.25e-6, "decay_steps": 1_200_000, "warmup_steps": 0}
    optim |= {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4}
    assert values(parts.model.optim, optim) == optim
    gumbel = {"tau_start": 1, "tau_end": 1 / 16, "tau_steps": 150_000, "beta_end": 6.6, "beta_steps": 5_000}
    assert values(model.quantizer, gumbel) == gumbel
    assert config.model.reconstruction == "logit_laplace"
    assert parts.data.augment and parts.data.image_size == 256
    assert config.ema.decay == 0.999


def test_the_papers_prior(parsed):
    config, parts = parsed("prior", "dalle-12b")
    assert samples_an_update(config) == 1024
    trainer = {"max_steps": 430_000, "gradient_clip_val": 4, "precision": "bf16-mixed"}
    assert values(config.trainer, trainer) == trainer
    assert sum(p.numel() for p in parts.model.prior.parameters()) == 12_292_808_448
    assert f"{12_292_808_448:,} parameters" in text_of("prior", "dalle-12b")
    sizes = {"block": "paper", "conv_kernel": 11, "text_len": 256, "text_vocab_size": 16_384, "codebook_size": 8192}
    sizes |= {"grid_size": (32, 32), "checkpoint_activations": True, "attend_pads": True}
    assert values(parts.model.prior.config, sizes) == sizes
    optim = {"lr": 4.5e-4, "betas": (0.9, 0.96), "eps": 1e-8, "weight_decay": 4.5e-2}
    optim |= {"warmup_steps": 5000, "decay": "plateau"}
    assert values(parts.model.optim, optim) == optim
    assert parts.data.text.bpe_dropout == 0.1 and parts.model.caption_dropout == 0
    assert values(config.ema, {"decay": 0, "update_every_n_steps": 0}) == {"decay": 0.99, "update_every_n_steps": 25}


def test_an_unknown_key_is_noticed(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text_of("tokenizer", "tiny") + "colour: red\n")
    with pytest.raises(ValueError, match="colour"):
        train.train("tokenizer", ["fit", "--config", str(path), "--data.folder", str(tmp_path)])
