"""What the benchmarks of quality compare and draw."""

import argparse

import pytest
import torch
from PIL import Image

from benchmarks import quality, quality_plot
from vidattn import TokenLayout, patterns


def test_the_plot_of_quality_has_a_line_for_each_kind(tmp_path):
    rows = [
        {"pattern": text, "density": i / 10, "PSNR": 20.0 + i} for i, text in enumerate(quality.PATTERNS[32])
    ]
    lines = quality_plot.lines(rows)
    assert set(lines) == {
        "neighborhood", "neighborhood strided", "neighborhood dilation=2", "sliding", "disc", "groups",
        "groups region=cross",
    }  # fmt: skip
    assert all(len(points) == 3 and points == sorted(points) for points in lines.values())
    pytest.importorskip("matplotlib")
    anchors = [{"pattern": "dense, another seed", "PSNR": 12.0}, {"pattern": "dense, float32", "PSNR": 90.0}]
    path = quality_plot.draw(rows + anchors, tmp_path / "plot.png")
    with Image.open(path) as image:
        assert image.size[0] > 500


@pytest.mark.parametrize("side", sorted(quality.PATTERNS))
def test_each_kind_of_pattern_comes_at_three_growing_densities(side):
    layout = TokenLayout((1, side, side))
    densities = [patterns.from_text(text).density(layout) for text in quality.PATTERNS[side]]
    for first, second, third in zip(densities[::3], densities[1::3], densities[2::3], strict=True):
        assert 0.05 < first < second < third < 0.6


def test_pictures_repeat_by_seed_in_the_asked_precision():
    options = {
        "model": "emoji-flux",
        "size": 64,
        "steps": 1,
        "batch": 2,
        "device": "cpu",
        "dtype": "bfloat16",
    }
    prompts, held_out = quality.read_prompts(argparse.Namespace(prompts=3))
    assert (len(prompts), held_out) == (3, 1)
    pictures = quality.Pictures(argparse.Namespace(**options), prompts)
    assert pictures.pipe.transformer.dtype == torch.bfloat16
    first, again, other = pictures.make(), pictures.make(), pictures.make(seed=1)
    assert first.shape == (3, 3, 64, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    row = quality.compare("name", other, first, held_out)
    assert 0 < row["PSNR"] < 40
    assert row["PSNR held out"] != row["PSNR"]
