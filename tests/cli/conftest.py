"""Two complete pipelines with random weights, saved to disk as diffusers does: nothing is downloaded."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vidattn.cli import main

Command = Callable[..., tuple[int, str, str]]


def _saved(name: str, folder: Path) -> Path:
    # Here, because it imports diffusers, which the tests of the other commands don't need.
    from tests.patches import tiny_pipelines

    tiny_pipelines.build(name).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a FluxPipeline; one token of its pictures stands for 16x16 pixels."""
    return _saved("flux", tmp_path_factory.mktemp("models") / "tiny-flux")


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a WanPipeline; one token of its clips stands for 16x16 pixels of 4 frames."""
    return _saved("wan", tmp_path_factory.mktemp("models") / "tiny-wan")


@pytest.fixture
def vidattn_command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process: (exit status, standard output, standard error)."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
