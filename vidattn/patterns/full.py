"""Every query sees every key."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vidattn.layout import Grid
from vidattn.patterns.base import Coordinates, GridPattern, split_box, tile_bounds
from vidattn.plan import Plan, Tile


@dataclass(frozen=True)
class Full(GridPattern):
    """Dense attention, as a pattern."""

    name = "full"

    def allowed(self, query: Coordinates, key: Coordinates, grid: Grid) -> Tensor:
        shape = torch.broadcast_shapes(*(c.shape for c in (*query, *key)))
        return torch.ones(shape, dtype=torch.bool, device=query[0].device)

    def grid_pairs(self, grid: Grid) -> int:
        return math.prod(grid) ** 2

    def covers(self, grid: Grid) -> bool:
        return True

    def default_tile(self, grid: Grid) -> Grid:
        return (1, 8, 8) if grid[1] > 1 else (1, 1, 64)

    def make_plan(self, grid: Grid, tile: Grid, key_tile: Grid | None) -> Plan:
        boxes = tuple(split_box((0, 0, 0), grid, key_tile, True))
        tiles = []
        for start, stop in tile_bounds(grid, tile):
            tiles.append(Tile(start, (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2]), boxes))
        return Plan(grid, tile, (1, 1, 1), tuple(tiles))
