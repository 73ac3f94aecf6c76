import zipfile

import pytest

from vqvae.foreign.weights import read_weights


def test_modules_that_hold_each_other_without_end(tmp_path):
    """Each holds the next under two names, fifty times: 2^50 names for nothing."""
    begun = b"ctorch.nn.modules.container\nSequential\n)\x81"
    program = b"\x80\x02" + begun + b"}b\x94"
    for i in range(49):
        part = b"h" + bytes([i])
        program += begun + b"}V_modules\n}(Va\n" + part + b"Vb\n" + part + b"usb\x94"
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program + b".")
    with pytest.raises(ValueError, match=r"file\.pt: its modules have more than 1,000,000 attributes"):
        read_weights(path)
