"""evaluate.py prior on a tiny bundle: 16 pixels, 4x4 codes of 16, 24 text positions."""

import json
import math
from collections.abc import Sequence

import pytest
import torch
from PIL import Image

import train
from data.shapes import ShapesConfig, ShapesSource
from encoding import EncodeConfig, encode_source
from evaluate import evaluate
from evaluation import prior as evaluation_prior
from pipeline import TextToImage, fingerprint
from tests import made_codes
from tests.runs import MARKS, arguments
from transformer.model import Prior
from vqvae.folders import load_image_tokenizer

pytestmark = MARKS

DRAWN = {"count": 40, "size": 16, "max_objects": 1}
DRAWINGS = [f"--drawings.{name}={value}" for name, value in DRAWN.items()]


def report_of(*args, **settings) -> dict:
    return evaluate(["prior", *args, *(f"--{name}={value}" for name, value in settings.items())])


def nats_of(report: dict, of: str = "image") -> float:
    return report[of]["nats_per_token"]["value"]


@pytest.fixture(scope="module")
def codes(shared_bundle, tmp_path_factory):
    """Of the drawings above, by the bundle's tokenizer."""
    folder = tmp_path_factory.mktemp("encoded") / "codes"
    image_tokenizer = load_image_tokenizer(shared_bundle / "image_tokenizer")
    encode_source(ShapesSource(ShapesConfig(**DRAWN)), image_tokenizer, folder, EncodeConfig(batch_size=7))
    return folder


@pytest.fixture
def captioned(shared_bundle, tmp_path):
    """Writes a folder of codes by the bundle's tokenizer, with captions and settings of one's own."""

    def write(caption: str = "a tabby cat", others: Sequence[str] = (), **settings):
        own = fingerprint(load_image_tokenizer(shared_bundle / "image_tokenizer"))
        settings = {"fingerprint": own, "codebook_size": 16, "grid_size": (4, 4)} | settings
        folder = tmp_path / f"captioned-{len(list(tmp_path.iterdir()))}"
        codes = made_codes.codes_of(9, settings["grid_size"], 16)
        captions = [[f"{caption} {i}", *others] for i in range(9)]
        made_codes.write(folder, codes, captions, splits=["val"] * 9, **settings)
        return folder

    return write


def test_all_figures(shared_bundle, clip_folder, tmp_path, capsys):
    out = tmp_path / "out"
    args = [
        "--split=val",
        "--val_fraction=0.3",
        "--samples=3",
        "--n=2",
        "--guidance_scale",
        "1",
        "2.5",
        f"--clip={clip_folder}",
    ]
    report = report_of(*DRAWINGS, *args, model=shared_bundle, out=out, batch_size=4)
    assert report == json.loads((out / "report.json").read_text())
    assert {path.name for path in out.iterdir()} == {"report.json", "positions.png"}
    assert Image.open(out / "positions.png").width > 384
    assert report["fingerprint"] == TextToImage.from_pretrained(shared_bundle).fingerprint
    assert 2 <= report["pictures"] < 40
    for of in ("image", "null", "text"):
        interval = report[of]["nats_per_token"]
        assert 0 < interval["low"] < interval["value"] < interval["high"]
        assert report[of]["bits_per_token"]["value"] == pytest.approx(interval["value"] / math.log(2))
    assert report["image"]["bits_per_pixel"]["value"] == pytest.approx(nats_of(report) / math.log(2) * 16 / 256)
    told = report["gain"]["nats_per_token"]["value"]
    assert told == pytest.approx(nats_of(report, "null") - nats_of(report))
    places = [value for row in report["positions"] for value in row]
    assert sum(places) / 16 == pytest.approx(nats_of(report), abs=1e-4)
    assert report["forward"]["batch_size"] == 4
    assert [layer["mask"] for layer in report["forward"]["layers"]] == ["row", "column", "conv"]
    assert report["sampling"]["ms_per_token"] > 0
    assert (report["samples"]["captions"], report["samples"]["n"]) == (3, 2)
    assert [set(row) for row in report["samples"]["sampled"]] == [{"guidance_scale", "all", "best"}] * 2
    assert all(set(row["best"]) == {"prior", "clip"} for row in report["samples"]["sampled"])
    said = capsys.readouterr().out
    assert f"{report['pictures']} pictures of 16 pixels in 4x4 codes of 16 (split val), float32" in said
    assert " guided; not compiled\n" in said
    for label in (
        "image",
        "no caption",
        "caption tells",
        "text",
        "forward",
        "sampling",
        "guidance 2.5",
        "    best of 2 by clip",
    ):
        assert f"\n{label} " in said


def test_codes_count_as_their_pictures_do_in_any_batches(shared_bundle, codes, tmp_path):
    reports = [
        report_of(*DRAWINGS, model=shared_bundle, out=tmp_path / "a", samples=0, batch_size=16),
        report_of(model=shared_bundle, codes=codes, out=tmp_path / "b", samples=0, batch_size=3),
    ]
    for of in ("image", "null", "text"):
        assert nats_of(reports[0], of) == pytest.approx(nats_of(reports[1], of), rel=1e-5)
    assert [report["data"] for report in reports] == ["drawings", str(codes)]
    assert "samples" not in reports[0]
    assert reports[0]["pictures"] == 40


def test_a_prior_that_knows_nothing(shared_bundle, codes, tmp_path):
    """Bits a token are then those of its choices, to the last place that float32 has."""
    pipeline = TextToImage.from_pretrained(shared_bundle)
    with torch.no_grad():
        pipeline.prior.image_head.weight.zero_()
    pipeline.save_pretrained(tmp_path / "model")
    report = report_of(model=tmp_path / "model", codes=codes, out=tmp_path / "out", samples=0)
    assert nats_of(report) == nats_of(report, "null") == pytest.approx(math.log(16), rel=1e-6)
    assert report["image"]["bits_per_pixel"]["value"] == pytest.approx(4 * 16 / 256, rel=1e-6)
    assert report["positions"] == [[round(math.log(16), 4)] * 4] * 4


@pytest.mark.parametrize(("largest", "broken"), [(3e38, 40), (1e5, 0)])
def test_a_prior_whose_nats_are_beyond_all_bounds_is_reported_on(shared_bundle, tmp_path, capsys, largest, broken):
    """Weights that are finite, and logits of which the largest have no number."""
    pipeline = TextToImage.from_pretrained(shared_bundle)
    with torch.no_grad():
        weight = pipeline.prior.image_head.weight
        weight.div_(weight.abs().max()).mul_(largest)
    pipeline.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    report = report_of(*DRAWINGS, "--samples=2", "--n=2", "--seed=-1", model=tmp_path / "model", out=out)
    written = json.loads((out / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert (out / "positions.png").is_file()
    assert report["not_finite"] == written["not_finite"] == broken
    assert not math.isfinite(report["image"]["perplexity"]) and written["image"]["perplexity"] is None
    assert written["text"]["perplexity"] > 1 and written["samples"]["seed"] == -1
    assert ("40 pictures have nats that are not finite" in capsys.readouterr().out) == bool(broken)


def test_drawings_captions_are_sampled_from_unless_told_otherwise(shared_bundle, codes, captioned, tmp_path, capsys):
    """Codes of drawings too: it is the captions that decide. Of others none are, and that is said."""
    common = {"model": shared_bundle, "out": tmp_path / "out", "top_k": 3}
    report = report_of(codes=codes, count=5, **common)
    assert report["samples"]["captions"] == 5
    assert report["samples"]["settings"]["top_k"] == 3
    assert [row["guidance_scale"] for row in report["samples"]["sampled"]] == [1, 3]
    assert "best" not in report["samples"]["sampled"][0]
    folder = captioned()
    assert "samples" not in report_of(codes=folder, **common)
    assert "no samples were judged" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"expected --samples 0\): no item in caption 'a tabby cat 0'"):
        report_of(codes=folder, samples=4, **common)


def test_bfloat16_costs_little(shared_bundle, codes, tmp_path):
    exact, rounded = (
        report_of(model=shared_bundle, codes=codes, out=tmp_path / "out", count=8, samples=2, weights=weights)
        for weights in ("float32", "bfloat16")
    )
    assert nats_of(rounded) != nats_of(exact)
    assert nats_of(rounded) == pytest.approx(nats_of(exact), rel=0.02)
    assert rounded["fingerprint"] == exact["fingerprint"]
    assert rounded["weights"] == "bfloat16"


def test_a_picture_counts_with_its_first_caption(shared_bundle, captioned, tmp_path):
    folders = [captioned(), captioned(others=["a dog"] * 20)]
    one, many = (report_of(model=shared_bundle, codes=folder, out=tmp_path / "out") for folder in folders)
    assert nats_of(one) == nats_of(many)
    assert one["text"] == many["text"]


def test_captions_that_are_too_long_are_counted(shared_bundle, captioned, tmp_path, capsys):
    folder = captioned("a rather long caption of which twenty-four positions cannot hold all")
    report = report_of(model=shared_bundle, codes=folder, out=tmp_path / "out")
    assert report["captions_cut"] == 9
    assert report["text"]["tokens_per_caption"] == 23
    assert "9 captions have more than 23 tokens" in capsys.readouterr().out


def test_nats_are_those_of_validation(prior_run, extra, tmp_path):
    args = arguments("prior", prior_run, *extra["prior"], "--trainer.precision=32-true")
    expected = train.train("prior", ["validate", *args])
    drawings = ["--drawings.count=64", "--drawings.size=32", "--split=val", "--val_fraction=0.2", "--samples=0"]
    report = report_of(*drawings, model=prior_run, out=tmp_path / "out", batch_size=5)
    assert nats_of(report) == pytest.approx(expected["val/loss_image"], rel=1e-5)


def test_a_folder_of_pictures(shared_bundle, tmp_path):
    source = ShapesSource(ShapesConfig(**DRAWN))
    (tmp_path / "pictures").mkdir()
    for index in range(6):
        source.image(index).save(tmp_path / "pictures" / f"{index}.png")
        (tmp_path / "pictures" / f"{index}.txt").write_text(source.captions(index)[0])
    folder = report_of(model=shared_bundle, data=tmp_path / "pictures", out=tmp_path / "a", samples=2)
    drawn = report_of(*DRAWINGS, "--drawings.count=6", model=shared_bundle, out=tmp_path / "b", samples=0)
    assert nats_of(folder) == pytest.approx(nats_of(drawn), rel=1e-5)
    assert nats_of(folder, "text") == pytest.approx(nats_of(drawn, "text"), rel=1e-5)
    assert folder["samples"]["captions"] == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "exactly one of data, drawings, codes; got none"),
        ([*DRAWINGS, "--codes={codes}"], "exactly one of data, drawings, codes; got drawings and codes"),
        (["--codes={codes}", "--split=test"], r"0 pictures of split test \(\d+ of train, \d+ of val, 0 of test\)"),
        (["--codes={codes}", "--split=dev"], "split is 'dev', expected train, val or test"),
        (["--codes={codes}", "--samples=1"], "samples is 1, expected 0 or at least 2"),
        (["--codes={codes}", "--n=0"], "n is 0"),
        (["--codes={codes}", "--batch_size=0"], "batch_size 0"),
        (["--codes={codes}", "--guidance_scale=-1"], "guidance_scale is -1.0"),
        (["--codes={codes}", "--top_p=2"], "top_p is 2.0"),
        (["--codes={codes}", "--min_p=2"], "min_p is 2.0"),
        (["--codes={codes}", "--guidance_schedule=steep"], "guidance_schedule"),
        (["--codes={codes}", "--weights=float16"], "weights"),
        (["--codes={codes}", "--device=cuda:99"], "cuda:99"),
        (["--codes=nowhere"], "nowhere is no folder"),
        (["--data=nowhere"], "nowhere"),
        (["--codes={codes}", "--model=nowhere"], "no such folder: nowhere"),
        (["--codes={codes}", "--model={bundle}/image_tokenizer"], "image_tokenizer is no bundle: bundle.json is miss"),
    ],
)
def test_mistakes_leave_nothing(shared_bundle, codes, tmp_path, args, said):
    args = [arg.format(codes=codes, bundle=shared_bundle) for arg in args]
    with pytest.raises(ValueError, match=said):
        evaluate(["prior", f"--model={shared_bundle}", f"--out={tmp_path / 'out'}", *args])
    assert not (tmp_path / "out").exists()


def test_codes_that_do_not_fit(shared_bundle, captioned, tmp_path):
    common = {"model": shared_bundle, "out": tmp_path / "out"}
    own = fingerprint(load_image_tokenizer(shared_bundle / "image_tokenizer"))
    with pytest.raises(ValueError, match=f"are of tokenizer 0123, the prior's is {own}"):
        report_of(codes=captioned(fingerprint="0123"), **common)
    with pytest.raises(ValueError, match=r"are on a grid \(2, 8\), the prior's is \(4, 4\)"):
        report_of(codes=captioned(grid_size=(2, 8)), **common)
    assert not (tmp_path / "out").exists()


def test_drawings_that_are_too_small_and_a_file_in_the_way(image_tokenizer_of, pipeline, tmp_path):
    image_tokenizer = image_tokenizer_of(image_size=24)
    config = {**vars(pipeline.prior.config), "grid_size": image_tokenizer.grid_size}
    prior = Prior(type(pipeline.prior.config)(**config))
    TextToImage(prior, pipeline.text_tokenizer, image_tokenizer).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"drawings\.size=16, expected at least image_size=24"):
        report_of(*DRAWINGS, model=tmp_path / "model", out=tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file is a file, expected a folder"):
        report_of(*DRAWINGS, model=tmp_path / "model", out=tmp_path / "file")


def test_a_picture_of_two_tokens_is_measured_without_the_time_of_one(
    monkeypatch, shared_bundle, codes, tmp_path, capsys
):
    monkeypatch.setattr(evaluation_prior, "LEAST_TIMED", 17)
    report = report_of(model=shared_bundle, codes=codes, out=tmp_path / "out", count=2, samples=0)
    assert "sampling" not in report
    assert "ms a token" not in capsys.readouterr().out
