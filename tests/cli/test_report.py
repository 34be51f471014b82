"""vidattn report: sizes of models without their weights, and predictions."""

import json
import re

import pytest

from vidattn import TokenLayout, demo_models
from vidattn.cli import full_size


def test_flux_at_2048(vidattn_command):
    status, printed, errors = vidattn_command("report", "flux", "--size", "2048", "--device", "h100")
    assert status == 0, errors
    assert "grid      1x128x128 + 512 text tokens, 57 layers of 24 heads" in printed
    assert "pattern   neighborhood:window=33x33: density 0.1222" in printed
    # what an H100 was measured to take with PyTorch's default, 57 times
    dense = float(re.search(r"attention: dense (\S+) ms", printed).group(1))
    assert 500 < dense < 650
    assert "h100, estimate" in printed


def test_models_with_grids_of_two_sizes(vidattn_command):
    status, printed, _ = vidattn_command("report", "sdxl", "--size", "2048", "--device", "a100")
    assert status == 0
    assert "grid      1x128x128, 10 layers of 10 heads" in printed
    assert "grid      1x64x64, 60 layers of 20 heads" in printed


def test_it_says_where_sparse_does_not_pay(vidattn_command):
    options = ["--size", "480x832", "--frames", "5", "--pattern", "radial", "--device", "cpu"]
    status, printed, _ = vidattn_command("report", "wan-1.3b", *options)
    assert status == 0
    assert "grid      2x30x52, 30 layers" in printed
    assert "these layers stay dense" in printed
    assert re.search(r"attention: dense (\S+ \S+), with the pattern \1\n", printed)


def test_a_folder_is_read_by_its_configs(vidattn_command, tiny_flux, tiny_wan):
    status, printed, errors = vidattn_command("report", tiny_flux, "--size", "64x96", "--device", "cpu")
    assert status == 0, errors
    config = json.loads((tiny_flux / "transformer" / "config.json").read_text())
    layers = config["num_layers"] + config["num_single_layers"]
    assert f"grid      1x4x6 + 512 text tokens, {layers} layers of {config['num_attention_heads']}" in printed
    status, printed, errors = vidattn_command(
        "report", tiny_wan, "--size", "64x96", "--frames", "9", "--device", "cpu"
    )
    assert status == 0, errors
    assert "grid      3x4x6, " in printed


def test_the_demo_model_runs_on_the_grid_that_is_reported():
    """The grid and text are those that the patched pipeline reports after a run."""
    if "emoji-flux" not in demo_models.shipped():
        pytest.skip("the demo model is not in this checkout")
    model = full_size.find("emoji-flux")
    assert model.layout(model.stacks[0], (128, 64), 1) == TokenLayout((1, 16, 8), text_before=32)
    assert (model.stacks[0].layers, model.forwards) == (8, 2)


@pytest.mark.parametrize("name", ["flux", "wan-14b", "hunyuan-video", "qwen-image"])
def test_the_table_agrees_with_the_classes_defaults(name):
    """diffusers' defaults of these classes are the released models'."""
    import inspect

    import diffusers

    cls, facts = next((c, f) for c, f in full_size._CLASSES.items() if f.like == name)
    defaults = {
        k: p.default for k, p in inspect.signature(getattr(diffusers, cls).__init__).parameters.items()
    }
    (stack,) = full_size.MODELS[name].stacks
    assert stack.layers == sum(defaults[key] for key in facts.layers)
    assert (stack.heads, stack.head_dim) == (defaults["num_attention_heads"], defaults["attention_head_dim"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fluxx"], "did you mean 'flux'"),
        (["flux", "--size", "1000"], "must be multiples of 16"),
        (["flux", "--frames", "5"], "flux makes pictures"),
        (["flux", "--device", "h900"], "must be one of"),
        (["flux", "--pattern", "radial"], "for image:"),
        (["flux", "--pattern", "ring"], "unknown pattern 'ring'"),
        (["flux", "--backend", "abacus", "--device", "cpu"], "there is no prediction"),
    ],
)
def test_bad_arguments(vidattn_command, words, message):
    status, _, errors = vidattn_command("report", *words)
    assert status == 2
    assert message in errors
    assert len(errors.splitlines()) == 1
