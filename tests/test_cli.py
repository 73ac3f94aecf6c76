"""How mistakes end a script, what a path stands for, and the precision that a processor is trusted with."""

import ctypes
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from jsonargparse import ArgumentError, ArgumentParser
from torch._utils import ExceptionWrapper

import cli
from data.shards.config import ShardsConfig

ROOT = Path(__file__).parent.parent


@pytest.fixture
def ends(capsys) -> Callable[[Callable[[], None]], tuple[int, str]]:
    """Runs a main that is to end early; returns the exit code and what standard error got."""

    def ends(main: Callable[[], None]) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            cli.run(main)
        return stop.value.code, capsys.readouterr().err

    return ends


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("n is 0, expected at least 1"), "n is 0, expected at least 1"),
        (ValueError("one\n  two\n\nthree "), "one two three"),
        (ValueError(), "ValueError"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "[Errno 2] No such file or directory: 'a.txt'"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), "'utf-8' codec can't decode byte 0xff in position 0: no"),
        (ValueError("x" * 501), "x" * 500 + "…"),
    ],
)
def test_a_mistake_becomes_one_line(ends, error, said):
    assert ends(raising(error)) == (2, f"error: {said}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (['--shards.sets=[{"path": "a", "wieght": 1}]'], "shards: Option 'wieght' is not accepted"),
        (["--shards=a", "--shards.index=b"], "shards: the following arguments are required: sets"),
    ],
)
def test_of_a_value_of_several_types_it_is_said_what_is_wrong(arguments, said):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--shards", type=str | ShardsConfig | None)
    with pytest.raises(ArgumentError) as error:
        parser.parse_args(arguments)
    assert cli.one_line(error.value) == said


def test_faults_of_ours_keep_their_traceback():
    for error in (AssertionError("ours"), TypeError("ours"), RuntimeError("ours"), KeyError("ours")):
        with pytest.raises(type(error)):
            cli.run(raising(error))


def test_nothing_is_said_of_success(capsys):
    cli.run(lambda: None)
    assert capsys.readouterr() == ("", "")


def test_ctrl_c(ends):
    assert ends(raising(KeyboardInterrupt())) == (130, "interrupted\n")


def test_ctrl_c_that_lightning_has_made_an_exit_of(ends):
    def main() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    assert ends(main) == (130, "interrupted\n")


@pytest.mark.parametrize("code", [0, 3])
def test_other_exits_stay_as_they_are(ends, code):
    assert ends(lambda: sys.exit(code)) == (code, "")


def test_what_a_worker_could_not_do_is_told_without_its_traceback(ends):
    """With what a DataLoader sends over; a real worker that fails takes seconds to be gone."""
    try:
        raise ValueError("picture 3 is gone:\nexpected a file")
    except ValueError:
        sent = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(ValueError, match=r"(?s)Caught ValueError.*Traceback.*picture 3"):
        sent.reraise()
    assert ends(sent.reraise) == (2, "error: picture 3 is gone: expected a file\n")


def test_developers_see_the_traceback_first(ends, monkeypatch):
    monkeypatch.setattr(cli, "sys", SimpleNamespace(**(vars(sys) | {"flags": SimpleNamespace(dev_mode=True)})))
    code, said = ends(raising(ValueError("n is 0")))
    assert code == 2
    assert said.startswith("Traceback")
    assert said.endswith("\nerror: n is 0\n")


def test_a_parser_s_errors_are_reported_like_others(ends):
    parser = cli.Parser(prog="any.py")
    parser.add_argument("--n", type=int)
    assert ends(lambda: parser.parse_args(["--n", "two"])) == (2, "error: argument --n: invalid int value: 'two'\n")
    assert ends(lambda: parser.parse_args(["--m"])) == (2, "error: unrecognized arguments: --m\n")


def test_a_script_ends_so(tmp_path):
    """Once as a newcomer does it."""
    command = [sys.executable, ROOT / "sample.py", "a red circle", "--model", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no such folder: nowhere")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


# ---- model folders


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    """glibc takes both limits; other libraries and systems are left alone."""
    glibc = getattr(ctypes.CDLL(None), "mallopt", lambda *setting: 1)
    answers = []

    def mallopt(name, value, most=2**31):
        answers.append((name, value, glibc(name, value) if name != -3 or value <= most else 0))
        return answers[-1][-1]

    library = SimpleNamespace(mallopt=mallopt)
    monkeypatch.setattr(cli.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(cli.sys, "platform", "linux")
    cli.keep_freed_memory()
    assert answers[-1] == (-1, 2**31 - 1, 1)
    assert answers[-2] in [(-3, 2**30, 1), (-3, 2**25, 1)]
    answers.clear()
    library.mallopt = functools.partial(mallopt, most=2**25)  # as before 2.35
    cli.keep_freed_memory()
    assert answers[:2] == [(-3, 2**30, 0), (-3, 2**25, 1)]
    answers.clear()
    monkeypatch.setattr(cli.sys, "platform", "darwin")
    cli.keep_freed_memory()
    monkeypatch.setattr(cli.sys, "platform", "linux")
    monkeypatch.setattr(cli.ctypes, "CDLL", lambda name: object())
    cli.keep_freed_memory()
    assert answers == []


def test_scripts_keep_what_they_free(monkeypatch):
    called = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: called.append("kept"))
    cli.run(lambda: called.append("ran"))
    assert called == ["kept", "ran"]


def test_a_model_and_its_run_stand_for_the_model(tmp_path):
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({}))
    assert cli.model_folder(model) == cli.model_folder(tmp_path / "run") == cli.model_folder(str(model)) == model


def test_paths_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"no such folder: .*nowhere; expected a run"):
        cli.model_folder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(
            ValueError, match=rf"{path} holds no model: looked for config.json there and in {path}/model"
        ):
            cli.model_folder(path)
