"""Pooled keys, SVG's choice, and sums of attentions, against plain definitions."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.patterns.exact import assert_exact, gradients, tensors
from tests.strategies import data_patterns
from vidattn import TokenLayout, attention
from vidattn.patterns import (
    Disc,
    Hierarchical,
    PerHead,
    SparseVideoGen,
    Spatial,
    Temporal,
    TopK,
    from_dict,
    from_text,
)
from vidattn.testing import reference_attention


def pooled(tokens, layout, side):
    """Means over cells, cell by cell."""
    t, h, w = layout.grid
    grid = tokens[:, layout.text_before : layout.text_before + layout.grid_tokens].unflatten(1, layout.grid)
    cells = itertools.product(range(t), range(0, h, side), range(0, w, side))
    return torch.stack([grid[:, i, y : y + side, x : x + side].mean((1, 2)) for i, y, x in cells], 1)


@pytest.mark.parametrize(
    "layout",
    [TokenLayout((2, 4, 5), 1, 2, text_valid=(3, 1)), TokenLayout((2, 5, 7)), TokenLayout((1, 6, 4), 2)],
    ids=["padded text", "no text", "text"],
)
def test_pooled_keys_are_seen_by_the_grid_and_not_by_text(layout):
    pattern = Disc(2, pooled=3)
    mask = pattern.mask(layout)
    text = layout.text_index()
    assert not mask[..., text, layout.tokens :].any()
    seen = mask.double().sum((-1, -2)).mean().item()
    assert pattern.density(layout) == pytest.approx(seen / layout.tokens**2, abs=1e-12)
    assert torch.equal(mask[..., : layout.tokens], Disc(2).mask(layout))
    inputs = tensors(layout)
    more = [torch.cat([t, pooled(t, layout, 3)], 1) for t in inputs[1:]]
    assert_exact(pattern, layout, inputs, mask, keys_and_values=more)


def test_pooling_is_exact_in_low_precision_and_never_counts_as_dense():
    layout = TokenLayout((1, 6, 6), 2)
    assert not Disc(99, pooled=2).covers(layout.grid)
    inputs = [t.detach().to(torch.bfloat16) for t in tensors(layout)]
    assert torch.equal(
        Disc(2, 3).pool(inputs[1], layout), pooled(inputs[1].float(), layout, 3).to(torch.bfloat16)
    )
    with pytest.raises(ValueError, match="pooled=1: must be 0 or an integer of at least 2"):
        Disc(4, pooled=1)


# ------------------------------------------------------------------ SVG
def bands_of(pattern, grid):
    """The masks of a spatial and of a temporal head, by the number of each token in its head's order."""
    count = math.prod(grid)
    places = list(itertools.product(*(range(n) for n in grid)))
    masks = []
    for number in (
        lambda t, y, x: (t * grid[1] + y) * grid[2] + x,
        lambda t, y, x: (y * grid[2] + x) * grid[0] + t,
    ):
        at = torch.tensor([number(*place) for place in places])
        mask = (at[:, None] - at).abs() <= int(pattern.width * grid[1] * grid[2])
        masks.append(mask | (at < count // grid[0]) if pattern.sink else mask)
    return masks


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("grid", [(4, 3, 5), (3, 4, 4)])
def test_svg_chooses_the_band_with_the_smaller_error(grid, sink):
    layout = TokenLayout(grid, 1, 2, text_valid=(3, 1))
    pattern = SparseVideoGen(0.7, sink, rows=9)
    query, key, value = inputs = tensors(layout)
    count = layout.grid_tokens
    rows = torch.tensor([(2 * i + 1) * count // 18 for i in range(9)])
    expected = torch.ones(2, 4, layout.tokens, layout.tokens, dtype=torch.bool)
    exact = reference_attention(*inputs, layout.key_valid()[:, None].expand(-1, layout.tokens, -1))[0]
    errors = []
    for band in bands_of(pattern, grid):
        whole = torch.ones(layout.tokens, layout.tokens, dtype=torch.bool)
        whole[1:-2, 1:-2] = band
        out = reference_attention(*inputs, whole & layout.key_valid()[:, None])[0]
        errors.append((out - exact)[:, 1 + rows].square().sum((1, 3)))
    temporal = errors[1] < errors[0]
    assert 0 < temporal.sum() < 8  # heads of both kinds
    assert torch.equal(
        pattern.temporal_heads(query, key, value, layout, None, torch.tensor([3, 1])), temporal
    )
    for item, head in itertools.product(range(2), range(4)):
        expected[item, head, 1:-2, 1:-2] = bands_of(pattern, grid)[int(temporal[item, head])]
    expected &= layout.key_valid()[:, None, None]
    mask = pattern.mask_for(query, key, layout, value)
    assert torch.equal(mask, expected)
    assert pattern.density(layout) == pytest.approx(mask.double().mean().item(), abs=1e-12)
    assert_exact(pattern, layout, inputs, mask)


def test_svg_heads_without_sink_are_the_two_band_patterns():
    grid = (3, 2, 4)
    spatial, temporal = bands_of(SparseVideoGen(0.6), grid)
    assert torch.equal(spatial, Spatial(0.6).mask(TokenLayout(grid)))
    assert torch.equal(temporal, Temporal(0.6).mask(TokenLayout(grid)))


def test_svg_does_not_wait_for_the_device():
    layout = TokenLayout((3, 8, 8), 2, 3)
    with FakeTensorMode():
        x = torch.empty(2, layout.tokens, 4, 16)
        choice = SparseVideoGen(0.5).choose(x, x, x, layout, None, torch.empty(2, dtype=torch.int64))
        assert choice.query_order.shape == (2, 4, 192)


# ------------------------------------------------------------------ UltraGen and T3
@pytest.mark.parametrize("branch", ["close", "remote"])
def test_parts_of_the_grid(branch):
    grid, parts = (4, 7, 5), (2, 3, 9)

    def part(i, n, count):
        count = min(n, count)
        return i * count // n if branch == "close" else i % count

    places = list(itertools.product(*(range(n) for n in grid)))
    parted = [tuple(part(i, n, c) for i, n, c in zip(p, grid, parts, strict=True)) for p in places]
    expected = torch.tensor([[a == b for b in parted] for a in parted])
    assert torch.equal(Hierarchical(parts, branch).mask(TokenLayout(grid)), expected)


def test_t3_is_the_mean_of_close_and_remote():
    """As reshapes of the grid: (parts, size) and (size, parts) on each axis."""
    grid, parts = (2, 6, 4), (1, 3, 2)
    layout, pattern = TokenLayout(grid), Hierarchical(parts, "close+remote")
    inputs = tensors(layout)
    n = torch.arange(layout.grid_tokens).view(2, 3, 2, 2, 2)  # t, (3, 2) of h, (2, 2) of w
    total = 0
    for axes in ((1, 3, 0, 2, 4), (2, 4, 0, 1, 3)):  # parts first: contiguous, then strided
        sets = n.permute(axes).reshape(6, -1) if axes[0] == 1 else None
        if sets is None:  # strided sets: the remainder modulo parts is a column of (size, parts)
            sets = torch.arange(48).view(2, 2, 3, 2, 2).permute(2, 4, 0, 1, 3).reshape(6, -1)
        mask = torch.zeros(48, 48, dtype=torch.bool)
        for one in sets:
            mask[one[:, None], one] = True
        total = total + reference_attention(*inputs, mask)[0] / 2
    got = attention(*inputs, pattern, layout)
    torch.testing.assert_close(got, total, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients([got], inputs), gradients([total], inputs), rtol=0, atol=1e-9)
    assert pattern.density(layout) == pytest.approx(2 / 6)


def test_ultragen_adds_means_resized():
    layout = TokenLayout((2, 8, 8), 1, 2, text_valid=(3, 2))
    weights = (0.5, 0.3, 0.2)
    pattern = Hierarchical((1, 4, 4), "close+coarse+global", weights)
    inputs = tensors(layout)
    text = [t[:, [0, -2, -1]] for t in inputs]
    expected = weights[0] * attention(*inputs, Hierarchical((1, 4, 4)), layout)
    first = attention(*inputs, Hierarchical((1, 4, 4)), layout)
    for weight, side, inner in (
        (0.3, 2, Hierarchical((1, 2, 2)).mask(TokenLayout((2, 4, 4)))),
        (0.2, 4, None),
    ):
        cells = [
            torch.cat([pooled(t, layout, side), words], 1) for t, words in zip(inputs, text, strict=True)
        ]
        count = 2 * (8 // side) ** 2
        mask = torch.ones(2, count + 3, count + 3, dtype=torch.bool)
        if inner is not None:
            mask[:, :count, :count] = inner
        mask[1, :, -1] = False  # the second item's last text token is padding
        out = reference_attention(*cells, mask)[0][:, :count]
        planes = out.reshape(2, 2, 8 // side, 8 // side, 28).permute(0, 4, 1, 2, 3).flatten(0, 1)
        large = F.interpolate(planes.transpose(0, 1), (8, 8), mode="bilinear").transpose(0, 1)
        large = large.reshape(2, 28, 128).transpose(1, 2).reshape(2, 128, 4, 7)
        expected = torch.cat([expected[:, :1], expected[:, 1:-2] + weight * large, expected[:, -2:]], 1)
    expected = torch.cat([first[:, :1], expected[:, 1:-2], first[:, -2:]], 1)
    got = attention(*inputs, pattern, layout)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients([got], inputs), gradients([expected], inputs), rtol=0, atol=1e-9)


def test_a_sum_of_one_weight_is_its_branch():
    layout = TokenLayout((2, 7, 5), 2)
    inputs = tensors(layout)
    both = attention(*inputs, Hierarchical((1, 3, 2), "remote+global", (1.0, 0.0)), layout)
    torch.testing.assert_close(both, attention(*inputs, Hierarchical((1, 3, 2), "remote"), layout))


def test_what_a_sum_does_not_have():
    pattern, layout = Hierarchical(branches="close+remote"), TokenLayout((2, 8, 8))
    x = torch.zeros(1, 128, 2, 8)
    for ask in (pattern.mask, pattern.plan):
        with pytest.raises(ValueError, match="ask those of its branches"):
            ask(layout)
    with pytest.raises(ValueError, match="return_lse"):
        attention(x, x, x, pattern, layout, return_lse=True)
    assert attention(x, x, x, PerHead([pattern, Spatial(1)], (0, 1)), layout).shape == x.shape
    for options in (
        {"branches": "far"},
        {"branches": "coarse"},
        {"branches": "close+close"},
        {"weights": (1, 1)},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(options))}="):
            Hierarchical(**options)


# ------------------------------------------------------------------ all of them
@settings(max_examples=40, deadline=None)
@given(data_patterns())
def test_text_forms_and_dictionaries(pattern):
    assert (
        from_text(pattern.to_text()) == from_text(pattern.encoded) == from_dict(pattern.to_dict()) == pattern
    )
    layout = TokenLayout((2, 8, 8), 3)
    assert 0 < pattern.density(layout) < 4
    assert 0 < pattern.visited(layout) < 4


@pytest.mark.parametrize(
    "pattern",
    [
        Disc(2, 3),
        SparseVideoGen(0.6),
        Hierarchical((1, 2, 2), "close+coarse"),
        PerHead([TopK(0.3), Spatial(1)], (0, 1, 1, 0)),
    ],
    ids=["pooled", "svg", "sum", "per head"],
)
def test_one_graph(pattern):
    layout = TokenLayout((3, 4, 4), 2, text_valid=(2, 1))
    inputs = tensors(layout, dtype=torch.float32)
    call = torch.compile(lambda *x: attention(*x, pattern, layout), fullgraph=True, backend="aot_eager")
    got, expected = call(*inputs), attention(*inputs, pattern, layout)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients([got], inputs), gradients([expected], inputs))


@pytest.mark.parametrize(
    "pattern", [Spatial(0.6), TopK(0.3, (2, 2, 2)), SparseVideoGen(0.6)], ids=lambda p: p.name
)
def test_autocast_does_not_reach_inside(pattern):
    """Sums and choices stay in float32: the same bits as outside, forward and backward."""
    layout = TokenLayout((3, 4, 4), 2)
    inputs = tensors(layout, dtype=torch.float32)  # a value size of its own, so that no fused kernel runs
    expected = attention(*inputs, pattern, layout, return_lse=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = attention(*inputs, pattern, layout, return_lse=True)
        slopes = gradients(got, inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(slopes, gradients(expected, inputs), strict=True))
