import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import cli
import sample
import sample_files
import sample_options
from tests.samples import manifest, pictures
from tests.test_sample_files import ODD
from vqvae.model import DiscreteVAE

ROOT = Path(__file__).parent.parent


class Piped(io.StringIO):
    """Standard input that is no terminal."""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal())


@pytest.fixture
def fails(sample_command, capsys):
    """Runs the script as `python sample.py` does, expects exit code 2, returns its one line on standard error."""

    def fails(*args: str, model: Path | str | None = None) -> str:
        command = sample_command(*args, model=model)
        with pytest.raises(SystemExit) as stop:
            cli.run(lambda: sample.sample(command))
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("error: ")
        return line

    return fails


def test_pictures_a_grid_and_a_list(draw, pipeline, capsys):
    out = draw("a red circle", "a blue star", "--n", "3", "--seed", "7")
    short = pipeline.fingerprint[:8]
    names = {f"{words}_seed{seed}_{short}.png" for words in ("a-red-circle", "a-blue-star") for seed in (7, 8, 9)}
    assert pictures(out).keys() == names
    listed = manifest(out)
    assert [(row["caption"], row["seed"]) for row in listed["pictures"]] == [
        (caption, seed) for caption in ("a red circle", "a blue star") for seed in (7, 8, 9)
    ]
    assert {row["file"] for row in listed["pictures"]} == names
    assert listed["model"] == pipeline.fingerprint
    assert (out / listed["grid"]).is_file()
    assert len(list(out.iterdir())) == 6 + 2, "nothing else is left, hidden files included"
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"6 pictures of 2 captions in {out}, all on {out / listed['grid']}"]
    assert said.err == "", "no bar where there is no terminal"


def test_a_grid_of_the_first_pictures_says_so(draw, monkeypatch, capsys):
    for module in (sample, sample_files):
        monkeypatch.setattr(module, "GRID_PICTURES", 2)
    out = draw("a red circle", "a blue star", "--n", "2", "--batch_size", "1")
    listed = manifest(out)
    assert len(listed["pictures"]) == 4
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"the first 2 on {out / listed['grid']}")
    with Image.open(out / listed["grid"]) as grid:
        assert json.loads(grid.text["captions"]) == ["a red circle"]


def test_pictures_are_written_as_they_are_drawn(draw, monkeypatch, tmp_path):
    """What is drawn outlives a sampling that is cut short; the list, which says that all is there, is missing."""
    decode, left = DiscreteVAE.decode, [None] * 3

    def cut(self, indices):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return decode(self, indices)

    monkeypatch.setattr(DiscreteVAE, "decode", cut)
    with pytest.raises(KeyboardInterrupt):
        draw("a red circle", "a blue star", "--n", "2", "--batch_size", "2")
    assert [path.name.split("_")[:2] for path in sorted((tmp_path / "out").iterdir())] == [
        ["a-red-circle", "seed0"],
        ["a-red-circle", "seed1"],
    ]


def test_what_was_cut_short_goes_on(draw, monkeypatch, tmp_path, capsys):
    """Cut in the fourth picture of six, and one of the three damaged since: then four are drawn, as if all at once."""
    args = ["a red circle", "a blue star", "--n", "3", "--batch_size", "1"]
    whole = {path.name: path.read_bytes() for path in draw(*args, out="whole").iterdir()}
    decode, decoded, limit = DiscreteVAE.decode, [], 3

    def counted(self, indices):
        if len(decoded) == limit:
            raise KeyboardInterrupt
        decoded.append(None)
        return decode(self, indices)

    monkeypatch.setattr(DiscreteVAE, "decode", counted)
    with pytest.raises(KeyboardInterrupt):
        draw(*args)
    (damaged,) = (tmp_path / "out").glob("a-red-circle_seed1_*.png")
    damaged.write_bytes(damaged.read_bytes()[:-20])
    limit = 3 + 4
    capsys.readouterr()
    for there in (2, 6):
        assert {path.name: path.read_bytes() for path in draw(*args).iterdir()} == whole
        assert capsys.readouterr().out.splitlines()[0] == f"{there} of 6 are there already"
        assert len(decoded) == limit


def test_a_killed_process_leaves_whole_files_only(shared_bundle, draw, tmp_path):
    captions = [f"a red circle {number}" for number in range(40)]
    options = ["--n", "1", "--batch_size", "1"]
    command = [sys.executable, ROOT / "sample.py", *captions, *options, "--model", shared_bundle]
    with subprocess.Popen([*command, "--out", tmp_path / "out"]) as process:
        while process.poll() is None and len(list((tmp_path / "out").glob("*.png"))) < 3:
            time.sleep(0.01)
        process.kill()
    left = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*_seed*.png")}
    assert 3 <= len(left) < 40
    whole = pictures(draw(*captions, *options, out="whole"))
    assert left.items() <= whole.items()
    assert pictures(draw(*captions, *options)) == whole


def test_a_bar_in_a_terminal(draw, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    draw("a red circle", "a blue star", "--n", "3", "--batch_size", "4")
    said = capsys.readouterr()
    assert "100%" in said.err
    assert "96/96" in said.err, "16 codes of 6 pictures"
    assert len(said.out.splitlines()) == 1


def test_the_files_show_what_the_pipeline_draws(draw, pipeline):
    out = draw(
        "a red circle", "--n", "2", "--seed", "3", "--temperature", "0.7", "--top_k", "9", "--guidance_scale", "2"
    )
    expected = pipeline("a red circle", n=2, seed=3, temperature=0.7, top_k=9, guidance_scale=2.0)
    for row, picture in zip(manifest(out)["pictures"], expected, strict=True):
        with Image.open(out / row["file"]) as written:
            assert written.tobytes() == picture.tobytes()


def test_metadata_and_names_carry_caption_seed_settings_and_model(draw, pipeline):
    settings = {"temperature": 0.5, "top_k": 12, "top_p": 0.9, "min_p": 0.01, "guidance_scale": 2.5}
    settings["guidance_schedule"] = "cosine"
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    out = draw("ein größerer Kreis", "--n", "1", *options)
    (path,) = out.glob("*_seed*.png")
    assert path.name.startswith("ein-groerer-kreis--")
    assert path.name.endswith(f"_seed0_t0.5_k12_p0.9_m0.01_g2.5_cosine_{pipeline.fingerprint[:8]}.png")
    with Image.open(path) as picture:
        text = picture.text
    assert json.loads(text.pop("settings")) == settings == manifest(out)["settings"]
    assert text == {"caption": "ein größerer Kreis", "seed": "0", "model": pipeline.fingerprint, "weights": "float32"}


def test_the_same_picture_alone_and_in_any_batch(draw):
    together = pictures(draw("a red circle", "a blue star", "no circle", "--n", "4", out="all"))
    assert len(set(together.values())) > 6, "they are to differ, or the test shows nothing"
    for number, batch_size in enumerate(["1", "3", "5"]):
        assert (
            pictures(draw("a red circle", "--n", "4", "--batch_size", batch_size, out=f"{number}")).items()
            <= together.items()
        )
    assert pictures(draw("a blue star", "--n", "1", "--seed", "2", out="alone")).items() <= together.items()
    assert pictures(draw("no circle", "a blue star", "--n", "4", out="turned")).items() <= together.items()


def test_other_settings_and_models_overwrite_nothing(draw, pipeline, tmp_path):
    draw("a red circle", "--n", "1")
    draw("a red circle", "--n", "1", "--temperature", "0.5")
    draw("a red circle", "--n", "2")
    next(pipeline.prior.parameters()).data.add_(0.5)
    pipeline.save_pretrained(tmp_path / "other")
    out = draw("a red circle", "--n", "1", model=tmp_path / "other")
    assert len(pictures(out)) == 4, "one twice"
    assert len(list(out.glob("grid_*.png"))) == len(list(out.glob("grid_*.json"))) == 4


def test_the_same_call_writes_the_same_files(draw):
    first = {path.name: path.read_bytes() for path in draw("a red circle").iterdir()}
    assert {path.name: path.read_bytes() for path in draw("a red circle").iterdir()} == first


def test_captions_from_a_file(draw, tmp_path):
    file = tmp_path / "captions.txt"
    file.write_bytes("\ufeffa red circle\r\n\r\n  a  blue\tstar \r\n\u200b \u200d\r\na red circle\r\n".encode())
    out = draw("no circle", "--captions", str(file), "--n", "1")
    assert [row["caption"] for row in manifest(out)["pictures"]] == ["no circle", "a red circle", "a blue star"]


@pytest.mark.parametrize("args", [["-"], ["--captions", "-"], []])
def test_captions_from_standard_input(draw, monkeypatch, args):
    monkeypatch.setattr(sys, "stdin", Piped("a red circle\n\na blue star"))
    out = draw(*args, "--n", "1")
    assert [row["caption"] for row in manifest(out)["pictures"]] == ["a red circle", "a blue star"]


def test_standard_input_is_left_alone_where_captions_are_given(draw, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Piped("a blue star"))
    assert [row["caption"] for row in manifest(draw("a red circle", "--n", "1"))["pictures"]] == ["a red circle"]


def test_odd_captions_get_names_of_their_own(draw):
    out = draw("a red circle", *ODD, "--n", "1")
    names = [row["file"] for row in manifest(out)["pictures"]]
    assert len(set(names)) == len(names) == len(ODD) + 1
    assert all((out / name).is_file() and len(name) < 150 and set(name) <= set(ALLOWED) for name in names)


ALLOWED = "abcdefghijklmnopqrstuvwxyz0123456789-_."


def test_captions_that_are_cut_are_counted(draw, capsys):
    draw("word " * 50, "a red circle", "--n", "1")
    assert "1 of 2 captions have more than 23 tokens: their ends are cut off" in capsys.readouterr().out


def test_the_run_of_a_model_stands_for_it(draw, shared_bundle):
    assert pictures(draw("a red circle", model=shared_bundle.parent, out="run")) == pictures(draw("a red circle"))


@pytest.mark.parametrize("args", [[], ["", "  "], ["\u200b", "\u200d\u2060"], ["-"], ["--captions", "-"]])
def test_no_captions(fails, monkeypatch, args):
    assert "no captions" in fails(*args)
    monkeypatch.setattr(sys, "stdin", Piped("\n \n"))
    assert "no captions" in fails(*args)


def test_an_empty_file_of_captions(fails, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    assert "no captions" in fails("--captions", str(tmp_path / "empty.txt"))


def test_standard_input_that_is_no_text(fails, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Piped("a red circle\udcff"))
    assert "captions on standard input are no text" in fails("-")


def test_no_standard_input_at_all(fails, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert "no captions" in fails()
    assert "no captions" in fails("-")


def test_files_that_hold_no_captions(fails, tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    assert "picture.png are no UTF-8" in fails("--captions", str(tmp_path / "picture.png"))
    assert "nowhere.txt" in fails("--captions", str(tmp_path / "nowhere.txt"))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--n", "0"], "n is 0, expected at least 1"),
        (["--n", "two"], "argument --n: invalid int value: 'two'"),
        (["--batch_size", "0"], "batch_size is 0, expected at least 1"),
        (["--devices", "0"], "devices is 0, expected at least 1"),
        (
            ["--devices", "2", "--device", "cpu:0"],
            "device is cpu:0, expected cpu or cuda where 2 devices are asked for",
        ),
        (["--devices", "2", "--seed", str(2**63 - 1)], "does not fit 64 bits"),
        (["--devices", "2", "--n", "0"], "n is 0, expected at least 1"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--top_k", "0"], "top_k is 0"),
        (["--top_p", "1.5"], "top_p is 1.5"),
        (["--min_p", "0"], "min_p is 0.0"),
        (["--guidance_schedule", "steep"], "invalid choice: 'steep' (choose from"),
        (
            ["--guidance_schedule", "cosine"],
            "guidance_schedule is cosine, expected a --guidance_scale other than 1",
        ),
        (["--captions", "nowhere.txt"], "no such file of captions: nowhere.txt"),
        (["--guidance_scale", "-2"], "guidance_scale is -2.0"),
        (["--seed", str(2**63)], "does not fit 64 bits"),
        (["--device", "cuda:64"], "device cuda:64 was asked for"),
        (["--device", "toaster"], "device toaster was asked for"),
        (["--device", "meta"], "device meta was asked for, but PyTorch cannot use it here"),
        (["--weights", "int4"], "invalid choice: 'int4' (choose from"),
        (["--temprature", "1"], "unrecognized arguments: --temprature"),
    ],
)
def test_wrong_arguments(fails, args, said):
    assert said in fails("a red circle", *args)


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda", "devices is 3, expected at most 2: so many GPUs are here"),
        ("mps", "device is mps, expected cpu or cuda where 3 devices are asked for"),
    ],
)
def test_more_devices_than_there_are(fails, monkeypatch, device, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(sample_options, "usable_device", torch.device)
    assert said in fails("a red circle", "--device", device, "--devices", "3")


def test_mistakes_are_found_before_processes_are_started(fails, monkeypatch, tmp_path):
    monkeypatch.setattr(sample, "_draw_missing", None)
    assert "no captions" in fails("--devices", "2")
    assert "no such folder: " in fails("a red circle", "--devices", "2", model=tmp_path / "nowhere")


def test_a_folder_that_cannot_be_written(fails, tmp_path):
    (tmp_path / "out").write_text("a file")
    assert "out" in fails("a red circle")


def test_unknown_models(fails, tmp_path):
    assert "no such folder: " in fails("a red circle", model=tmp_path / "nowhere")
    assert "holds no model" in fails("a red circle", model=tmp_path)


def test_an_image_tokenizer_is_no_bundle(fails, shared_bundle):
    assert "bundle.json is missing" in fails("a red circle", model=shared_bundle / "image_tokenizer")


@pytest.mark.parametrize(
    "name",
    [
        "bundle.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "image_tokenizer/config.json",
        "image_tokenizer/model.safetensors",
    ],
)
def test_half_a_bundle(fails, shared_bundle, tmp_path, name):
    model = shutil.copytree(shared_bundle, tmp_path / "model")
    (model / name).unlink()
    assert Path(name).name in fails("a red circle", model=model)


def test_a_tampered_image_tokenizer(fails, shared_bundle, tmp_path, image_tokenizer_of):
    model = shutil.copytree(shared_bundle, tmp_path / "model")
    image_tokenizer_of(seed=1).save_pretrained(model / "image_tokenizer")
    assert "the image tokenizer is" in fails("a red circle", model=model)


def test_as_a_command(shared_bundle, tmp_path):
    """Once as a newcomer does it: another process, captions piped."""
    command = [sys.executable, ROOT / "sample.py", "--model", shared_bundle, "--out", tmp_path / "out", "--n", "2"]
    done = subprocess.run(command, input="a red circle\n", capture_output=True, text=True, check=True)
    assert done.stdout.startswith("2 pictures of 1 caption in ")
    assert done.stderr == ""
