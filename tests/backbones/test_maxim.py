"""MAXIM's multi-axis gated MLP and cross gating."""

import itertools
import math

import pytest
import torch

from tests.backbones.checks import check_mixer, randomized
from vidattn.backbones.mixers import CrossGating, MultiAxisGMLP


def layer(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def norm(p, name, x):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    return x * p[f"{name}.weight"] + p[f"{name}.bias"]


def gelu(x):
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def dense(p, name, x, kind, extent):
    """Token by token: which others it sees, and with which weight; places behind the map hold zeros."""
    grid = x.shape[1:-1]
    cells = [extent if kind == "block" else -(-n // extent) for n in grid]
    places = list(itertools.product(*map(range, grid)))
    weight, bias = p[f"{name}.dense.weight"], p[f"{name}.dense.bias"]

    def parts(place):
        """(number in the mixed axis, what has to be equal)."""
        inside = tuple(n % c for n, c in zip(place, cells, strict=True))
        which = tuple(n // c for n, c in zip(place, cells, strict=True))
        number, same = (inside, which) if kind == "block" else (which, inside)
        return sum(n * extent**k for k, n in enumerate(reversed(number))), same

    split = [parts(place) for place in places]
    rows = [[(b, j) for j, (b, t) in enumerate(split) if t == same] for _, same in split]
    flat = x.flatten(1, -2)
    out = [
        bias[a] + sum(weight[a, b] * flat[:, j] for b, j in row)
        for (a, _), row in zip(split, rows, strict=True)
    ]
    return torch.stack(out, 1).unflatten(1, grid)


def branch(p, name, x, kind, extent):
    u, v = gelu(layer(p, f"{name}.in_proj", norm(p, f"{name}.norm", x))).chunk(2, -1)
    v = dense(p, f"{name}.mix", norm(p, f"{name}.gate_norm", v), kind, extent)
    return x + layer(p, f"{name}.out_proj", u * (v + 1))


def gmlp(block, cells):
    def call(p, x):
        s, t = gelu(layer(p, "in_proj", norm(p, "norm", x))).chunk(2, -1)
        both = [branch(p, "grid", s, "grid", cells), branch(p, "block", t, "block", block)]
        return x + layer(p, "out_proj", torch.cat(both, -1))

    return call


@pytest.mark.parametrize(
    ("grid", "block", "cells"),
    [((4, 6), 2, 2), ((5, 7), 2, 3), ((2, 3), 4, 4), ((7,), 3, 2), ((2, 3, 2), 2, 2)],
)
def test_the_mixer_is_its_equations(grid, block, cells):
    mixer = MultiAxisGMLP(4, block_size=block, grid_size=cells, ndim=len(grid))
    check_mixer(mixer, gmlp(block, cells), grid, batch=1)


class SideBySide(torch.nn.Module):
    """Cross gating as a module of one map: the channels of x and y side by side."""

    def __init__(self, cross):
        super().__init__()
        self.cross, self.dim = cross, cross.dim_x + cross.dim_y

    def forward(self, x):
        return torch.cat(self.cross(*x.split([self.cross.dim_x, self.cross.dim_y], -1)), -1)


@pytest.mark.parametrize("grid", [(4, 2), (3, 5)])
def test_cross_gating_is_its_equations(grid):
    def gate(p, name, x):
        u, v = gelu(layer(p, f"{name}.in_proj", norm(p, f"{name}.norm", x))).chunk(2, -1)
        both = [dense(p, f"{name}.grid", u, "grid", 2), dense(p, f"{name}.block", v, "block", 3)]
        return layer(p, f"{name}.out_proj", torch.cat(both, -1))

    def call(p, together):
        p = {k.removeprefix("cross."): v for k, v in p.items()}
        x, y = together.split([3, 2], -1)
        x, y = layer(p, "enter_x", x), layer(p, "enter_y", y)
        x1, y1 = (gelu(layer(p, f"in_{n}", norm(p, f"norm_{n}", t))) for n, t in (("x", x), ("y", y)))
        y2 = layer(p, "out_y", y1 * gate(p, "gate_x", x1)) + y
        return torch.cat([layer(p, "out_x", x1 * gate(p, "gate_y", y1)) + y2 + x, y2], -1)

    check_mixer(SideBySide(CrossGating(3, 2, 4, block_size=3, grid_size=2)), call, grid, batch=1)


def test_they_compile():
    x = torch.randn(1, 5, 6, 4)
    for module, inputs in ((MultiAxisGMLP(4, block_size=2, grid_size=3), (x,)), (CrossGating(4, 4), (x, x))):
        randomized(module).float()
        torch.compiler.reset()
        found = torch.compile(module, fullgraph=True, backend="eager")(*inputs)
        torch.testing.assert_close(found, module(*inputs))
    torch.compiler.reset()


def test_bad_arguments():
    with pytest.raises(ValueError, match="block_size=0"):
        MultiAxisGMLP(4, block_size=0)
    with pytest.raises(ValueError, match="grid of 1 axes"):
        MultiAxisGMLP(4)(torch.randn(1, 4, 4))
    with pytest.raises(ValueError, match=r"y \(1, 2, 3, 4\)"):
        CrossGating(4, 4)(torch.randn(1, 2, 2, 4), torch.randn(1, 2, 3, 4))
