"""Patterns that are one interval per axis, as tables, and the tile shapes that visit the fewest pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from vidattn.kernels.visits import Visits
from vidattn.layout import Grid
from vidattn.patterns import Full, Groups, Hierarchical, Pattern, SlidingTile
from vidattn.patterns.groups import GroupPattern
from vidattn.patterns.sizes import per_axis
from vidattn.patterns.window import WindowPattern

Edges = tuple[Tensor, Tensor]
"""For each coordinate of an axis the first and the last + 1 position that it sees, int64 on the CPU."""


def is_window(pattern: Pattern) -> bool:
    """Whether every query sees one interval per axis."""
    if isinstance(pattern, Groups):
        return pattern.region == "blocks"
    if isinstance(pattern, Hierarchical):
        return not pattern.is_sum
    return isinstance(pattern, (Full, WindowPattern, SlidingTile))


def windows(pattern: Pattern, grid: Grid) -> tuple[tuple[Edges, Edges, Edges], Grid]:
    """The edges of each axis and the dilations of a pattern that :func:`is_window`.

    Both edges never decrease from position to position of a dilation group.
    """
    if isinstance(pattern, Full):
        t, y, x = ((torch.zeros(n, dtype=torch.int64), torch.full((n,), n)) for n in grid)
        return (t, y, x), (1, 1, 1)
    if isinstance(pattern, WindowPattern):
        rules = pattern.rules(grid)
        edges = []
        for rule in rules:
            first = torch.empty(rule.length, dtype=torch.int64)
            stop = torch.empty_like(first)
            for group in range(rule.dilation):
                count = rule.group_length(group)
                pair = rule.interval(torch.arange(count), count)
                first[group :: rule.dilation], stop[group :: rule.dilation] = pair
            edges.append((first, stop))
        return (edges[0], edges[1], edges[2]), (rules[0].dilation, rules[1].dilation, rules[2].dilation)
    if isinstance(pattern, Hierarchical):
        return _part_edges(pattern, grid)
    if not isinstance(pattern, GroupPattern):
        raise ValueError(f"pattern={pattern}: is no product of intervals")
    t, y, x = (_group_edges(pattern, grid, axis) for axis in range(3))
    return (t, y, x), (1, 1, 1)


def _part_edges(pattern: Hierarchical, grid: Grid) -> tuple[tuple[Edges, Edges, Edges], Grid]:
    """Contiguous parts are windows; the tokens of one remainder are a dilation group that is seen whole."""
    sizes = zip(grid, per_axis(pattern.parts, 1), strict=True)
    parts = [min(count, extent) for extent, count in sizes]
    edges = []
    for extent, count in zip(grid, parts, strict=True):
        place = torch.arange(extent)
        if pattern.branches == "close":
            part = torch.div(place * count, extent, rounding_mode="floor")
            edges.append((torch.searchsorted(part, part), torch.searchsorted(part, part, right=True)))
        else:
            last = torch.div(extent - 1 - place % count, count, rounding_mode="floor")
            edges.append((torch.zeros_like(place), last + 1))
    step = (1, 1, 1) if pattern.branches == "close" else (parts[0], parts[1], parts[2])
    return (edges[0], edges[1], edges[2]), step


def _group_edges(pattern: GroupPattern, grid: Grid, axis: int) -> Edges:
    """The edges along one axis of a pattern whose groups each see one box."""
    size, extent = pattern.group_size(grid), grid[axis]
    first, stop = torch.empty(2, extent, dtype=torch.int64)
    for start in range(0, extent, size[axis]):
        lo, hi = [0, 0, 0], list(size)
        lo[axis], hi[axis] = start, min(start + size[axis], extent)
        (box,) = pattern.key_boxes((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]), grid)
        first[start : hi[axis]], stop[start : hi[axis]] = box[0][axis], box[1][axis]
    return first, stop


def inverse(edges: Edges, step: int) -> Edges:
    """For each key of an axis the first and the last + 1 query position that sees it."""
    lo, hi = torch.empty_like(edges[0]), torch.empty_like(edges[1])
    for group in range(step):
        first, stop = (edge[group::step].contiguous() for edge in edges)
        key = torch.arange(len(first))
        # queries whose window has not begun behind the key are a prefix, those that it has not left a suffix
        low, high = torch.searchsorted(stop, key, right=True), torch.searchsorted(first, key, right=True)
        lo[group::step], hi[group::step] = low, torch.maximum(low, high)
    return lo, hi


def shapes(size: int) -> Iterator[Grid]:
    """Every box of ``size`` tokens with powers of two as sides; long x axes first."""
    for t in _powers(size):
        for y in _powers(size // t):
            yield t, y, size // (t * y)


def _powers(limit: int) -> list[int]:
    return [1 << i for i in range(limit.bit_length())]


def cheapest(edges: tuple[Edges, Edges, Edges], step: Grid, rows: int, columns: int) -> tuple[Grid, Grid]:
    """The tile of ``rows`` and the box of ``columns`` tokens that visit the fewest pairs, masked included."""
    sides = [(a, b) for a in _powers(rows) for b in _powers(columns)]
    cost = [
        {(a, b): _axis_cost(first[::d], stop[::d], a, b) for a, b in sides}
        for (first, stop), d in zip(edges, step, strict=True)
    ]
    options = ((tile, box) for tile in shapes(rows) for box in shapes(columns))
    return min(options, key=lambda o: math.prod(cost[i][o[0][i], o[1][i]] for i in range(3)))


def _axis_cost(first: Tensor, stop: Tensor, tile: int, box: int) -> int:
    """Pairs of one axis that tiles and boxes of these lengths visit."""
    low = first[::tile]
    last = torch.arange(tile - 1, len(stop) + tile - 1, tile).clamp(max=len(stop) - 1)
    boxes = torch.div(stop[last] - low + box - 1, box, rounding_mode="floor")
    return tile * box * int(boxes.sum())


@lru_cache(maxsize=512)
def window_visits(
    pattern: Pattern, grid: Grid, rows: int, columns: int, inverted: bool, device: torch.device
) -> Visits:
    """What a window pattern tells a kernel; ``inverted``: rows are keys, columns queries."""
    edges, step = windows(pattern, grid)
    if inverted:
        swapped = [inverse(axis, d) for axis, d in zip(edges, step, strict=True)]
        edges = (swapped[0], swapped[1], swapped[2])
    tile, box = cheapest(edges, step, rows, columns)
    table = torch.stack([torch.cat([axis[i] for axis in edges]) for i in (0, 1)])
    longest = [(n + d - 1) // d for n, d in zip(grid, step, strict=True)]
    t, y, x = (-(-n // s) for n, s in zip(longest, tile, strict=True))
    return Visits(
        grid, step, tile, box, "window", (0, 0, 0, 0), table.int().to(device),
        (t, y, x), tile, (0, 1, 1), box,
    )  # fmt: skip
