"""Patterns of whole groups of tokens: every query of a group shares one set of groups as keys; nothing is
masked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidattn.layout import Grid
from vidattn.patterns.base import Coordinates, GridPattern, split_box, tile_bounds
from vidattn.patterns.sizes import Size, is_int, normal_size, per_axis
from vidattn.plan import KeyBox, Plan, Tile

Range = tuple[int, int]
Box = tuple[Grid, Grid]
"""(start, stop) on the three axes."""


class GroupPattern(GridPattern):
    """Base of the patterns on a partition of the grid into boxes; those at the far border are smaller."""

    def group_size(self, grid: Grid) -> Grid:
        """Tokens of an inner group, cut to the grid."""
        raise NotImplementedError

    def key_boxes(self, lo: Grid, hi: Grid, grid: Grid) -> Iterable[Box]:
        """Disjoint boxes of the keys that the queries of the group [lo, hi) see."""
        raise NotImplementedError

    def counts(self, grid: Grid) -> Grid:
        """Number of groups on each axis."""
        t, h, w = (-(-n // s) for n, s in zip(grid, self.group_size(grid), strict=True))
        return t, h, w

    def groups_of(self, place: Coordinates, grid: Grid) -> Coordinates:
        """Which group each token is in, per axis."""
        sizes = self.group_size(grid)
        t, y, x = (torch.div(c, s, rounding_mode="floor") for c, s in zip(place, sizes, strict=True))
        return t, y, x

    def grid_pairs(self, grid: Grid) -> int:
        total = 0
        for lo, hi in tile_bounds(grid, self.group_size(grid)):
            total += volume(lo, hi) * sum(volume(*box) for box in self.key_boxes(lo, hi, grid))
        return total

    def default_tile(self, grid: Grid) -> Grid:
        return self.group_size(grid)

    def make_plan(self, grid: Grid, tile: Grid, key_tile: Grid | None) -> Plan:
        size = self.group_size(grid)
        if any(s % t for s, t in zip(size, tile, strict=True)):
            raise ValueError(f"tile={tile}: must divide the group size {size}, to lie in one group")
        tiles = []
        for start, stop in tile_bounds(grid, tile):
            lo, hi = _group_around(start, size, grid)
            boxes: list[KeyBox] = []
            for box in self.key_boxes(lo, hi, grid):
                boxes += split_box(*box, key_tile, True)
            extent = (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2])
            tiles.append(Tile(start, extent, tuple(boxes)))
        return Plan(grid, tile, (1, 1, 1), tuple(tiles))


def volume(lo: Grid, hi: Grid) -> int:
    """Tokens of the box [lo, hi)."""
    return math.prod(b - a for a, b in zip(lo, hi, strict=True))


def _group_around(place: Grid, size: Grid, grid: Grid) -> Box:
    t, y, x = (a // s * s for a, s in zip(place, size, strict=True))
    return (t, y, x), (min(t + size[0], grid[0]), min(y + size[1], grid[1]), min(x + size[2], grid[2]))


VIDEO_GROUP = (4, 8, 8)
IMAGE_GROUP = (1, 16, 16)


@dataclass(frozen=True)
class Groups(GroupPattern):
    """GRAT (Ren et al., arXiv 2505.14687): non-overlapping groups; those at the far border are smaller.

    ``region="blocks"`` (GRAT-B): the groups at most ``reach`` away on every axis. ``region="cross"``
    (GRAT-X): ``cross="planes"`` is the released code's union of planes (same group index along t, or h, or
    w), ``"lines"`` the reading that a group index differs along at most one axis. An image has no t axis to
    share, so with one group along t both mean the same row or the same column.

    Args:
        size: tokens of a group, (t, h, w), (h, w) or an int. The default, the authors' (4, 8, 8), stands for
            (1, 16, 16) on a single frame: 256 tokens as well.
        region: "blocks" or "cross".
        reach: groups, for "blocks".
        cross: "planes" or "lines", for "cross".

    Raises:
        ValueError: any other value.
    """

    name = "groups"
    size: Size = VIDEO_GROUP
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
        size = self.size
        if size == VIDEO_GROUP and grid[0] == 1:
            size = IMAGE_GROUP
        t, h, w = per_axis(size, grid[0])
        return min(t, grid[0]), min(h, grid[1]), min(w, grid[2])

    def allowed(self, query: Coordinates, key: Coordinates, grid: Grid) -> Tensor:
        groups = (self.groups_of(query, grid), self.groups_of(key, grid))
        if self.region == "blocks":
            t, y, x = ((q - k).abs() <= self.reach for q, k in zip(*groups, strict=True))
            return t & y & x
        t, y, x = (q == k for q, k in zip(*groups, strict=True))
        if self.counts(grid)[0] == 1:
            return (y | x) & t
        if self.cross == "planes":
            return t | y | x
        return (t & y) | (t & x) | (y & x)

    def covers(self, grid: Grid) -> bool:
        counts = self.counts(grid)
        if self.region == "blocks":
            return all(n - 1 <= self.reach for n in counts)
        if self.cross == "planes" or counts[0] == 1:
            return counts[1] == 1 or counts[2] == 1
        return sum(n > 1 for n in counts) <= 1

    def key_boxes(self, lo: Grid, hi: Grid, grid: Grid) -> Iterable[Box]:
        if self.region == "blocks":
            size = self.group_size(grid)
            t, y, x = (
                (max(0, a - self.reach * s), min(n, a + (self.reach + 1) * s))
                for a, s, n in zip(lo, size, grid, strict=True)
            )
            yield (t[0], y[0], x[0]), (t[1], y[1], x[1])
            return
        own, rest, whole = [], [], []
        for a, b, n in zip(lo, hi, grid, strict=True):
            own.append([(a, b)])
            rest.append([r for r in ((0, a), (b, n)) if r[0] < r[1]])
            whole.append([(0, n)])
        for ts, ys, xs in self._cross_parts(own, rest, whole, self.counts(grid)[0] == 1):
            for t, y, x in ((t, y, x) for t in ts for y in ys for x in xs):
                yield (t[0], y[0], x[0]), (t[1], y[1], x[1])

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
