"""Packages of others, made up."""

import sys

import pytest

from benchmarks.peers import import_peer


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`made_up_peer`, which imports what is absent, what is broken, and what is there."""
    (tmp_path / "made_up_peer.py").write_text(
        "import made_up_absent, made_up_broken\nfrom made_up_absent.part import Thing\nimport made_up_there\n"
    )
    (tmp_path / "made_up_broken.py").write_text("raise OSError('imported after all')\n")
    (tmp_path / "made_up_there.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "made_up_peer"
    for name in [name for name in sys.modules if name.startswith("made_up_")]:
        del sys.modules[name]


UNUSED = ("made_up_absent", "made_up_absent.part", "made_up_broken")


def test_what_is_unused_is_stood_in_for_and_gone_afterwards(package):
    peer = import_peer(package, UNUSED)
    assert peer.made_up_there.answer == 42
    assert {"made_up_peer", "made_up_there"} <= sys.modules.keys()
    assert not set(UNUSED) & sys.modules.keys()
    assert import_peer(package, UNUSED) is peer


def test_what_is_loaded_already_stays(package, monkeypatch):
    import made_up_there

    import_peer(package, (*UNUSED, "made_up_there"))
    assert sys.modules["made_up_there"] is made_up_there


def test_what_is_used_and_absent_is_an_error(package):
    with pytest.raises(ImportError, match="made_up_absent"):
        import_peer(package)
    with pytest.raises(OSError, match="imported after all"):
        import_peer(package, UNUSED[:2])
    assert not set(UNUSED[:2]) & sys.modules.keys()
