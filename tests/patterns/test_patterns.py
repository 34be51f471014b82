"""Patterns against independent definitions, and as data."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import na_oracle
from tests.strategies import grids, patterns
from vidattn import TokenLayout
from vidattn.patterns import (
    Disc,
    Full,
    Groups,
    Neighborhood,
    PerHead,
    Radial,
    SlidingTile,
    SlidingWindow,
    Spatial,
    Temporal,
    from_dict,
    from_text,
)


def by_pairs(grid, sees):
    """A mask from a function of two (t, y, x) places: as slow and as plain as can be."""
    places = list(itertools.product(*(range(n) for n in grid)))
    return torch.tensor([[bool(sees(q, k)) for k in places] for q in places])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_neighborhood_is_natten_rule(data):
    shape = data.draw(st.lists(st.integers(1, 7), min_size=3, max_size=3))
    dilation = [data.draw(st.integers(1, n)) for n in shape]
    window = [data.draw(st.integers(1, n // d)) for n, d in zip(shape, dilation, strict=True)]
    stride = [data.draw(st.integers(1, k)) for k in window]
    causal = data.draw(st.lists(st.booleans(), min_size=3, max_size=3))
    axes = [na_oracle.axis_mask(*axis) for axis in zip(shape, window, stride, dilation, causal, strict=True)]
    expected = np.kron(np.kron(axes[0], axes[1]), axes[2]).astype(bool)
    pattern = Neighborhood(tuple(window), tuple(stride), tuple(dilation), tuple(causal))
    assert (pattern.mask(TokenLayout(tuple(shape))).numpy() == expected).all()


def test_windows_larger_than_the_grid_are_cut():
    layout = TokenLayout((3, 6, 5))
    assert Neighborhood((9, 99, 99)).mask(layout).all()
    # dilation 2 leaves 3 and 3 (or 2) positions a group, so that the largest legal window is 3 x 2
    cut = Neighborhood((1, 9, 9), dilation=(1, 2, 2)).mask(layout)
    assert torch.equal(cut, Neighborhood((1, 3, 2), dilation=(1, 2, 2)).mask(layout))
    assert SlidingWindow(40).mask(layout).all()


@pytest.mark.parametrize("base", [(2, 5), (4, 4), (7, 3), 6])
def test_sliding_window_is_freeswims_inward_window(base):
    grid = (2, 8, 7)
    height, width = (base, base) if isinstance(base, int) else base

    def inside(i, j, extent, d):
        return max(0, min(i - d, extent - 1 - 2 * d)) <= j <= min(extent - 1, max(i + d, 2 * d))

    expected = by_pairs(
        grid, lambda q, k: inside(q[1], k[1], 8, height // 2) and inside(q[2], k[2], 7, width // 2)
    )
    assert torch.equal(SlidingWindow(base).mask(TokenLayout(grid)), expected)


@pytest.mark.parametrize("radius", [1, 2, 2.5, 3, 40])
def test_disc_is_strictly_inside(radius):
    grid = (2, 6, 5)
    expected = by_pairs(grid, lambda q, k: (q[1] - k[1]) ** 2 + (q[2] - k[2]) ** 2 < radius**2)
    assert torch.equal(Disc(radius).mask(TokenLayout(grid)), expected)


@pytest.mark.parametrize("grid", [(5, 6, 7), (2, 6, 7)])
@pytest.mark.parametrize("reach", [0, 1])
def test_group_blocks(grid, reach):
    def sees(q, k):
        return all(abs(a // s - b // s) <= reach for a, b, s in zip(q, k, (2, 2, 3), strict=True))

    assert torch.equal(Groups((2, 2, 3), reach=reach).mask(TokenLayout(grid)), by_pairs(grid, sees))


@pytest.mark.parametrize("cross", ["planes", "lines"])
def test_group_cross_of_a_video(cross):
    grid = (5, 6, 7)

    def sees(q, k):
        same = sum(a // s == b // s for a, b, s in zip(q, k, (2, 2, 3), strict=True))
        return same >= (1 if cross == "planes" else 2)

    assert torch.equal(Groups((2, 2, 3), "cross", cross=cross).mask(TokenLayout(grid)), by_pairs(grid, sees))


@pytest.mark.parametrize("cross", ["planes", "lines"])
def test_group_cross_of_an_image_is_row_or_column(cross):
    grid = (1, 6, 7)
    expected = by_pairs(grid, lambda q, k: q[1] // 2 == k[1] // 2 or q[2] // 3 == k[2] // 3)
    assert torch.equal(Groups((1, 2, 3), "cross", cross=cross).mask(TokenLayout(grid)), expected)


@pytest.mark.parametrize(("frames", "sink"), [(9, True), (40, False)])
def test_radial_paper_rule(frames, sink):
    grid = (frames, 2, 3) if frames == 40 else (frames, 4, 5)
    s = grid[1] * grid[2]

    def sees(q, k):
        d, a, b = abs(q[0] - k[0]), q[1] * grid[2] + q[2], k[1] * grid[2] + k[2]
        g = 2 ** math.floor(math.log2(max(d, 1)))
        near = g <= s and abs(a - b) + 1 <= s / g
        return near or (d % math.ceil(g / s) == 0 and a == b) or (sink and k[0] == 0)

    assert torch.equal(Radial(sink=sink).mask(TokenLayout(grid)), by_pairs(grid, sees))


@pytest.mark.parametrize(("block", "c"), [(128, 22), (64, 10)])
def test_radial_release_keeps_the_released_offsets(block, c):
    """The closed form of the released 60 % rule on whole blocks (specification, 1.2): |p - q| <= (w + c) //
    B.
    """
    tokens, frames = 2048, 32
    widths = Radial(decay=0.8, variant="release", block=block).half_widths(frames, tokens)
    for d in range(2, frames):
        w = max(block, 0.8 * 2048 / 2 ** int(math.log2(d)))
        assert widths[d] == (w + c) // block, d


def test_radial_release_decimates_far_frames():
    widths = Radial(variant="release", block=128).half_widths(40, 1024)
    assert widths[16] == 1  # P / D = 64: even distances only
    assert widths[17] == -1
    assert widths[32] == 1  # P / D = 32: multiples of 4
    assert widths[34] == -1


@pytest.mark.parametrize("window", [(3, 3, 3), (1, 2, 5), (9, 1, 3)])
def test_sliding_tile_is_a_clamped_window_of_tiles(window):
    grid, tile = (7, 9, 11), (2, 2, 3)
    counts = [-(-n // s) for n, s in zip(grid, tile, strict=True)]

    def sees(q, k):
        for a, b, size, span, count in zip(q, k, tile, window, counts, strict=True):
            reach = span // 2
            if 2 * reach + 1 < count:
                centre = min(max(a // size, reach), count - 1 - reach)
                if abs(centre - b // size) > reach:
                    return False
        return True

    assert torch.equal(SlidingTile(tile, window).mask(TokenLayout(grid)), by_pairs(grid, sees))


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("width", [0.3, 1.0, 2.5])
def test_svg_bands(width, sink):
    grid = (5, 3, 4)
    half = int(width * 12)

    def spatial(q, k):
        a, b = (12 * p[0] + 4 * p[1] + p[2] for p in (q, k))
        return abs(a - b) <= half or (sink and k[0] == 0)

    def temporal(q, k):
        a, b = (5 * (4 * p[1] + p[2]) + p[0] for p in (q, k))
        return abs(a - b) <= half or (sink and k[0] == 0)

    assert torch.equal(Spatial(width, sink).mask(TokenLayout(grid)), by_pairs(grid, spatial))
    assert torch.equal(Temporal(width, sink).mask(TokenLayout(grid)), by_pairs(grid, temporal))


@settings(max_examples=80, deadline=None)
@given(patterns(), grids(), st.integers(0, 3), st.integers(0, 3), st.data())
def test_density_is_the_masks_mean(pattern, grid, before, after, data):
    valid = data.draw(st.none() | st.lists(st.integers(0, before + after), min_size=1, max_size=3).map(tuple))
    layout = TokenLayout(grid, before, after, valid)
    mask = pattern.mask(layout)
    assert pattern.density(layout) == pytest.approx(mask.double().mean().item(), abs=1e-12)
    assert mask.ndim == (3 if valid is not None and len(valid) > 1 else 2)


@settings(max_examples=60, deadline=None)
@given(patterns(), grids())
def test_every_query_sees_itself_and_covers_is_right(pattern, grid):
    mask = pattern.mask(TokenLayout(grid))
    assert mask.diagonal().all()
    if pattern.covers(grid):
        assert mask.all()


def test_text_sees_and_is_seen_by_all():
    mask = Neighborhood(1).mask(TokenLayout((2, 2), text_before=1, text_after=2))
    assert mask[0].all()
    assert mask[:, 0].all()
    assert mask[-2:].all()
    assert mask[:, -2:].all()
    assert mask.sum() == 49 - 12


@settings(max_examples=60, deadline=None)
@given(patterns())
def test_text_form_and_dictionary_round_trip(pattern):
    assert from_text(pattern.to_text()) == pattern
    assert from_dict(pattern.to_dict()) == pattern
    assert hash(from_dict(pattern.to_dict())) == hash(pattern)


def test_patterns_per_head():
    pattern = PerHead([Spatial(1.5), Neighborhood((3, 5), stride=2)], (0, 1, 1))
    assert (
        pattern.to_text()
        == "perhead:patterns=[spatial:width=1.5|neighborhood:window=3x5,stride=2],assign=0x1x1"
    )
    assert from_text(pattern.to_text()) == from_dict(pattern.to_dict()) == pattern
    layout = TokenLayout((3, 4, 5), 1)
    masks = [p.mask(layout) for p in pattern.patterns]
    assert torch.equal(pattern.mask(layout), torch.stack([masks[0], masks[1], masks[1]]))
    assert pattern.density(layout) == pytest.approx(pattern.mask(layout).double().mean().item(), abs=1e-12)
    with pytest.raises(ValueError, match="no plan of its own"):
        pattern.plan(layout)
    for several, assign in (
        ([], (0,)),
        ([pattern], (0,)),
        ([Full()], (1,)),
        ([Full()], ()),
        (["full"], (0,)),
    ):
        with pytest.raises(ValueError, match=r"patterns=|assign="):
            PerHead(several, assign)


def test_readable_text_forms():
    assert from_text("neighborhood:window=33x17, stride=4") == Neighborhood((33, 17), stride=4)
    assert from_text("Radial:decay=0.2") == Radial(decay=0.2)
    assert from_text("full") == Full()
    assert Groups((1, 16, 16), "cross").to_text() == "groups:size=1x16x16,region=cross"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("neighbourhood:window=3", "did you mean 'neighborhood'"),
        ("disc:radios=3", "did you mean 'radius'"),
        ("disc", "needs radius"),
        ("disc:radius", "parameter=value"),
        ("disc:radius=3,radius=4", "stands twice"),
        ("disc:radius=abc", "radius='abc'"),
        ("neighborhood:window=0", "window=0"),
        ("neighborhood:window=3x3x3x3", "window="),
        ("neighborhood:window=3,stride=4", "stride=4"),
        ("neighborhood:window=3,causal=1", "causal=1"),
        ("sliding:base=2x3x4", "base="),
        ("groups:region=ring", "region='ring'"),
        ("groups:cross=diagonal", "cross='diagonal'"),
        ("groups:reach=-1", "reach=-1"),
        ("radial:decay=0", "decay=0"),
        ("radial:variant=new", "variant='new'"),
        ("radial:block=0", "block=0"),
        ("sta:tile=0", "tile=0"),
        ("spatial:width=0", "width=0"),
        ("topk:keep=2", "keep=2"),
        ("svg:rows=0", "rows=0"),
        ("segments:lengths=2x2,allowed=10", "allowed="),
        ("hierarchical:branches=near", "branches='near'"),
        ("temporal:sink=3", "sink=3"),
    ],
)
def test_bad_text_forms_say_what_is_allowed(text, words):
    with pytest.raises(ValueError, match=words):
        from_text(text)


@pytest.mark.parametrize("data", [{}, {"pattern": 3}, "full", {"pattern": "full", "window": 3}])
def test_bad_dictionaries(data):
    with pytest.raises(ValueError, match="pattern"):
        from_dict(data)
