"""What the drawings count: pairs, tiles, and the tokens of a box by their raster number."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vidattn.drawing.examples import Visits, check_drawable, example_visits, whole_mask
from vidattn.layout import Grid, TokenLayout
from vidattn.patterns import Pattern
from vidattn.patterns.base import GridPattern
from vidattn.plan import KeyBox, Plan, Tile

# Beyond this many tokens the matrix is drawn from a sample of its rows.
_EXACT_TOKENS = 10_000


@dataclass(frozen=True)
class Figures:
    """What a pattern allows and what its plan costs.

    Args:
        density: exact share of all pairs, text included, that the pattern allows.
        grid_density: the same for pairs of grid tokens.
        visited_ratio: pairs of grid tokens that the plan's boxes hold, over those that the pattern allows.
        tiles: query tiles of the plan.
        boxes: key boxes of the plan.
        full_boxes: those that need no element mask.
    """

    density: float
    grid_density: float
    visited_ratio: float
    tiles: int
    boxes: int
    full_boxes: int


def figures_of(pattern: Pattern, layout: TokenLayout, plan: Plan | None = None) -> Figures:
    """The numbers that the drawing shows.

    Raises:
        ValueError: a pattern that cannot be drawn on this layout.
    """
    check_drawable(pattern, layout)
    if not isinstance(pattern, GridPattern):
        return _example_figures(pattern, layout)
    plan = plan or pattern.plan(layout)
    boxes = [box for tile in plan.tiles for box in tile.boxes]
    return Figures(
        density=pattern.density(layout),
        grid_density=pattern.density(TokenLayout(layout.grid)),
        visited_ratio=plan.visited_pairs / pattern.grid_pairs(layout.grid),
        tiles=len(plan.tiles),
        boxes=len(boxes),
        full_boxes=sum(box.full for box in boxes),
    )


def _example_figures(pattern: Pattern, layout: TokenLayout) -> Figures:
    """The same for patterns without a plan, by counting."""
    visits, mask = example_visits(pattern, layout), whole_mask(pattern, layout)
    inside = slice(layout.text_before, layout.text_before + layout.grid_tokens)
    visited = sum(len(queries) * sum(len(keys) for keys, _ in boxes) for queries, boxes in visits)
    full = [full for _, boxes in visits for _, full in boxes]
    return Figures(
        density=mask.double().mean().item(),
        grid_density=mask[inside, inside].double().mean().item(),
        visited_ratio=visited / int(mask[inside, inside].sum()),
        tiles=len(visits),
        boxes=len(full),
        full_boxes=sum(full),
    )


def visits_of(pattern: Pattern, layout: TokenLayout, query: int) -> Visits:
    """The tile that holds the query (a grid token's number): its queries and key boxes."""
    if isinstance(pattern, GridPattern):
        plan = pattern.plan(layout)
        tile = tile_of(plan, query)
        return plan.tokens_of(tile), [(plan.tokens_of(box), box.full) for box in tile.boxes]
    return next(visits for visits in example_visits(pattern, layout) if bool((visits[0] == query).any()))


def matrix(pattern: Pattern, layout: TokenLayout, side: int) -> tuple[np.ndarray, bool]:
    """The share of allowed pairs under each pixel, and whether every row was counted."""
    total, exact = layout.tokens, layout.tokens <= _EXACT_TOKENS
    edges = np.linspace(0, total, side + 1).astype(int)
    rows = np.zeros((side, side))
    for i, (start, stop) in enumerate(pairwise(edges)):
        numbers = torch.arange(start, stop) if exact else torch.tensor([(start + stop) // 2])
        summed = np.concatenate(
            [[0.0], full_rows(pattern, layout, numbers).double().mean(0).cumsum(0).numpy()]
        )
        rows[i] = (summed[edges[1:]] - summed[edges[:-1]]) / np.diff(edges)
    return rows, exact


def full_rows(pattern: Pattern, layout: TokenLayout, numbers: Tensor) -> Tensor:
    """Rows of the mask for sequence positions: bool (len(numbers), S)."""
    if not isinstance(pattern, GridPattern):
        return whole_mask(pattern, layout)[numbers]
    rows = torch.ones(len(numbers), layout.tokens, dtype=torch.bool)
    first, count = layout.text_before, layout.grid_tokens
    in_grid = (numbers >= first) & (numbers < first + count)
    rows[in_grid, first : first + count] = sees(pattern, layout.grid, numbers[in_grid] - first)
    return rows


def sees(pattern: GridPattern, grid: Grid, queries: Tensor) -> Tensor:
    """bool (queries, grid tokens)"""
    row, column = queries[:, None], torch.arange(volume(grid))[None]
    seen = pattern.allowed(_place(row, grid), _place(column, grid), grid)
    return seen.expand(len(queries), volume(grid))


def _place(number: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    return number // (grid[1] * grid[2]), number // grid[2] % grid[1], number % grid[2]


def number_of(place: Grid, grid: Grid) -> int:
    return (place[0] * grid[1] + place[1]) * grid[2] + place[2]


def tokens_of(box: Tile | KeyBox, plan: Plan) -> Tensor:
    """Raster numbers of a box. The plan's grid may be a view of the layout's, with the same token order."""
    return plan.tokens_of(box)


def tile_of(plan: Plan, number: int) -> Tile:
    place = tuple(int(axis) for axis in _place(torch.tensor(number), plan.grid))
    return next(tile for tile in plan.tiles if _holds(tile, place, plan.step))


def _holds(tile: Tile, place: tuple[int, ...], step: Grid) -> bool:
    return all(at in _axis(tile, axis, step) for axis, at in enumerate(place))


def _axis(tile: Tile, axis: int, step: Grid) -> range:
    return range(tile.start[axis], tile.start[axis] + tile.size[axis] * step[axis], step[axis])


def volume(size: Grid) -> int:
    return size[0] * size[1] * size[2]
