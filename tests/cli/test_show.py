"""``vidattn show``: the file, the numbers it prints, and what it refuses."""

import numpy as np
import pytest
from PIL import Image

from vidattn import TokenLayout
from vidattn.cli.pictures import read_settings
from vidattn.drawing import draw_pattern
from vidattn.patterns import from_text


def test_show_writes_the_drawing_and_prints_its_numbers(vidattn_command, tmp_path):
    out = tmp_path / "p.png"
    words = (
        "show",
        "neighborhood:window=5x5",
        "--grid",
        "12x14",
        "--text",
        8,
        "--query",
        "3,4",
        "--output",
        out,
    )
    status, printed, _ = vidattn_command(*words)
    assert status == 0
    pattern, layout = from_text("neighborhood:window=5x5"), TokenLayout(grid=(1, 12, 14), text_before=8)
    expected = draw_pattern(pattern, layout, (0, 3, 4))
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(expected))
    assert f"density  {pattern.density(layout):.4f} of all pairs" in printed
    assert f"{25 / 168:.4f} within the grid" in printed
    assert read_settings(out)["pattern"] == "neighborhood:window=5x5"


@pytest.mark.parametrize(
    ("pattern", "grid", "shown"),
    [
        ("neighborhood", "64x64", "neighborhood:window=17x17"),  # a preset, resolved for the grid
        ("grat-x", "32x32", "groups:size=1x16x16,region=cross"),
        ("clear:radius=8", "32x32", "disc:radius=8"),
        ("radial", "4x8x8", "radial"),
        ("disc:radius=4", "16x16", "disc:radius=4"),
    ],
)
def test_presets_and_text_forms(vidattn_command, tmp_path, pattern, grid, shown):
    status, printed, errors = vidattn_command("show", pattern, "--grid", grid, "--output", tmp_path / "p.png")
    assert status == 0, errors
    assert f"pattern  {shown}\n" in printed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("neighbourhod", "--grid", "8x8"), ("PATTERN", "did you mean 'neighborhood'")),
        (("disc", "--grid", "8x8"), ("PATTERN", "needs radius", "disc:radius=16")),
        (("disc:radius=x", "--grid", "8x8"), ("PATTERN", "radius='x'")),
        (("radial", "--grid", "8x8"), ("PATTERN", "video")),
        (("full", "--grid", "8by8"), ("--grid", "'8by8'", "64x64")),
        (("full", "--grid", "0x8"), ("--grid", "'0x8'")),
        (("full", "--grid", "2000x2000"), ("--grid", "4,000,000 tokens", "at most")),
        (("full", "--grid", "8x8", "--query", "8,0"), ("--query", "8,0", "1x8x8")),
        (("full", "--grid", "8x8", "--query", "a"), ("--query", "'a'")),
        (("full", "--grid", "8x8", "--text", "-3"), ("--text", "'-3'")),
        (("full", "--grid", "8x8", "--output", "p.jpg"), ("--output", "'p.jpg'", ".png")),
        (("full",), ("--grid",)),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_arguments(vidattn_command, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    status, printed, errors = vidattn_command("show", *words)
    assert (status, printed, len(errors.splitlines())) == (2, "", 1)
    for part in ("vidattn show: error: ", *expected):
        assert part in errors
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_folder(vidattn_command, tmp_path):
    (tmp_path / "p.png").mkdir()
    status, _, errors = vidattn_command("show", "full", "--grid", "8x8", "--output", tmp_path / "p.png")
    assert status == 2
    assert "is a folder" in errors
