"""What the kernels are told about patterns, against masks: windows, their inverses, lists."""

import torch
from hypothesis import given, settings

from tests.strategies import grids, patterns
from vidattn import TokenLayout
from vidattn.backends import triton
from vidattn.backends.problem import Problem
from vidattn.backends.triton_lists import LISTED, cell_shape, inner_box, list_visits, sort_out, view_of
from vidattn.backends.triton_plan import plannable
from vidattn.backends.triton_windows import inverse, is_window, window_visits, windows
from vidattn.lists import box_numbers
from vidattn.patterns import Neighborhood, PerHead

CPU = torch.device("cpu")


def axis_mask(edges, step):
    """(L, L): which coordinates of an axis the windows hold."""
    first, stop = edges
    place = torch.arange(len(first))
    position, group = place // step, place % step
    held = (position >= first[:, None]) & (position < stop[:, None])
    return held & (group == group[:, None])


@settings(max_examples=60, deadline=None)
@given(patterns().filter(is_window), grids())
def test_windows_and_their_inverses(pattern, grid):
    edges, step = windows(pattern, grid)
    t, y, x = (axis_mask(axis, d) for axis, d in zip(edges, step, strict=True))
    whole = torch.einsum("ab,cd,ef->acebdf", t.int(), y.int(), x.int()).bool()
    assert torch.equal(
        whole.reshape((t.shape[0] * y.shape[0] * x.shape[0],) * 2), pattern.mask(TokenLayout(grid))
    )
    for axis, d, forward in zip(edges, step, (t, y, x), strict=True):
        assert torch.equal(axis_mask(inverse(axis, d), d), forward.T)


@settings(max_examples=60, deadline=None)
@given(patterns().filter(lambda p: isinstance(p, LISTED) and not is_window(p)), grids())
def test_cells_are_sorted_out_exactly(pattern, grid):
    view, mask = view_of(pattern, grid), pattern.mask(TokenLayout(grid))
    tile, box = cell_shape(pattern, view, 16), cell_shape(pattern, view, 8)
    visited, full = sort_out(pattern, view, tile, box)
    rows, columns = box_numbers(view, tile), box_numbers(view, box)
    seen = visited[rows[:, None], columns]
    assert not (mask & ~seen).any(), "an allowed pair is not visited"
    assert mask[(seen & full[rows[:, None], columns])].all(), "a full cell holds a forbidden pair"
    visits = list_visits(pattern, grid, 16, 8, False, CPU)
    listed = torch.zeros_like(visited)
    for row, count in enumerate(visits.count[0, 0].tolist()):
        entries = visits.index[0, 0, row, :count].long()
        listed[row, torch.where(entries < 0, ~entries, entries)] = True
    assert torch.equal(listed, visited)


@settings(max_examples=30, deadline=None)
@given(patterns())
def test_every_pattern_on_a_grid_has_a_plan(pattern):
    assert plannable(pattern)


def test_patterns_without_a_plan_are_refused():
    problem = Problem(PerHead([Neighborhood(3)], (0,)), TokenLayout((4, 4)), 1.0)
    query = torch.zeros(1, 16, 1, 16)
    found = triton.reasons(problem, query, query, query)
    assert found == (triton.missing(CPU) or ["has no kernel for pattern 'perhead'"])


def test_the_tile_that_visits_the_fewest_pairs_is_taken():
    tall = window_visits(Neighborhood((1, 33, 1)), (1, 128, 128), 128, 64, False, CPU)
    wide = window_visits(Neighborhood((1, 1, 33)), (1, 128, 128), 128, 64, False, CPU)
    assert (tall.tile, wide.tile) == ((1, 128, 1), (1, 1, 128))
    flux = window_visits(Neighborhood(33), (1, 128, 128), 128, 64, False, CPU)
    assert flux.tile in ((1, 8, 16), (1, 16, 8))


def test_cells_are_cut_into_boxes_that_a_kernel_can_take():
    assert inner_box((6, 8, 8), 64) == (1, 8, 8)
    assert inner_box((2, 2, 2), 64) == (2, 2, 4)
    assert inner_box((1, 3, 5), 128) == (1, 4, 8)
