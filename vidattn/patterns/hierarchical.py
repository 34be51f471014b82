"""Attention in parts of the grid, near and far and on a coarser grid, and sums of such attentions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from vidattn.layout import Grid, TokenLayout
from vidattn.lists import box_counts
from vidattn.patterns.base import Coordinates, GridPattern, pairs_with_text
from vidattn.patterns.full import Full
from vidattn.patterns.sizes import Size, normal_size, per_axis
from vidattn.plan import KeyBox, Plan, Tile, ranges

POOLED = {"close": 1, "remote": 1, "coarse": 2, "global": 4}
"""The branches, and the side of the cells whose means they attend among."""


@dataclass(frozen=True)
class Branch:
    """One attention of a sum: ``pattern`` among the means of cells of ``pool`` x ``pool`` tokens of each
    frame.
    """

    pattern: GridPattern
    pool: int
    weight: float

    def layout(self, layout: TokenLayout) -> TokenLayout:
        """The layout of the branch: the grid of cells, and the same text."""
        return replace(layout, grid=box_counts(layout.grid, (1, self.pool, self.pool)))


@dataclass(frozen=True)
class Hierarchical(GridPattern):
    """UltraGen's and T3-Video's decompositions: attention in parts of the grid, and weighted sums of several.

    ``branches`` names one or more, joined by "+":

    * ``close``: contiguous windows, ``parts`` of them along each axis, as equal as can be.
    * ``remote``: the tokens whose place on each axis leaves the same remainder modulo ``parts``.
    * ``coarse``: windows again, half as many (rounded up) along h and w, among the means of cells of 2x2
      tokens.
    * ``global``: every cell of 4x4 tokens sees every other.

    T3-Video (arXiv 2512.13492) is ``close+remote`` with equal weights, exactly, where the parts divide the
    grid as its own do: (21, 1, 1), (1, 17, 30), (1, 8, 40), (3, 17, 8), (7, 8, 6), by layer modulo 5, on
    21x136x240 tokens.

    UltraGen (arXiv 2510.18775) alternates parts (1, 4, 4) and (1, 5, 5) by layer. Its local attention is
    ``close``, exactly on sizes that the parts divide (its code resizes the features of others); positions
    that start anew in each window are the model's matter. All of it is ``close+coarse+global``: means,
    attention of the means among themselves, and bilinear resizing back, which is what its layers are before
    training; it pools features ahead of the projections with learned weights, and its weights are learned
    gates.

    A sum of attentions has no mask and no log-sum-exp of its own; its density is the sum of its branches'.
    Text sees all and is seen by all, in every branch; what text itself sees comes from the first branch.

    Args:
        parts: along (t, h, w), (h, w) or an int; at most the grid's extents.
        branches: names joined by "+", each at most once; the first is "close" or "remote".
        weights: one for each branch, with the sum 1; equal when None.

    Raises:
        ValueError: any other value.
    """

    name = "hierarchical"
    parts: Size = (1, 4, 4)
    branches: str = "close"
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", normal_size(self.parts, "parts"))
        names = self.branches.split("+") if isinstance(self.branches, str) else [""]
        known = set(names) <= set(POOLED) and len(set(names)) == len(names)
        if not known or names[0] not in ("close", "remote"):
            raise ValueError(
                f"branches={self.branches!r}: join some of {', '.join(POOLED)} by '+', the first of them"
                " 'close' or 'remote'"
            )
        if self.weights is not None:
            given: Any = (self.weights,) if isinstance(self.weights, (int, float)) else self.weights
            numbers = isinstance(given, (tuple, list)) and all(isinstance(w, (int, float)) for w in given)
            if not numbers or len(given) != len(names) or not math.isclose(sum(given), 1, abs_tol=1e-6):
                raise ValueError(f"weights={self.weights!r}: give {len(names)} numbers with the sum 1")
            object.__setattr__(self, "weights", tuple(float(w) for w in given))
        # made here, since graphs cannot make patterns
        object.__setattr__(self, "_parted", self._make_branches(names))
        super().__post_init__()

    @property
    def is_sum(self) -> bool:
        """There are several branches."""
        return "+" in self.branches

    @property
    def parted(self) -> tuple[Branch, ...]:
        """The attentions of the sum."""
        branches: tuple[Branch, ...] = self._parted  # type: ignore[attr-defined]
        return branches

    def _make_branches(self, names: list[str]) -> tuple[Branch, ...]:
        if len(names) == 1:
            return (Branch(self, 1, 1.0),)
        t, h, w = per_axis(self.parts, 1)
        patterns: dict[str, GridPattern] = {
            "close": Hierarchical(self.parts, "close"),
            "remote": Hierarchical(self.parts, "remote"),
            "coarse": Hierarchical((t, -(-h // 2), -(-w // 2))),
            "global": Full(),
        }
        weights = self.weights or (1 / len(names),) * len(names)
        return tuple(Branch(patterns[n], POOLED[n], w) for n, w in zip(names, weights, strict=True))

    def allowed(self, query: Coordinates, key: Coordinates, grid: Grid) -> Tensor:
        self._single("mask")
        near = []
        for q, k, n, parts in zip(query, key, grid, self._parts(grid), strict=True):
            if self.branches == "close":
                near.append(
                    torch.div(q * parts, n, rounding_mode="floor")
                    == torch.div(k * parts, n, rounding_mode="floor")
                )
            else:
                near.append(q % parts == k % parts)
        return near[0] & near[1] & near[2]

    def mask(self, layout: TokenLayout) -> Tensor:
        """bool (S, S) on the CPU; (B, S, S) when the layout has ``text_valid`` for B > 1 items.

        Raises:
            ValueError: there are several branches; ask for their masks.
        """
        self._single("mask")
        return super().mask(layout)

    def density(self, layout: TokenLayout) -> float:
        """Pairs of all branches, over S x S."""
        pairs = 0.0
        for branch in self.parted:
            inner = branch.layout(layout)
            pairs += pairs_with_text(branch.pattern.grid_pairs(inner.grid), inner)
        return pairs / layout.tokens**2

    def visited(self, layout: TokenLayout) -> float:
        pairs = sum(b.pattern.plan(b.layout(layout)).visited_pairs for b in self.parted)
        return pairs / layout.grid_tokens**2

    def grid_pairs(self, grid: Grid) -> int:
        if not self.is_sum:
            return math.prod(sum(len(run) ** 2 for run in runs) for runs in self._runs(grid))
        inner = [(b, b.layout(TokenLayout(grid)).grid) for b in self.parted]
        return sum(branch.pattern.grid_pairs(cells) for branch, cells in inner)

    def covers(self, grid: Grid) -> bool:
        return not self.is_sum and math.prod(self._parts(grid)) == 1

    def default_tile(self, grid: Grid) -> Grid:
        return (4, 8, 8) if grid[1] > 1 else (1, 1, 128)

    def plan(
        self, layout: TokenLayout, tile: Iterable[int] | None = None, key_tile: Iterable[int] | None = None
    ) -> Plan:
        """The plan of a single branch; arguments as for every pattern.

        Raises:
            ValueError: there are several branches; ask for their plans.
        """
        self._single("plan")
        return super().plan(layout, tile, key_tile)

    def make_plan(self, grid: Grid, tile: Grid, key_tile: Grid | None) -> Plan:
        step = (1, 1, 1) if self.branches == "close" else self._parts(grid)
        tiles = []
        for runs in product(*self._runs(grid)):
            boxes = tuple(
                KeyBox(start, size, True) for start, size in _cut(runs, key_tile or (max(grid),) * 3)
            )
            tiles += [Tile(start, size, boxes) for start, size in _cut(runs, tile)]
        return Plan(grid, tile, step, tuple(tiles))

    def _single(self, what: str) -> None:
        if self.is_sum:
            raise ValueError(
                f"{self}: a sum of attentions has no {what} of its own: ask those of its branches"
            )

    def _parts(self, grid: Grid) -> Grid:
        t, h, w = per_axis(self.parts, 1)
        return min(t, grid[0]), min(h, grid[1]), min(w, grid[2])

    def _runs(self, grid: Grid) -> list[list[range]]:
        """The parts of each axis."""
        axes = []
        for n, parts in zip(grid, self._parts(grid), strict=True):
            if self.branches == "close":
                edges = [-(-i * n // parts) for i in range(parts + 1)]
                axes.append([range(a, b) for a, b in pairwise(edges)])
            else:
                axes.append([range(i, n, parts) for i in range(parts)])
        return axes


def _cut(runs: tuple[range, ...], piece: Grid) -> list[tuple[Grid, Grid]]:
    """(start, size) of the pieces of a box of three runs, of at most ``piece``."""
    cuts = [[run[a:b] for a, b in ranges(0, len(run), n)] for run, n in zip(runs, piece, strict=True)]
    return [((t[0], y[0], x[0]), (len(t), len(y), len(x))) for t in cuts[0] for y in cuts[1] for x in cuts[2]]
