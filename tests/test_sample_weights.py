"""sample.py with narrow weights and compiled steps."""

import torch
from PIL import Image
from torch._dynamo.testing import CompileCounterWithBackend

import transformer.decoding as decoding
from tests.samples import pictures


def test_narrow_weights_draw_other_files(draw):
    """Of nearly the same pictures; each form is drawn once."""
    full = pictures(draw("a red circle", "--n", "2"))
    for weights in ("bfloat16", "int8"):
        out = draw("a red circle", "--n", "2", "--weights", weights)
        (_, name) = sorted(set(pictures(out)) - set(full))
        assert f"_seed1_{weights}_" in name
        with Image.open(out / name) as picture:
            assert picture.text["weights"] == weights
        full = pictures(out)
    assert len(full) == 6


def test_compiled_steps_draw_the_same(draw, monkeypatch):
    """Whole pictures, as the pipeline asks for them; a step that is compiled is counted."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(decoding.decode_step, backend=counter, fullgraph=True, dynamic=False)
    monkeypatch.setattr(decoding, "_compiled_step", compiled)
    plain = pictures(draw("a red circle", "--n", "2", out="plain"))
    assert counter.frame_count == 0
    assert pictures(draw("a red circle", "--n", "2", "--compile", out="compiled")) == plain
    assert counter.frame_count == 1
