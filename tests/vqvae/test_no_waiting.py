"""A tokenizer's training step reads no number back from the device, which would have the host wait for it.

But for `vq`, which asks whether its codes have begun, and how many restart.
"""

import pytest

from tests.no_reading import Watch
from tests.vqvae.test_left_out import JUDGED, QUANTIZERS, fit, system_of
from vqvae.adversarial import AdversarialConfig


def check(folder, *args, **settings) -> None:
    watch = Watch()
    fit(system_of(*args, **settings), folder, bad=None, more=[watch], max_steps=4)
    assert watch.steps == 3


@pytest.mark.parametrize("quantizer", [name for name in QUANTIZERS if not name.startswith("vq")])
def test_a_step(quantizer, tmp_path):
    check(tmp_path, *QUANTIZERS[quantizer])


def test_a_step_by_muon(tmp_path):
    check(tmp_path, "fsq", {}, muon_lr=6e-3)


def test_a_step_with_a_discriminator(tmp_path):
    check(tmp_path, "fsq", {}, adversarial=AdversarialConfig(**JUDGED))


def test_it_is_found(tmp_path):
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        check(tmp_path, *QUANTIZERS["vq"])
