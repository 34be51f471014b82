"""Inference in tiles gives what the whole map gives, in less memory."""

import pytest
import torch
from torch import nn

from tests.backbones.checks import close, randomized
from vidattn.backbones import create_model, run_tiled
from vidattn.backbones.layers.conv import BatchNorm2d, Conv2d, Pointwise

KINDS = {
    "strided": lambda: nn.Sequential(Conv2d(2, 3, 3, 2, 1), nn.GELU(), Conv2d(3, 4, 3, 2, 1, bias=False)),
    "dilated": lambda: nn.Sequential(
        Conv2d(2, 4, 3, 1, 2, dilation=2, groups=2), nn.ReLU(), Conv2d(4, 3, 5, 3, 0)
    ),
    "norms": lambda: nn.Sequential(
        nn.Sequential(Conv2d(2, 4, (1, 7), (1, 2), (0, 3)), BatchNorm2d(4)),
        nn.LayerNorm(4),
        Pointwise(4, 3),
        nn.SiLU(),
    ),
    "wide": lambda: nn.Sequential(Conv2d(2, 2, 9, 1, 4), Conv2d(2, 2, 9, 1, 4)),
}


@pytest.mark.parametrize("tiles", [(1, 1), (2, 3), (5, 2)])
@pytest.mark.parametrize("size", [(18, 24), (17, 23)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_are_exact(kind, size, tiles):
    layers = randomized(KINDS[kind]()).eval()
    x = torch.randn(2, *size, 2, dtype=torch.float64)
    expected = layers(x).detach()
    close(run_tiled(layers, x, tuple(map(min, tiles, expected.shape[1:3]))), expected, kind)


def peak(call):
    """Most bytes that were allocated at one time, beyond those at the start."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most, result


def test_a_stem_needs_less_memory():
    stem = create_model("segman_t", num_classes=2, depths=(1, 1, 1, 1)).patch_embed
    image = torch.randn(1, 512, 512, 3)
    with torch.no_grad():
        whole, expected = peak(lambda: stem(image))
    tiled, found = peak(lambda: run_tiled(stem, image, (8, 8)))
    assert torch.allclose(found, expected, atol=1e-5)
    output = expected.numel() * 4
    # both hold the output; what comes on top is that of a 64th of the map, its overlap and copies
    assert tiled < whole / 3
    assert tiled - output < (whole - output) / 8


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (nn.Sequential(nn.Conv2d(2, 2, 3)), TypeError, "layers has a Conv2d"),
        (nn.Sequential(nn.GroupNorm(1, 2)), TypeError, "GroupNorm"),
        (nn.Sequential(BatchNorm2d(2)), ValueError, "training mode"),
        (nn.Sequential(Conv2d(2, 2, 3, padding=1, padding_mode="reflect")), ValueError, "'reflect'"),
        (nn.Sequential(nn.LayerNorm((4, 2))), ValueError, "channels only"),
        (nn.Sequential(Conv2d(2, 2, 3)), ValueError, r"tiles=\(3, 1\)"),
    ],
)
def test_bad_arguments(layers, error, message):
    with pytest.raises(error, match=message):
        run_tiled(layers, torch.randn(1, 4, 4, 2), (3, 1))
