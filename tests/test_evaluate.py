"""The command line of evaluate.py; what it measures is tested in tests/evaluation."""

import sys

import pytest

import evaluate


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["palette"], "palette"),
        (["tokenizer", "--out=report"], "model"),
        (["tokenizer", "--model=runs/my-tokenizer"], "out"),
        (["tokenizer", "--model=runs/my-tokenizer", "--out=report", "--batch_size=some"], "batch_size"),
    ],
)
def test_a_wrong_command_line(args, said):
    with pytest.raises(ValueError, match=said):
        evaluate.evaluate(args)


def test_without_arguments_it_says_what_it_takes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    with pytest.raises(SystemExit, match="2"):
        evaluate.main()
    assert "python evaluate.py tokenizer --model" in capsys.readouterr().out
