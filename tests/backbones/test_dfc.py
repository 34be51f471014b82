"""GhostNetV2's module: its features and its gate."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.backbones.checks import check_mixer
from vidattn.backbones.mixers import GhostModuleV2


def ghost(out, kernel, pool):
    """Sums over taps, one place at a time."""

    def call(p, x):
        height, width = x.shape[1:3]

        def norm(name, t):
            t = (t - p[f"{name}.running_mean"]) / (p[f"{name}.running_var"] + 1e-5).sqrt()
            return t * p[f"{name}.weight"] + p[f"{name}.bias"]

        def depthwise(name, t):
            kernel = p[f"{name}.weight"][:, 0]
            a, b = kernel.shape[1] // 2, kernel.shape[2] // 2
            wide = F.pad(t, (0, 0, b, b, a, a))
            taps = [(i, j) for i in range(2 * a + 1) for j in range(2 * b + 1)]
            return sum(kernel[:, i, j] * wide[:, i : i + t.shape[1], j : j + t.shape[2]] for i, j in taps)

        a = norm("primary_conv.1", x @ p["primary_conv.0.weight"][:, :, 0, 0].T).clamp(min=0)
        b = norm("cheap_operation.1", depthwise("cheap_operation.0", a)).clamp(min=0)
        rows, columns = max(1, height // pool), max(1, width // pool)
        s, t = min(pool, height), min(pool, width)
        coarse = torch.stack(
            [
                x[:, i * s : i * s + s, j * t : j * t + t].mean((1, 2))
                for i in range(rows)
                for j in range(columns)
            ],
            1,
        ).unflatten(1, (rows, columns))
        z = norm("short_conv.1", coarse @ p["short_conv.0.weight"][:, :, 0, 0].T)
        z = norm("short_conv.3", depthwise("short_conv.2", z))
        z = 1 / (1 + torch.exp(-norm("short_conv.5", depthwise("short_conv.4", z))))
        at = [[math.floor(i * n / m) for i in range(m)] for n, m in ((rows, height), (columns, width))]
        return torch.cat([a, b], -1)[..., :out] * z[:, at[0]][:, :, at[1]]

    return call


@pytest.mark.parametrize(
    ("grid", "out", "kernel", "pool"),
    [((4, 6), 6, 5, 2), ((7, 5), 5, 3, 2), ((1, 3), 4, 5, 2), ((7, 8), 3, 3, 3)],
)
def test_the_module_is_its_equations(grid, out, kernel, pool):
    check_mixer(GhostModuleV2(4, out, kernel=kernel, pool=pool), ghost(out, kernel, pool), grid)


def test_it_compiles():
    module, x = GhostModuleV2(4).eval(), torch.randn(1, 5, 6, 4)
    torch.compiler.reset()
    assert torch.allclose(torch.compile(module, fullgraph=True, backend="eager")(x), module(x), atol=1e-6)
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"kernel": 4}, "kernel=4"), ({"pool": 0}, "pool=0"), ({"dim_out": 0}, "dim_out=0")],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GhostModuleV2(4, **arguments)
    with pytest.raises(ValueError, match="grid of 1 axes"):
        GhostModuleV2(4)(torch.randn(1, 4, 4))
