"""Settings that would hurt are refused with one line that names the file, and run nothing."""

from pathlib import Path

import pytest

import cli
import train
from tests.hostile.yamls import YAMLS
from vqvae.foreign.taming import resolution


@pytest.mark.parametrize("content", YAMLS.values(), ids=YAMLS.keys())
def test_refused_by_name(content: bytes, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "given").mkdir()
    path = tmp_path / "given" / "settings.yaml"
    path.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"settings\.yaml"):
        resolution(path)
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: train.train("tokenizer", ["fit", "--config", str(path), "--run", str(tmp_path / "run")]))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert [each.name for each in tmp_path.iterdir()] == ["given"]
