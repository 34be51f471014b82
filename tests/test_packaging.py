"""The wheel: with the demo model and the app where the checkout has them, without elsewhere, and small."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def build(checkout: Path, to: Path) -> set[str]:
    """Build a wheel without a network; returns the files inside."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(to),
        ".",
    ]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = to.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the build reads, without the demo models."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / "vidattn", copy / "vidattn", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    return copy


def test_the_wheel_with_and_without_the_demo_model(checkout: Path, tmp_path: Path):
    without = build(checkout, tmp_path / "without")
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "vidattn").rglob("*.py")}
    assert sources <= without
    assert "vidattn/py.typed" in without
    assert not any(
        name.startswith(("vidattn/_models", "vidattn/_demo", "demos", "tests")) for name in without
    )

    for name in ("emoji-flux", "emoji-sd"):
        model = checkout / "demos" / "models" / name
        (model / "vae").mkdir(parents=True)
        (model / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
        (model / "vae" / "weights.safetensors").write_bytes(b"x" * 100)
    shutil.copytree(ROOT / "demos" / "gui", checkout / "demos" / "gui")
    for name in ("__init__.py", "app.py"):
        shutil.copy(ROOT / "demos" / name, checkout / "demos")
    with_model = build(checkout, tmp_path / "with")
    app = [ROOT / "demos" / "__init__.py", ROOT / "demos" / "app.py", *(ROOT / "demos" / "gui").glob("*.py")]
    shipped = {
        "vidattn/_models/emoji-flux/model_index.json",
        "vidattn/_models/emoji-flux/vae/weights.safetensors",
        *(f"vidattn/_demo/{path.relative_to(ROOT / 'demos')}" for path in app),
    }
    assert with_model - without == shipped  # one model only: the wheel has to stay small

    shutil.rmtree(checkout / "demos")  # the build folder still holds the copy
    assert build(checkout, tmp_path / "again") == without


def test_the_shipped_model_leaves_the_wheel_small():
    model = ROOT / "demos" / "models" / "emoji-flux"
    assert sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) < 55e6
