"""The benchmarks measure what they say: records, tables, and the pictures that are compared."""

import argparse
import json

import pytest
import torch

from benchmarks import quality, record
from vidattn import TokenLayout, patterns


def test_a_record_says_what_was_measured_and_on_what(tmp_path):
    path = record.save("name", [{"ms": 1.5}], torch.device("cpu"), tmp_path, options={"size": 3})
    content = json.loads(path.read_text())
    assert content["rows"] == [{"ms": 1.5}]
    assert content["options"] == {"size": 3}
    assert content["versions"]["torch"] == torch.__version__
    assert {"command", "date", "commit", "device", "threads"} <= set(content)


def test_tables_are_markdown():
    rows = [{"a": 0.123456, "b": "x"}, {"b": 3}]
    assert record.table(rows, ["a", "b"]).splitlines() == [
        "| a | b |",
        "|---|---|",
        "| 0.1235 | x |",
        "|  | 3 |",
    ]


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
