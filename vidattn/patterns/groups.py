"""GRAT's groups of tokens: every query of a group shares one set of whole groups as keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vidattn.layout import Grid
from vidattn.patterns.base import Coordinates, Pattern, split_box, tile_bounds
from vidattn.patterns.sizes import Size, is_int, normal_size, per_axis
from vidattn.plan import KeyBox, Plan, Tile

Range = tuple[int, int]


@dataclass(frozen=True)
class Groups(Pattern):
    """GRAT (Ren et al., arXiv 2505.14687): non-overlapping groups; those at the far border are smaller.

    ``region="blocks"`` (GRAT-B): the groups at most ``reach`` away on every axis. ``region="cross"``
    (GRAT-X): ``cross="planes"`` is the released code's union of planes (same group index along t, or h, or
    w), ``"lines"`` the reading that a group index differs along at most one axis. An image has no t axis to
    share, so with one group along t both mean the same row or the same column.

    Args:
        size: tokens of a group, (t, h, w), (h, w) or an int; (4, 8, 8) is the authors' for video, (1, 16, 16)
            for images.
        region: "blocks" or "cross".
        reach: groups, for "blocks".
        cross: "planes" or "lines", for "cross".

    Raises:
        ValueError: any other value.
    """

    name = "groups"
    size: Size = (4, 8, 8)
    region: str = "blocks"
    reach: int = 1
    cross: str = "planes"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", normal_size(self.size, "size"))
        if self.region not in ("blocks", "cross"):
            raise ValueError(f"region={self.region!r}: must be 'blocks' or 'cross'")
        if self.cross not in ("planes", "lines"):
            raise ValueError(f"cross={self.cross!r}: must be 'planes' or 'lines'")
        if not is_int(self.reach) or self.reach < 0:
            raise ValueError(f"reach={self.reach!r}: must be an integer of at least 0")
        super().__post_init__()

    def group_size(self, grid: Grid) -> Grid:
        """Tokens of an inner group, cut to the grid."""
        t, h, w = per_axis(self.size, grid[0])
        return min(t, grid[0]), min(h, grid[1]), min(w, grid[2])

    def _counts(self, grid: Grid) -> Grid:
        t, h, w = (-(-n // s) for n, s in zip(grid, self.group_size(grid), strict=True))
        return t, h, w

    def allowed(self, query: Coordinates, key: Coordinates, grid: Grid) -> Tensor:
        size = self.group_size(grid)
        group = [
            [torch.div(c, s, rounding_mode="floor") for c, s in zip(p, size, strict=True)]
            for p in (query, key)
        ]
        if self.region == "blocks":
            t, y, x = ((q - k).abs() <= self.reach for q, k in zip(*group, strict=True))
            return t & y & x
        t, y, x = (q == k for q, k in zip(*group, strict=True))
        if self._counts(grid)[0] == 1:
            return (y | x) & t
        if self.cross == "planes":
            return t | y | x
        return (t & y) | (t & x) | (y & x)

    def covers(self, grid: Grid) -> bool:
        counts = self._counts(grid)
        if self.region == "blocks":
            return all(n - 1 <= self.reach for n in counts)
        if self.cross == "planes" or counts[0] == 1:
            return counts[1] == 1 or counts[2] == 1
        return sum(n > 1 for n in counts) <= 1

    def grid_pairs(self, grid: Grid) -> int:
        size = self.group_size(grid)
        total = 0
        for start, stop in tile_bounds(grid, size):
            keys = sum(math.prod(b.size) for b in self._boxes(start, stop, grid, None))
            total += keys * math.prod(b - a for a, b in zip(start, stop, strict=True))
        return total

    def default_tile(self, grid: Grid) -> Grid:
        return self.group_size(grid)

    def make_plan(self, grid: Grid, tile: Grid, key_tile: Grid | None) -> Plan:
        size = self.group_size(grid)
        if any(s % t for s, t in zip(size, tile, strict=True)):
            raise ValueError(
                f"tile={tile}: must divide the group size {size}, so that a tile lies in one group"
            )
        tiles = []
        for start, stop in tile_bounds(grid, tile):
            lo = tuple(a // s * s for a, s in zip(start, size, strict=True))
            hi = tuple(min(a + s, n) for a, s, n in zip(lo, size, grid, strict=True))
            boxes = tuple(self._boxes(lo, hi, grid, key_tile))  # type: ignore[arg-type]
            tiles.append(Tile(start, (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2]), boxes))
        return Plan(grid, tile, (1, 1, 1), tuple(tiles))

    def _boxes(self, lo: Grid, hi: Grid, grid: Grid, key_tile: Grid | None) -> list[KeyBox]:
        """Disjoint boxes of the keys that the group [lo, hi) sees; all are full."""
        if self.region == "blocks":
            size = self.group_size(grid)
            first = tuple(max(0, a - self.reach * s) for a, s in zip(lo, size, strict=True))
            last = tuple(min(n, a + (self.reach + 1) * s) for a, s, n in zip(lo, size, grid, strict=True))
            return split_box(first, last, key_tile, True)  # type: ignore[arg-type]
        own, rest, whole = [], [], []
        for a, b, n in zip(lo, hi, grid, strict=True):
            own.append([(a, b)])
            rest.append([r for r in ((0, a), (b, n)) if r[0] < r[1]])
            whole.append([(0, n)])
        made: list[KeyBox] = []
        for t, y, x in self._cross_parts(own, rest, whole, self._counts(grid)[0] == 1):
            for (t0, t1), (y0, y1), (x0, x1) in ((a, b, c) for a in t for b in y for c in x):
                made += split_box((t0, y0, x0), (t1, y1, x1), key_tile, True)
        return made

    def _cross_parts(
        self, own: list[list[Range]], rest: list[list[Range]], whole: list[list[Range]], image: bool
    ) -> list[tuple[list[Range], list[Range], list[Range]]]:
        """The cross as disjoint products of ranges: the group's own, the rest or the whole of each axis."""
        if image:
            return [(own[0], own[1], whole[2]), (own[0], rest[1], own[2])]
        if self.cross == "planes":
            return [
                (own[0], whole[1], whole[2]),
                (rest[0], own[1], whole[2]),
                (rest[0], rest[1], own[2]),
            ]
        return [
            (whole[0], own[1], own[2]),
            (own[0], rest[1], own[2]),
            (own[0], own[1], rest[2]),
        ]
