"""Several devices, here processes on the CPU, draw what one does."""

import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

import device_processes
import sample
from sample_files import Sample, Samples
from transformer.sampling import SamplingConfig

ROOT = Path(__file__).parent.parent
SETTINGS = ["--n", "3", "--seed", "5", "--guidance_scale", "2", "--guidance_schedule", "linear"]
CAPTIONS = ["a red circle", "a blue star", "no circle", "a small star", "a red star"]


def samples_of(runs: list[int]) -> list[Sample]:
    return [Sample(f"{i}", seed, SamplingConfig(), "0" * 16) for i, run in enumerate(runs) for seed in range(run)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_captions_are_shared_out_whole(world_size):
    samples = samples_of([4, 4, 1, 4, 4])
    shares = [Samples(samples).share(rank, world_size).samples for rank in range(world_size)]
    assert sorted(chain.from_iterable(shares), key=samples.index) == samples
    captions = [{sample.caption for sample in share} for share in shares]
    assert sum(map(len, captions)) == 5, "each on one device only"
    assert {len(of) for of in captions} <= {5 // world_size, -(-5 // world_size)}
    assert all(share == sorted(share, key=samples.index) for share in shares)


def test_two_devices_go_on_where_one_was_stopped(shared_bundle, tmp_path):
    """Captions come by a pipe, which only one process can read; one of them is drawn already, of another a part."""

    def args(out: str, *captions: str) -> list[str]:
        return [*captions, *SETTINGS, "--model", str(shared_bundle), "--out", str(tmp_path / out)]

    sample.sample(args("one", *CAPTIONS))
    sample.sample(args("two", CAPTIONS[3]))
    sample.sample([*args("two", CAPTIONS[0]), "--n", "1"])
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").glob("*_seed*.png")}
    done = subprocess.run(
        [sys.executable, ROOT / "sample.py", *args("two", "-"), "--devices", "2", "--batch_size", "4"],
        input="\n".join(CAPTIONS),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said, summary = done.stdout.splitlines()
    assert said == "4 of 15 are there already"
    assert summary.startswith(f"15 pictures of 5 captions in {tmp_path / 'two'}, all on ")
    assert {path: path.stat().st_mtime_ns for path in first} == first, "what is there is not written again"
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert len(set(files.values())) > 12, "they are to differ, or the test shows nothing"
    assert files.items() <= {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}.items()


def test_nothing_is_started_where_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(device_processes.pl, "Trainer", None)
    device_processes.do_on_devices(Samples([]), lambda *_: None, "cpu", 2, "")
    with pytest.raises(TypeError):
        device_processes.do_on_devices(Samples(samples_of([1])), lambda *_: None, "cpu", 2, "")
