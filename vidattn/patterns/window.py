"""Windows that are a product of one interval per axis: Neighborhood and SlidingWindow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from vidattn.layout import Grid
from vidattn.patterns.axis import AxisRule
from vidattn.patterns.base import Coordinates, GridPattern
from vidattn.patterns.sizes import Size, normal_size, per_axis
from vidattn.plan import KeyBox, Plan, Tile, ranges


@dataclass(frozen=True)
class _AxisTile:
    """One axis of a tile: its queries, the pieces of the union of their windows (start, size, full), and each
    query's
    window relative to the union, which decides the element mask."""

    start: int
    size: int
    keys: tuple[tuple[int, int, bool], ...]
    windows: tuple[tuple[int, int], ...]


def _axis_tiles(rule: AxisRule, group: int, tile: int, key_tile: int | None) -> list[_AxisTile]:
    count, step = rule.group_length(group), rule.dilation
    position = torch.arange(count)
    first, stop = (edge.tolist() for edge in rule.interval(position, count))
    made = []
    for p0, p1 in ranges(0, count, tile):
        # both edges never decrease along the axis, so the outer ones give the union and the inner ones the
        # intersection
        union, common = (first[p0], stop[p1 - 1]), (first[p1 - 1], stop[p0])
        pieces = ranges(*union, key_tile or count)
        keys = tuple((group + a * step, b - a, common[0] <= a and b <= common[1]) for a, b in pieces)
        windows = tuple((a - union[0], b - union[0]) for a, b in zip(first[p0:p1], stop[p0:p1], strict=True))
        made.append(_AxisTile(group + p0 * step, p1 - p0, keys, windows))
    return made


class WindowPattern(GridPattern):
    """Base of the patterns that are one :class:`AxisRule` per axis."""

    def rules(self, grid: Grid) -> tuple[AxisRule, AxisRule, AxisRule]:
        """The rule of each axis, cut to the grid."""
        raise NotImplementedError

    def allowed(self, query: Coordinates, key: Coordinates, grid: Grid) -> Tensor:
        t, y, x = (r.allowed(q, k) for r, q, k in zip(self.rules(grid), query, key, strict=True))
        return t & y & x

    def grid_pairs(self, grid: Grid) -> int:
        return math.prod(rule.pairs() for rule in self.rules(grid))

    def covers(self, grid: Grid) -> bool:
        return all(rule.whole for rule in self.rules(grid))

    def default_tile(self, grid: Grid) -> Grid:
        if grid[0] == 1 and grid[1] == 1:
            return 1, 1, 64
        # where the window spans all frames, frames in a tile add no keys but neither do they help: keep tiles
        # flat
        flat = self.rules(grid)[0].whole or self.rules(grid)[0].window == 1
        return (1, 8, 8) if flat else (4, 4, 4)

    def make_plan(self, grid: Grid, tile: Grid, key_tile: Grid | None) -> Plan:
        rules = self.rules(grid)
        tiles = []
        for groups in product(*(range(rule.dilation) for rule in rules)):
            axes = [
                _axis_tiles(rule, group, tile[i], key_tile[i] if key_tile else None)
                for i, (rule, group) in enumerate(zip(rules, groups, strict=True))
            ]
            tiles += [self._tile(t, y, x) for t in axes[0] for y in axes[1] for x in axes[2]]
        return Plan(grid, tile, (rules[0].dilation, rules[1].dilation, rules[2].dilation), tuple(tiles))

    @staticmethod
    def _tile(t: _AxisTile, y: _AxisTile, x: _AxisTile) -> Tile:
        boxes = tuple(
            KeyBox((a[0], b[0], c[0]), (a[1], b[1], c[1]), a[2] and b[2] and c[2])
            for a in t.keys
            for b in y.keys
            for c in x.keys
        )
        kind = (t.windows, y.windows, x.windows)
        return Tile((t.start, y.start, x.start), (t.size, y.size, x.size), boxes, kind)


@dataclass(frozen=True)
class Neighborhood(WindowPattern):
    """Neighborhood attention: each query sees the window around it, moved inward at borders so that it is
    never cut.

    Exactly NATTEN's rule (Hassani et al., arXiv 2204.07143; dilation 2209.15001; stride 2504.16922), with
    windows of 1 allowed. Windows larger than the grid are cut to it.

    Args:
        window: size in tokens, an int (h = w, the whole of t), (h, w) or (t, h, w).
        stride: queries that share one window, per axis; at most the window. An int counts for h and w.
        dilation: distance between the keys of a window, per axis. An int counts for h and w.
        causal: no keys behind the query, for all axes or as (t, h, w).

    Raises:
        ValueError: a size under 1 or of another form, or a stride larger than its window.

    Example:
        >>> Neighborhood((17, 17)).to_text()
        'neighborhood:window=17x17'
    """

    name = "neighborhood"
    window: Size
    stride: Size = 1
    dilation: Size = 1
    causal: bool | tuple[bool, ...] = False

    def __post_init__(self) -> None:
        for field in ("window", "stride", "dilation"):
            object.__setattr__(self, field, normal_size(getattr(self, field), field))
        causal = self.causal
        if not isinstance(causal, bool):
            if (
                not isinstance(causal, (tuple, list))
                or len(causal) != 3
                or not all(c in (0, 1) for c in causal)
            ):
                raise ValueError(f"causal={causal!r}: give True, False or three of them for (t, h, w)")
            object.__setattr__(self, "causal", tuple(bool(c) for c in causal))
        free = 2**62  # an axis that the window leaves out is as long as it likes
        for axis, stride, window in zip(
            "thw", per_axis(self.stride, 1), per_axis(self.window, free), strict=True
        ):
            if stride > window:
                raise ValueError(f"stride={self.stride!r}: larger than window={self.window!r} on axis {axis}")
        super().__post_init__()

    def rules(self, grid: Grid) -> tuple[AxisRule, AxisRule, AxisRule]:
        causal = (self.causal,) * 3 if isinstance(self.causal, bool) else self.causal
        sizes = zip(
            grid,
            per_axis(self.window, grid[0]),
            per_axis(self.stride, 1),
            per_axis(self.dilation, 1),
            causal,
            strict=True,
        )
        t, y, x = (AxisRule.cut(*axis) for axis in sizes)
        return t, y, x


@dataclass(frozen=True)
class SlidingWindow(WindowPattern):
    """FreeSwim's inward window: each query keeps the receptive field of the size that the model was trained
    at.

    The window has 2*(base//2) + 1 tokens per spatial axis, moved inward at borders, and spans all frames; the
    set equals a neighborhood of that odd size (arXiv 2511.14712).

    Args:
        base: (h, w) of the training grid in tokens, or an int for both.
        size: the window itself as (h, w), when it should not follow from ``base``.

    Raises:
        ValueError: sizes that are no positive integers, or with a t axis.
    """

    name = "sliding"
    base: Size
    size: Size | None = None

    def __post_init__(self) -> None:
        for field in ("base", "size"):
            value = getattr(self, field)
            if value is None and field == "size":
                continue
            value = normal_size(value, field)
            if isinstance(value, tuple) and len(value) != 2:
                raise ValueError(f"{field}={value!r}: give an integer or (h, w); the window spans all frames")
            object.__setattr__(self, field, value)
        super().__post_init__()

    def window(self) -> tuple[int, int]:
        """(h, w) of the window in tokens, before it is cut to a grid."""
        if self.size is not None:
            return per_axis(self.size, 1)[1:]
        _, height, width = per_axis(self.base, 1)
        return 2 * (height // 2) + 1, 2 * (width // 2) + 1

    def rules(self, grid: Grid) -> tuple[AxisRule, AxisRule, AxisRule]:
        height, width = self.window()
        t, y, x = (
            AxisRule.cut(n, w, 1, 1, False) for n, w in zip(grid, (grid[0], height, width), strict=True)
        )
        return t, y, x
