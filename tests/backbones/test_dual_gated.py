"""HER-Seg's dual-gated linear attention."""

import itertools

import pytest
import torch

from tests.backbones.checks import check_mixer
from vidattn.backbones.mixers import DualGatedLinearAttention


def turned(x, places):
    """Every pair of channels as a complex number times exp(i angle)."""
    pairs = x.shape[-1] // (2 * len(places[0]))
    angles = torch.tensor(
        [[n * 10000.0 ** (-t / pairs) for n in place for t in range(pairs)] for place in places],
        dtype=torch.float64,
    )
    out = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.view_as_real(out).flatten(-2)


def dual_gated(heads, rope=True):
    """All N x N scores."""

    def call(p, x, prefix=None):
        grid, before = x.shape[1:-1], 0 if prefix is None else prefix.shape[1]
        places = [(0,) * len(grid)] * before + list(itertools.product(*map(range, grid)))
        tokens = x.flatten(1, -2) if prefix is None else torch.cat([prefix, x.flatten(1, -2)], 1)

        def layer(name, t):
            return t @ p[f"{name}.weight"].T + p[f"{name}.bias"]

        q, k = (torch.where(t > 0, t + 1, t.exp()) for t in layer("qk", tokens).chunk(2, -1))
        low = layer("up_proj", tokens)
        v = layer("down_proj", low * torch.sigmoid(low))
        r, s = (turned(t, places) if rope else t for t in (q, k))
        q, k, r, s, w = (t.unflatten(-1, (heads, -1)) for t in (q, k, r, s, v))
        total = torch.einsum("bihd,bjhd->bhij", q, k).mean(-1, keepdim=True) + 1e-6
        weights = torch.einsum("bihd,bjhd->bhij", r, s) / tokens.shape[1] / total
        y = torch.einsum("bhij,bjhd->bihd", weights, w).flatten(-2)
        image = v[:, before:].unflatten(1, grid).movedim(-1, 1)
        conv = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}[len(grid)]
        local = conv(image, p["lepe.weight"], p["lepe.bias"], padding=1, groups=x.shape[-1]).movedim(1, -1)
        y = torch.cat([y[:, :before], y[:, before:] + local.flatten(1, -2)], 1)
        gate = layer("act_proj", tokens)
        out = layer("out_proj", y * gate * torch.sigmoid(gate))
        mapped = out[:, before:].unflatten(1, grid)
        return mapped if prefix is None else (mapped, out[:, :before])

    return call


@pytest.mark.parametrize(
    ("grid", "prefix", "rope"), [((4, 6), 0, True), ((5, 3), 2, True), ((3, 4), 0, False), ((7,), 1, True)]
)
def test_the_mixer_is_its_equations(grid, prefix, rope):
    mixer = DualGatedLinearAttention(8, 2, rope=rope, ndim=len(grid))
    check_mixer(mixer, dual_gated(2, rope), grid, prefix)


def test_it_compiles():
    mixer = DualGatedLinearAttention(8, 2)
    x = torch.randn(1, 3, 5, 8)
    torch.compiler.reset()
    assert torch.allclose(torch.compile(mixer, fullgraph=True, backend="eager")(x), mixer(x), atol=1e-6)
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("arguments", "message"), [({"value_rank": 0.1}, "value_rank=0.1"), ({"lepe_kernel": 4}, "lepe_kernel=4")]
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DualGatedLinearAttention(8, 2, **arguments)
