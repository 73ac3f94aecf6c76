"""Launch parameters: the file they are kept in, and the choice among candidates, with a clock made up."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from unittest import mock

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux")

from triton.runtime.errors import OutOfResources

from kernels import flash_launch, launch, tune
from kernels.launch import CACHE_VARIABLE, Launch, store_tuned, trying, tuned_launch, tuned_path, tuning_key
from kernels.patterns import Pattern

ROOT = Path(__file__).parents[2]
GPU = torch.device("cuda", 0)
ARGS = Namespace(
    kernels=list(tune.KERNELS), kinds=["row"], dtypes=["float32"], head_dims=[16], text_len=5, grid=3, batch=1, heads=1
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    launch._tuned.cache_clear()
    with mock.patch.object(torch.cuda, "get_device_name", return_value="a GPU"):
        yield
    launch._tuned.cache_clear()


def found() -> Launch | None:
    return tuned_launch(GPU, "forward", torch.bfloat16, 64, "row")


def test_what_was_tuned_is_found_and_kept_beside_the_rest():
    assert found() is None
    store_tuned({tuning_key("a GPU", "forward", torch.bfloat16, 64, "row"): Launch(64, 32, 4, 2, 128)})
    assert found() == Launch(64, 32, 4, 2, 128)
    path = store_tuned({tuning_key("another GPU", "forward", torch.bfloat16, 64, "row"): Launch(16, 16, 4, 1)})
    assert path == tuned_path()
    assert found() == Launch(64, 32, 4, 2, 128)
    assert not list(path.parent.glob("*.tmp"))
    assert tuned_launch(GPU, "forward", torch.float16, 64, "row") is None
    assert tuned_launch(torch.device("cpu"), "forward", torch.bfloat16, 64, "row") is None


STORING = """
import sys
from kernels.launch import Launch, store_tuned
print("ready", flush=True)
sys.stdin.readline()
for i in range(100):
    store_tuned({f"{sys.argv[1]} {i}": Launch(64, 32, 4, 2)})
"""


def test_nothing_is_lost_where_two_processes_tune_at_once():
    def storing(name: str) -> subprocess.Popen:
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", STORING, name], cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    with storing("one") as one, storing("other") as other:
        # They begin together: to import torch takes longer than to store, and one could be done before the other.
        assert [process.stdout.readline() for process in (one, other)] == ["ready\n"] * 2
        for process in (one, other):
            process.stdin.close()
    assert one.returncode == other.returncode == 0
    assert len(json.loads(tuned_path().read_text())) == 200


def fields(**changed: object) -> str:
    return json.dumps({"a": Launch(64, 32, 4, 2)._asdict() | changed})


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", '{"a": 3}', '{"a": {"block": 3}}', '{"a": {"block_m": 64}}', '{"a": {"block_m": Infinity}}'),
        *(fields(block_m=-64), fields(block_n=48), fields(num_warps=0), fields(num_stages=0), fields(max_registers=-1)),
        *(fields(block_m="64"), fields(block_n=64.0), fields(num_warps=True)),
    ],
)
def test_a_damaged_file_is_named_and_left_alone(content):
    tuned_path().parent.mkdir()
    tuned_path().write_text(content)
    with pytest.raises(ValueError, match=r"launch-parameters.json holds no launch parameters .*; delete it"):
        found()
    with pytest.raises(ValueError, match=r"launch-parameters.json holds no launch parameters"):
        store_tuned({tuning_key("a GPU", "forward", torch.bfloat16, 64, "row"): Launch(64, 32, 4, 2)})
    assert tuned_path().read_text() == content


def test_a_launch_on_trial_comes_before_the_table():
    q = torch.zeros(1, 1, 14, 16)
    table = flash_launch.launch_parameters("forward", q, Pattern("row", 5, 3, 3))
    with trying("forward", Launch(32, 16, 4, 1)):
        assert flash_launch.launch_parameters("forward", q, Pattern("row", 5, 3, 3)) == Launch(32, 16, 4, 1)
        assert flash_launch.launch_parameters("query_gradient", q, Pattern("row", 5, 3, 3)) != Launch(32, 16, 4, 1)
    assert flash_launch.launch_parameters("forward", q, Pattern("row", 5, 3, 3)) == table


def test_the_quickest_candidate_that_fits_wins():
    (case,) = (case for case in tune.cases(ARGS, torch.device("cpu")) if case.kernel == "forward")
    assert case.key == "cpu / forward / float32 / 16 / row"
    tried = []

    def milliseconds(run) -> float:
        tried.append(flash_launch.launch_parameters("forward", torch.zeros(1, 1, 14, 16), Pattern("row", 5, 3, 3)))
        if tried[-1].block_n == 128:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return 1.0 if tried[-1] == Launch(64, 32, 4, 3) else 2.0

    best, times = tune.best_launch(case, milliseconds)
    assert best == Launch(64, 32, 4, 3)
    assert tried[0] == case.present
    assert len(set(tried)) == len(tried) > len(times) > 10


def test_of_equals_the_present_one_stays():
    case = next(iter(tune.cases(ARGS, torch.device("cpu"))))
    assert tune.best_launch(case, lambda run: 1.0)[0] == case.present


@pytest.mark.parametrize("kernel", tune.KERNELS)
def test_every_case_runs_what_it_tunes(kernel, monkeypatch):
    args = Namespace(**vars(ARGS) | {"kernels": [kernel]})
    used = []

    class Noticed(dict):
        def __getitem__(self, name):
            used.append(name)
            return super().__getitem__(name)

    monkeypatch.setattr(tune, "NEAREST", (20, 20))
    (case,) = tune.cases(args, torch.device("cpu"))
    with mock.patch.object(launch, "_on_trial", Noticed()), trying(kernel, Launch(16, 16, 4, 1)):
        case.run()
    assert set(used) == {kernel}


def test_tuned_parameters_are_readable():
    path = store_tuned({"key": Launch(64, 32, 4, 2)})
    assert json.loads(path.read_text()) == {
        "key": {"block_m": 64, "block_n": 32, "num_warps": 4, "num_stages": 2, "max_registers": 0}
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is there to be measured")
def test_without_a_device_there_is_nothing_to_measure(capsys):
    with pytest.raises(SystemExit):
        tune.main([])
    assert "no CUDA device to measure on" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tuning_on_a_gpu(capsys):
    tune.main(["--kernels", "decode_one", "--kinds", "row", "--batch", "1"])
    assert "kept in" in capsys.readouterr().out
    assert tuned_path().exists()
