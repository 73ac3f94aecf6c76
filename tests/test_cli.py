"""One-line errors, exit codes, paths of models and the precision where none is asked for."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch._utils import ExceptionWrapper

import cli


def code_of(main) -> int | None:
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    return stop.value.code


def fail_with(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("size is 3,\n  expected 4"), "error: size is 3, expected 4"),
        (
            FileNotFoundError(2, "No such file or directory", "a.txt"),
            "error: [Errno 2] No such file or directory: 'a.txt'",
        ),
        (ValueError(), "error: ValueError"),
        (ValueError("x" * 10_000), "error: " + "x" * cli.MAX_LENGTH + "…"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(error, line, capsys):
    assert code_of(fail_with(error)) == 2
    assert capsys.readouterr() == ("", f"{line}\n")


def test_the_traceback_comes_with_the_development_mode(monkeypatch, capsys):
    monkeypatch.setattr(cli.sys, "flags", SimpleNamespace(dev_mode=True))
    assert code_of(fail_with(ValueError("size"))) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("error: size\n")


@pytest.mark.parametrize("error", [RuntimeError, KeyError, AssertionError, TypeError])
def test_our_own_mistakes_keep_their_traceback(error):
    with pytest.raises(error):
        cli.run(fail_with(error("a bug")))


def of_a_worker() -> None:
    """As a DataLoader passes on what one of its workers has raised."""
    try:
        raise ValueError("the picture is\nbroken: a.png")
    except ValueError:
        passed_on = ExceptionWrapper(where="in DataLoader worker process 0")
    passed_on.reraise()


def test_a_mistake_found_by_a_worker_is_told_without_its_traceback(capsys):
    assert code_of(of_a_worker) == 2
    assert capsys.readouterr().err == "error: the picture is broken: a.png\n"


def turned_into_an_exit() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


@pytest.mark.parametrize("main", [fail_with(KeyboardInterrupt()), turned_into_an_exit])
def test_ctrl_c_is_code_130(main, capsys):
    assert code_of(main) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_other_exits_stay_what_they_are():
    assert code_of(lambda: sys.exit(0)) == 0
    assert code_of(lambda: sys.exit(7)) == 7
    assert cli.run(lambda: None) is None


def test_errors_of_the_parser_are_like_the_others(capsys):
    parser = cli.Parser()
    parser.add_argument("--n", type=int)
    assert code_of(lambda: parser.parse_args(["--n", "two"])) == 2
    assert capsys.readouterr().err == "error: argument --n: invalid int value: 'two'\n"


def test_a_model_is_found_in_its_folder_and_in_its_run(tmp_path):
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "config.json").touch()
    assert cli.model_folder(model) == cli.model_folder(str(tmp_path / "run")) == model


def test_folders_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"no such folder: .*nowhere; expected a run"):
        cli.model_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no model: looked for config\.json there and in .*model"):
        cli.model_folder(tmp_path)


@pytest.fixture
def machine(monkeypatch):
    """Pretends to be on a machine with these properties."""

    def machine(*, amx: bool = False, avx512_bf16: bool = False, cuda: bool = False, cuda_bf16: bool = False) -> None:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda_bf16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return machine


@pytest.mark.parametrize(("has", "likes"), [({}, False), ({"amx": True}, True), ({"avx512_bf16": True}, True)])
def test_processors(machine, has, likes):
    machine(**has)
    assert cli.cpu_likes_bf16() is likes


def test_a_pytorch_without_the_questions_means_no(machine, monkeypatch):
    machine(amx=True)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert not cli.cpu_likes_bf16()


@pytest.mark.parametrize(
    ("has", "accelerator", "precision"),
    [
        ({"amx": True}, "auto", "bf16-mixed"),
        ({"amx": True}, "cpu", "bf16-mixed"),
        ({}, "cpu", "32-true"),
        ({"cuda": True, "cuda_bf16": True}, "auto", "bf16-mixed"),
        ({"cuda": True, "cuda_bf16": True}, "gpu", "bf16-mixed"),
        ({"cuda": True, "cuda_bf16": True}, "cpu", "32-true"),
        ({"cuda": True, "amx": True}, "cuda", "32-true"),
        ({"cuda": True, "amx": True}, "cpu", "bf16-mixed"),
        ({"amx": True}, "mps", "32-true"),
    ],
)
def test_the_precision_follows_the_device_that_trains(machine, has, accelerator, precision):
    machine(**has)
    assert cli.default_precision(accelerator) == precision


def test_not_the_processors_taste_where_apples_gpu_trains(machine, monkeypatch):
    machine(amx=True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert cli.default_precision("auto") == "32-true"
    assert cli.default_precision("cpu") == "bf16-mixed"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_of_today_trains_in_bf16():
    assert cli.default_precision("gpu") == "bf16-mixed"
