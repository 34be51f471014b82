"""Sliding tile attention."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from vidattn.layout import Grid
from vidattn.patterns.base import Coordinates
from vidattn.patterns.groups import Box, GroupPattern
from vidattn.patterns.sizes import Size, normal_size, per_axis


def _reach(window: int, count: int) -> int:
    """Tiles to each side of the centre; at least ``count`` where the window spans the axis."""
    reach = window // 2
    return reach if 2 * reach + 1 < count else count


@dataclass(frozen=True)
class SlidingTile(GroupPattern):
    """STA (Zhang et al., arXiv 2502.04507): a window that moves in steps of whole tiles, inward at borders.

    A query's window is centred on its tile, the centre kept window // 2 tiles from the border, and spans the
    tiles at most window // 2 away on every axis, as in the authors' code (an even window counts as the next
    odd one). Grids that the tile does not divide have smaller tiles at the far border.

    Args:
        tile: tokens of a tile, (t, h, w), (h, w) or an int.
        window: tiles of the window, likewise.

    Raises:
        ValueError: a size that is no positive integer or tuple of them.
    """

    name = "sta"
    tile: Size = (6, 8, 8)
    window: Size = (3, 3, 3)

    def __post_init__(self) -> None:
        for field in ("tile", "window"):
            object.__setattr__(self, field, normal_size(getattr(self, field), field))
        super().__post_init__()

    def group_size(self, grid: Grid) -> Grid:
        t, h, w = per_axis(self.tile, grid[0])
        return min(t, grid[0]), min(h, grid[1]), min(w, grid[2])

    def _reaches(self, grid: Grid) -> Grid:
        counts = self.counts(grid)
        t, h, w = (_reach(k, n) for k, n in zip(per_axis(self.window, counts[0]), counts, strict=True))
        return t, h, w

    def allowed(self, query: Coordinates, key: Coordinates, grid: Grid) -> Tensor:
        groups = (self.groups_of(query, grid), self.groups_of(key, grid))
        near = []
        for q, k, reach, count in zip(*groups, self._reaches(grid), self.counts(grid), strict=True):
            centre = q.clamp(min(reach, count - 1), max(count - 1 - reach, 0)) if reach < count else q
            near.append((centre - k).abs() <= reach)
        return near[0] & near[1] & near[2]

    def covers(self, grid: Grid) -> bool:
        return all(
            reach >= count for reach, count in zip(self._reaches(grid), self.counts(grid), strict=True)
        )

    def key_boxes(self, lo: Grid, hi: Grid, grid: Grid) -> Iterable[Box]:
        edges = []
        sizes = zip(lo, self.group_size(grid), self._reaches(grid), self.counts(grid), grid, strict=True)
        for start, size, reach, count, extent in sizes:
            if reach >= count:
                edges.append((0, extent))
                continue
            centre = min(max(start // size, reach), count - 1 - reach)
            edges.append(((centre - reach) * size, min((centre + reach + 1) * size, extent)))
        t, y, x = edges
        yield (t[0], y[0], x[0]), (t[1], y[1], x[1])
