"""vidattn profile: counts and shares of a tiny pipeline."""

import json
import re

import pytest


def rows(printed: str) -> dict[str, tuple[int, float, float]]:
    """name: (calls, ms, share) of the table's lines."""
    found = re.findall(r"^ *(\S.*?) +(\d+) +([\d.]+) +([\d.]+)%$", printed, re.MULTILINE)
    return {name: (int(calls), float(ms), float(share)) for name, calls, ms, share in found}


def test_attention_is_found_in_a_patched_pipeline(vidattn_command, tiny_flux, tmp_path):
    config = json.loads((tiny_flux / "transformer" / "config.json").read_text())
    layers = config["num_layers"] + config["num_single_layers"]
    trace = tmp_path / "trace.json"
    options = ["--model", tiny_flux, "--size", 64, "--steps", 3, "--pattern", "neighborhood:window=3"]
    status, printed, errors = vidattn_command("profile", *options, "--min-tokens", 0, "--trace", trace)
    assert status == 0, errors
    found = rows(printed)
    assert found["transformer"][0] == 3
    assert found["FluxAttention"][0] == found["attention itself, vidattn::attention"][0] == 3 * layers
    assert found["FeedForward"][0] > 0
    assert found["vae decoder"][0] == 1
    whole = found["whole call"]
    assert whole[2] == 100
    inside = ("attention itself, vidattn::attention", "FluxAttention", "transformer", "whole call")
    times = [found[name][1] for name in inside]
    assert 0 < times[0] < times[1] < times[2] < times[3]
    assert found["FluxAttention"][2] == pytest.approx(100 * times[1] / whole[1], abs=0.2)
    assert "neighborhood:window=3" in printed.partition("model ")[2]
    assert json.loads(trace.read_text())["traceEvents"]


def test_a_pipeline_as_it_is(vidattn_command, tiny_wan):
    options = ["--model", tiny_wan, "--size", 64, "--frames", 5, "--steps", 1, "--pattern", "none"]
    status, printed, errors = vidattn_command("profile", *options)
    assert status == 0, errors
    found = rows(printed)
    assert "attention itself, vidattn::attention" not in found
    assert found["WanAttention"][0] > 0
    assert found["attention itself, aten::scaled_dot_product_attention"][0] >= found["WanAttention"][0]


def test_bad_arguments(vidattn_command, tiny_flux):
    status, _, errors = vidattn_command("profile", "--model", tiny_flux, "--trace", "trace.txt")
    assert status == 2
    assert "must end in .json" in errors
    assert vidattn_command("profile", "--model", tiny_flux, "--size", "63")[0] == 2
