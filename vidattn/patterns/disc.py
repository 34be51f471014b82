"""CLEAR's disc."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from vidattn.layout import Grid
from vidattn.patterns.base import Coordinates, GridPattern, split_box, tile_bounds
from vidattn.plan import KeyBox, Plan, Tile, ranges


def _gap(a0: int, a1: int, b0: int, b1: int) -> int:
    """Least distance between a point of [a0, a1) and one of [b0, b1)."""
    return max(0, b0 - (a1 - 1), a0 - (b1 - 1))


def _reach(a0: int, a1: int, b0: int, b1: int) -> int:
    """Greatest distance between a point of [a0, a1) and one of [b0, b1)."""
    return max(b1 - 1 - a0, a1 - 1 - b0)


@dataclass(frozen=True)
class Disc(GridPattern):
    """Keys nearer than ``radius``: dy^2 + dx^2 < radius^2, strictly; clipped at borders; all frames.

    CLEAR (Liu et al., arXiv 2412.16112), whose released code uses the strict comparison; it reproduces the
    paper's 63.5 and 154.1 GFLOPs for radius 8 and 32 at 1024 px.

    Args:
        radius: in tokens, greater than 0.

    Raises:
        ValueError: a radius that is not a positive finite number.
    """

    name = "disc"
    radius: float

    def __post_init__(self) -> None:
        good = isinstance(self.radius, (int, float)) and not isinstance(self.radius, bool)
        if not good or not 0 < self.radius < math.inf:
            raise ValueError(f"radius={self.radius!r}: must be a number of tokens greater than 0")
        if self.radius == int(self.radius):
            object.__setattr__(self, "radius", int(self.radius))
        super().__post_init__()

    @property
    def _limit(self) -> int:
        """The greatest squared distance that is inside; distances are integers."""
        return math.ceil(self.radius * self.radius) - 1

    def allowed(self, query: Coordinates, key: Coordinates, grid: Grid) -> Tensor:
        # adding t's difference times zero only makes the result broadcast over frames
        same_shape = (query[0] - key[0]) * 0
        return (query[1] - key[1]) ** 2 + (query[2] - key[2]) ** 2 + same_shape <= self._limit

    def grid_pairs(self, grid: Grid) -> int:
        frames, height, width = grid
        total = 0
        for dy in range(min(height - 1, math.isqrt(self._limit)) + 1):
            dx = min(width - 1, math.isqrt(self._limit - dy * dy))
            # pairs at distance 0..dx along x; both signs beyond 0
            row = width + 2 * sum(width - d for d in range(1, dx + 1))
            total += (1 if dy == 0 else 2) * (height - dy) * row
        return frames * frames * total

    def covers(self, grid: Grid) -> bool:
        return (grid[1] - 1) ** 2 + (grid[2] - 1) ** 2 <= self._limit

    def default_tile(self, grid: Grid) -> Grid:
        return (1, 8, 8) if grid[1] > 1 else (1, 1, 64)

    def make_plan(self, grid: Grid, tile: Grid, key_tile: Grid | None) -> Plan:
        tiles = []
        for start, stop in tile_bounds(grid, tile):
            boxes: list[KeyBox] = []
            for y0, y1 in ranges(0, grid[1], key_tile[1] if key_tile else 4):
                boxes += self._band(start, stop, y0, y1, grid, key_tile)
            size = (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2])
            tiles.append(Tile(start, size, tuple(boxes)))
        return Plan(grid, tile, (1, 1, 1), tuple(tiles))

    def _band(
        self, start: Grid, stop: Grid, y0: int, y1: int, grid: Grid, key_tile: Grid | None
    ) -> list[KeyBox]:
        """Boxes of the key rows [y0, y1), as narrow as the disc is there."""
        left = self._limit - _gap(start[1], stop[1], y0, y1) ** 2
        if left < 0:
            return []
        dx = math.isqrt(left)
        x0, x1 = max(0, start[2] - dx), min(grid[2], stop[2] + dx)
        made = []
        for box in split_box((0, y0, x0), (grid[0], y1, x1), key_tile, False):
            ends = box.start[2], box.start[2] + box.size[2]
            far = _reach(start[1], stop[1], y0, y1) ** 2 + _reach(start[2], stop[2], *ends) ** 2
            near = _gap(start[1], stop[1], y0, y1) ** 2 + _gap(start[2], stop[2], *ends) ** 2
            if near <= self._limit:
                made.append(KeyBox(box.start, box.size, far <= self._limit))
        return made
