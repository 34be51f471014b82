"""``vidattn demo``: what it refuses before anything is served. tests/demos drives the app itself."""

import sys
from pathlib import Path

import pytest

from vidattn.cli import demo


def test_the_command_refuses_what_cannot_be(vidattn_command, tmp_path: Path):
    for words, said in (
        (("--models", tmp_path / "nowhere"), "there is no such folder"),
        (("--port", 70000), "at most 65535"),
    ):
        status, _, errors = vidattn_command("demo", *words)
        assert status == 2
        assert said in errors


def test_without_gradio_it_says_what_to_install(vidattn_command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(demo.tempfile, "tempdir", None)
    status, _, errors = vidattn_command("demo")
    assert status == 1
    assert "pip install 'vidattn[demo]'" in errors
