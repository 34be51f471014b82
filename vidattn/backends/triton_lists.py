"""Patterns that no window per axis describes, as lists of key cells: static ones sorted out on the grid's
tiles, dynamic ones as they come.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from vidattn.kernels.visits import Visits
from vidattn.layout import Grid
from vidattn.lists import BlockLists, box_counts
from vidattn.patterns import Disc, Groups, Pattern, Radial, Spatial, Temporal

Ranges = tuple[tuple[Tensor, Tensor], ...]
"""For each axis the first and last coordinate of every cell along it."""
Sorted = tuple[Tensor, Tensor]
"""(visited, full): bool (row cells, column cells)."""
LISTED = (Disc, Groups, Radial, Spatial, Temporal)


def view_of(pattern: Pattern, grid: Grid) -> Grid:
    """The grid that a pattern's cells live on: bands see a frame as one row."""
    banded = isinstance(pattern, (Radial, Spatial, Temporal))
    return (grid[0], 1, grid[1] * grid[2]) if banded else grid


def cell_shape(pattern: Pattern, grid: Grid, size: int) -> Grid:
    """A cell of ``size`` tokens, sides powers of two, that suits the pattern."""
    if isinstance(pattern, Temporal):
        frames = min(size, 1 << (grid[0].bit_length() - 1))
        return frames, 1, size // frames
    if isinstance(pattern, Groups):
        sides: list[int] = []
        for side in pattern.group_size(grid)[:2]:
            # a cell inside one group needs no mask
            sides.append(min(side & -side, size // math.prod(sides)))
        return sides[0], sides[1], size // (sides[0] * sides[1])
    if isinstance(pattern, Disc) and grid[1] > 1:
        height = 1 << ((size.bit_length() - 1) // 2)
        return 1, height, size // height
    return 1, 1, size


def rule_of(pattern: Pattern, grid: Grid) -> tuple[str, tuple[int, int, int, int], list[int]]:
    """The kernels' element mask: its name, its integers and its table."""
    frame = grid[1] * grid[2]
    if isinstance(pattern, Disc):
        return "disc", (pattern._limit, 0, 0, 0), [0]
    if isinstance(pattern, Groups):
        return "groups", (*pattern.group_size(grid), _cross_bits(pattern, grid)), [0]
    if isinstance(pattern, Radial):
        return "band", (0, 1, pattern._unit, int(pattern.sink)), list(pattern.half_widths(grid[0], frame))
    if isinstance(pattern, (Spatial, Temporal)):
        weights = (frame, 1) if isinstance(pattern, Spatial) else (1, grid[0])
        return "band", (*weights, 1, int(pattern.sink)), [pattern.half_width(grid)] * grid[0]
    raise ValueError(f"pattern={pattern}: has no element mask in the kernels")


def _cross_bits(pattern: Groups, grid: Grid) -> int:
    """Bit t + 2 y + 4 x: whether tokens that share their group along these axes see each other."""
    image = pattern.counts(grid)[0] == 1
    bits = 0
    for case in range(8):
        t, y, x = (case >> axis & 1 for axis in range(3))
        if image:
            seen = t and (y or x)
        else:
            seen = t + y + x >= (1 if pattern.cross == "planes" else 2)
        bits |= int(bool(seen)) << case
    return bits


def _ranges(grid: Grid, cell: Grid) -> Ranges:
    pairs = []
    for extent, size in zip(grid, cell, strict=True):
        low = torch.arange(0, extent, size)
        pairs.append((low, (low + size).clamp(max=extent) - 1))
    return tuple(pairs)


def _axis(pairs: list[Tensor]) -> list[Tensor]:
    """(rows, columns) tables of three axes, shaped to broadcast to (t, y, x, t', y', x')."""
    shaped = []
    for axis, table in enumerate(pairs):
        shape = [1] * 6
        shape[axis], shape[axis + 3] = table.shape
        shaped.append(table.view(shape))
    return shaped


def sort_out(pattern: Pattern, grid: Grid, row_cell: Grid, column_cell: Grid) -> Sorted:
    """Which key cells each query cell visits, and which of those it sees wholly; ``grid`` is the view."""
    rows, columns = _ranges(grid, row_cell), _ranges(grid, column_cell)
    name, values, table = rule_of(pattern, grid)
    visited, full = _RULES[name](rows, columns, values, torch.tensor(table))
    cells = [len(low) for low, _ in (*rows, *columns)]
    shape = math.prod(cells[:3]), math.prod(cells[3:])
    return visited.expand(cells).reshape(shape), full.expand(cells).reshape(shape)


def _gaps(rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Least and greatest distance between the numbers of two ranges, (rows, columns)."""
    low, high = rows[0][:, None], rows[1][:, None]
    least = torch.maximum(columns[0] - high, low - columns[1]).clamp(min=0)
    return least, torch.maximum(columns[1] - low, high - columns[0])


def _disc(rows: Ranges, columns: Ranges, values: tuple[int, ...], table: Tensor) -> Sorted:
    distances = [_gaps(r, c) for r, c in zip(rows, columns, strict=True)]
    near, far = (_axis([pair[i] for pair in distances]) for i in (0, 1))
    return near[1] ** 2 + near[2] ** 2 <= values[0], far[1] ** 2 + far[2] ** 2 <= values[0]


def _groups(rows: Ranges, columns: Ranges, values: tuple[int, ...], table: Tensor) -> Sorted:
    same, other = [], []
    for row, column, size in zip(rows, columns, values[:3], strict=True):
        least, most = _gaps((row[0] // size, row[1] // size), (column[0] // size, column[1] // size))
        same.append(least == 0)
        other.append(most > 0)
    same, other = _axis(same), _axis(other)
    visited, hidden = torch.tensor(False), torch.tensor(False)
    for case in range(8):
        t, y, x = ((same if case >> axis & 1 else other)[axis] for axis in range(3))
        if values[3] >> case & 1:
            visited = visited | (t & y & x)
        else:
            hidden = hidden | (t & y & x)
    return visited, ~hidden


def _band(rows: Ranges, columns: Ranges, values: tuple[int, ...], table: Tensor) -> Sorted:
    by_t, by_x, unit, sink = values
    orders = []
    for ranges in (rows, columns):
        (t0, t1), _, (x0, x1) = ranges
        ends = ((t0, x0), (t1, x1))
        orders.append(tuple((by_t * t[:, None] + by_x * (x // unit)).flatten() for t, x in ends))
    least, most = (
        d.view(len(rows[0][0]), 1, len(rows[2][0]), len(columns[0][0]), 1, len(columns[2][0]))
        for d in _gaps(orders[0], orders[1])  # type: ignore[arg-type]
    )
    width = table[(rows[0][0][:, None] - columns[0][0]).abs()]
    width = _axis([width, torch.ones(1, 1), torch.ones(1, 1)])[0]
    visited, full = least <= width, most <= width
    if sink:
        first, last = (edge.view(1, 1, 1, -1, 1, 1) == 0 for edge in columns[0])
        visited, full = visited | first, full | last
    return visited, full


_RULES: dict[str, Callable[[Ranges, Ranges, tuple[int, ...], Tensor], Sorted]] = {
    "disc": _disc,
    "groups": _groups,
    "band": _band,
}


def _as_lists(visited: Tensor, full: Tensor | None, slots: int) -> tuple[Tensor, Tensor]:
    """index (..., rows, slots) and count (..., rows), int32; cells that are not full as ~number."""
    number = visited.int().sort(dim=-1, descending=True, stable=True).indices[..., :slots]
    if full is not None:
        number = torch.where(full.gather(-1, number), number, ~number)
    return number.int().contiguous(), visited.sum(-1, dtype=torch.int32)


@lru_cache(maxsize=512)
def list_visits(
    pattern: Pattern, grid: Grid, rows: int, columns: int, inverted: bool, device: torch.device
) -> Visits:
    """What a static irregular pattern tells a kernel; ``inverted``: rows are keys, columns queries."""
    view = view_of(pattern, grid)
    tile, box = cell_shape(pattern, view, rows), cell_shape(pattern, view, columns)
    if inverted:
        visited, full = (t.T for t in sort_out(pattern, view, box, tile))
    else:
        visited, full = sort_out(pattern, view, tile, box)
    slots = max(1, int(visited.sum(1).max()))
    index, count = (t[None, None].to(device) for t in _as_lists(visited, full, slots))
    name, values, table = rule_of(pattern, view)
    edges = torch.tensor(table, dtype=torch.int32, device=device)
    cells, others = box_counts(view, tile), box_counts(view, box)
    return Visits(
        view, (1, 1, 1), tile, box, name, values, edges, cells, tile, others, box, index, count
    )  # fmt: skip


def dynamic_visits(lists: BlockLists, rows: int, columns: int, inverted: bool) -> Visits:
    """What lists made at call time tell a kernel; their inverse is made on the device too."""
    cell, other = lists.tile, lists.block
    index, count = lists.index.int().contiguous(), lists.count.int().contiguous()
    if inverted:
        cell, other = other, cell
        index, count = _as_lists(lists.visits().transpose(-1, -2), None, lists.tiles)
    cells, others = box_counts(lists.grid, cell), box_counts(lists.grid, other)
    return Visits(
        lists.grid, (1, 1, 1), inner_box(cell, rows), inner_box(other, columns), "all", (0, 0, 0, 0), count,
        cells, cell, others, other, index, count,
    )  # fmt: skip


def inner_box(cell: Grid, limit: int) -> Grid:
    """The box of 16 to ``limit`` tokens, sides powers of two, that a kernel cuts a cell into."""
    sides = [1, 1, 1]
    for axis in (2, 1, 0):
        room = limit // math.prod(sides)
        sides[axis] = min(1 << (cell[axis] - 1).bit_length(), room)
    sides[2] *= max(1, 16 // math.prod(sides))
    return sides[0], sides[1], sides[2]
