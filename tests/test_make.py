"""The Makefile hands variables over as they were given, and its set-up says what to do when it fails."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # A `make` above this one would hand its own flags and variables down.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "ARG_"))}
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A stand-in for .venv, up to date, whose ``vidattn`` prints its arguments, one a line."""
    command = tmp_path / "env" / "bin" / "vidattn"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    command.chmod(0o755)
    (tmp_path / "env" / ".installed").touch()
    return tmp_path / "env"


def test_image_without_variables(installed: Path):
    done = make("image", f"VENV={installed}")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[:3] == ["generate", "--compare", "dense"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--size"] == "256"
    assert options["--pattern"] == "neighborhood"
    assert "--steps" not in options  # the model's own


@pytest.mark.parametrize(
    "prompt", ["two 3d bicycle", 'a "red" dog\'s #1', "$5 $(HOME) `id` \\n", "--size 3; exit 1"]
)
def test_prompts_arrive_as_they_are(installed: Path, prompt: str):
    done = make(
        "image", f"VENV={installed}", f"PROMPT={prompt}", "SIZE=384x512", "STEPS=4", "OUT=out/a b.png"
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--prompt"] == prompt
    assert {k: options[k] for k in ("--size", "--steps", "--output")} == {
        "--size": "384x512",
        "--steps": "4",
        "--output": "out/a b.png",
    }


def fake_python(folder: Path, body: str) -> Path:
    script = folder / "python"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return script


def test_no_python(tmp_path: Path):
    done = make("image", f"VENV={tmp_path / 'env'}", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "no-such-python not found: install Python 3.10 or newer" in done.stderr


def test_an_old_python(tmp_path: Path):
    old = fake_python(tmp_path, '[ "$1" = --version ] && echo "Python 3.8.2" && exit; exit 1')
    done = make("image", f"VENV={tmp_path / 'env'}", f"PYTHON={old}")
    assert done.returncode != 0
    assert "Python 3.8.2 is too old: Python 3.10 or newer is needed" in done.stderr


def test_a_python_without_venv(tmp_path: Path):
    bare = fake_python(tmp_path, 'case "$2" in *ensurepip*) exit 1;; esac')
    done = make("image", f"VENV={tmp_path / 'env'}", f"PYTHON={bare}")
    assert done.returncode != 0
    assert "apt-get install python3-venv" in done.stderr


def test_no_package_index(tmp_path: Path):
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_NO_INDEX": "1", "PIP_RETRIES": "0"}
    nowhere |= {"PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    done = make("image", f"VENV={tmp_path / 'env'}", **nowhere)
    assert done.returncode != 0
    assert "pip could not fetch a package. Check the network" in done.stderr
    assert not (tmp_path / "env" / ".installed").exists()  # the next run tries again
