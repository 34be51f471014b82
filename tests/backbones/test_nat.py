"""NAT and DiNAT: neighborhood attention against its definition, names of parameters, conventions."""

import itertools

import pytest
import torch

from tests.backbones.checks import (
    check_mixer,
    conv,
    linear,
    merged,
    norm,
    on_meta,
    randomized,
    shapes,
    softmax_attention,
)
from tests.backbones.surface import check_surface
from vidattn.backbones.mixers import NeighborhoodAttention


def window(extent: int, kernel: int, dilation: int, i: int) -> list[int]:
    """The indices that i sees on one axis, by the paper's rule."""
    group, p = i % dilation, i // dilation
    count = -(-(extent - group) // dilation)
    start = min(max(p - kernel // 2, 0), count - kernel)
    return [(start + j) * dilation + group for j in range(kernel)]


def reference(kernel: int, dilation: int, heads: int):
    """Every query and head by itself."""

    def call(p, x, prefix=None):
        grid = x.shape[1:-1]
        before = 0 if prefix is None else prefix.shape[1]
        tokens = x.flatten(1, -2) if prefix is None else torch.cat([prefix, x.flatten(1, -2)], 1)
        q, k, v = (tokens @ p["qkv.weight"].T + p["qkv.bias"]).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (heads, -1)) for t in (q, k, v))
        table = p.get("rpb")
        rows = []
        cells = list(itertools.product(*map(range, grid)))
        number = {cell: n for n, cell in enumerate(cells)}
        for cell in [None] * before + cells:
            i = len(rows)
            if cell is None:
                seen, bias = list(range(tokens.shape[1])), 0.0
            else:
                sides = [min(kernel, n) for n in grid]
                apart = [max(1, min(dilation, n // kernel)) for n in grid]
                axes = [window(n, s, d, c) for n, s, d, c in zip(grid, sides, apart, cell, strict=True)]
                keys = list(itertools.product(*axes))
                seen = list(range(before)) + [before + number[key] for key in keys]
                bias = x.new_zeros(heads, len(seen))
                if table is not None:
                    away = [
                        tuple(
                            (b // d) - (a // d) + kernel - 1 for a, b, d in zip(cell, key, apart, strict=True)
                        )
                        for key in keys
                    ]
                    bias = torch.cat(
                        [bias[:, :before], torch.stack([table[(slice(None), *a)] for a in away], 1)], 1
                    )
            scores = torch.einsum("bhd,bjhd->bhj", q[:, i], k[:, seen]) * q.shape[-1] ** -0.5 + bias
            rows.append(torch.einsum("bhj,bjhd->bhd", scores.softmax(-1), v[:, seen]))
        out = torch.stack(rows, 1).flatten(-2) @ p["proj.weight"].T + p["proj.bias"]
        grid_out = out[:, before:].unflatten(1, grid)
        return grid_out if prefix is None else (grid_out, out[:, :before])

    return call


@pytest.mark.parametrize(
    ("grid", "kernel", "dilation", "bias", "prefix"),
    [
        ((7, 5), 3, 1, True, 0),
        ((8, 6), 3, 2, True, 0),
        ((4, 9), 5, 2, True, 0),
        ((6, 7), 3, 2, True, 2),
        ((6, 5), 3, 1, False, 1),
        ((11,), 3, 3, False, 0),
        ((3, 4, 5), 3, 1, False, 0),
    ],
)
def test_the_mixer_is_its_definition(grid, kernel, dilation, bias, prefix):
    mixer = NeighborhoodAttention(8, 2, kernel, dilation, rel_pos_bias=bias)
    check_mixer(mixer, reference(kernel, dilation, 2), grid, prefix)


def test_a_bias_in_one_and_three_dimensions():
    for grid in ((9,), (3, 4, 3)):
        mixer = NeighborhoodAttention(4, 2, 3, rel_pos_bias=True, ndim=len(grid))
        check_mixer(mixer, reference(3, 1, 2), grid, batch=1)


def test_a_window_as_large_as_the_grid_is_full_attention():
    mixer = randomized(NeighborhoodAttention(8, 2, 7))
    x = torch.randn(1, 5, 7, 8, dtype=torch.float64)
    q, k, v = (t.unflatten(-1, (2, 4)) for t in mixer.qkv(x.flatten(1, 2)).chunk(3, -1))
    full = mixer.proj(softmax_attention(q, k, v, 0.5).flatten(-2)).unflatten(1, (5, 7))
    assert torch.allclose(mixer(x), full, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 4}, "kernel_size=4"),
        ({"dilation": 0}, "dilation=0"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"ndim": 4}, "ndim=4"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        NeighborhoodAttention(8, **{"num_heads": 2, **arguments})


def test_a_bias_made_for_other_grids():
    with pytest.raises(ValueError, match="3 axes"):
        NeighborhoodAttention(8, 2, 3, rel_pos_bias=True)(torch.randn(1, 3, 3, 3, 8))


def state(width: int, depths: tuple[int, ...], heads: int, ratio: int, scale: bool):
    """The authors' keys and shapes."""

    def parts():
        yield conv("patch_embed.proj.0", width // 2, 3, 3)
        yield conv("patch_embed.proj.1", width, width // 2, 3)
        yield norm("patch_embed.norm", width)
        for i, depth in enumerate(depths):
            c, h = width * 2**i, heads * 2**i
            for j in range(depth):
                at = f"levels.{i}.blocks.{j}"
                yield norm(f"{at}.norm1", c)
                yield linear(f"{at}.attn.qkv", 3 * c, c)
                yield {f"{at}.attn.rpb": (h, 13, 13)}
                yield linear(f"{at}.attn.proj", c, c)
                yield norm(f"{at}.norm2", c)
                yield linear(f"{at}.mlp.fc1", ratio * c, c)
                yield linear(f"{at}.mlp.fc2", c, ratio * c)
                if scale:
                    yield {f"{at}.gamma1": (c,), f"{at}.gamma2": (c,)}
            if i < 3:
                yield conv(f"levels.{i}.downsample.reduction", 2 * c, c, 3, bias=False)
                yield norm(f"levels.{i}.downsample.norm", 2 * c)
        yield norm("norm", width * 8)
        yield linear("head", 1000, width * 8)

    return merged(parts())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("nat_mini", (64, (3, 4, 6, 5), 2, 3, False)),
        ("nat_base", (128, (3, 4, 18, 5), 4, 2, True)),
        ("dinat_small", (96, (3, 4, 18, 5), 3, 2, False)),
    ],
)
def test_the_names_are_the_authors(name, settings):
    assert shapes(on_meta(name)) == state(*settings)


def test_dilations_alternate():
    blocks = [
        on_meta("dinat_mini").part(f"levels.{i}.blocks.{j}")
        for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (2, 5))
    ]
    assert [block.attn.dilation for block in blocks] == [1, 8, 1, 4, 2]


def test_the_surface(tmp_path):
    check_surface("dinat_base", tmp_path, depths=(2, 1, 1, 1), embed_dim=8, heads=1, kernel_size=3)
