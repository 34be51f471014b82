"""CLEAR's disc."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vidattn.layout import Grid, TokenLayout
from vidattn.lists import box_counts
from vidattn.patterns.base import Coordinates, GridPattern, split_box, tile_bounds
from vidattn.patterns.boxes import box_means
from vidattn.patterns.sizes import is_int
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

    With ``pooled`` = f, as in CLEAR's down-sampled checkpoints, every query of the grid also sees the means
    of the keys and values over cells of f x f tokens of each frame, as further keys in the same softmax,
    with no weight for how many tokens they stand for. Text does not see them. Cells at the far borders are
    means of the tokens that they hold (the authors' code asks for sizes that f divides; its cells have
    learned weights, which start as the mean). The mask then has a column for each pooled key behind the S
    columns of the sequence, and the density counts those pairs too.

    Args:
        radius: in tokens, greater than 0.
        pooled: side of the cells in tokens, at least 2; 0 for none.

    Raises:
        ValueError: a radius that is not a positive finite number, or another ``pooled``.
    """

    name = "disc"
    radius: float
    pooled: int = 0

    def __post_init__(self) -> None:
        good = isinstance(self.radius, (int, float)) and not isinstance(self.radius, bool)
        if not good or not 0 < self.radius < math.inf:
            raise ValueError(f"radius={self.radius!r}: must be a number of tokens greater than 0")
        if self.radius == int(self.radius):
            object.__setattr__(self, "radius", int(self.radius))
        if not is_int(self.pooled) or self.pooled < 0 or self.pooled == 1:
            raise ValueError(f"pooled={self.pooled!r}: must be 0 or an integer of at least 2")
        # made here, since graphs cannot make patterns
        object.__setattr__(self, "_bare", Disc(self.radius) if self.pooled else self)
        super().__post_init__()

    @property
    def bare(self) -> Disc:
        """The disc without pooled keys."""
        bare: Disc = self._bare  # type: ignore[attr-defined]
        return bare

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

    def pooled_keys(self, grid: Grid) -> int:
        """Number of pooled keys."""
        return math.prod(box_counts(grid, (1, self.pooled, self.pooled))) if self.pooled else 0

    def pool(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """The pooled keys or values of (B, S, H, D): (B, ``pooled_keys``, H, D)."""
        inside = tokens[:, layout.text_before : layout.text_before + layout.grid_tokens]
        accum = torch.promote_types(tokens.dtype, torch.float32)
        return box_means(inside, layout.grid, (1, self.pooled, self.pooled), accum).to(tokens.dtype)

    @property
    def text_sees_extra(self) -> bool:
        return not self.pooled

    def mask(self, layout: TokenLayout) -> Tensor:
        """bool (S, S + pooled keys) on the CPU; (B, S, S + pooled keys) for ``text_valid`` of B > 1 items."""
        mask = super().mask(layout)
        if not self.pooled:
            return mask
        seen = torch.zeros(*mask.shape[:-1], self.pooled_keys(layout.grid), dtype=torch.bool)
        seen[..., layout.text_before : layout.text_before + layout.grid_tokens, :] = True
        return torch.cat([mask, seen], -1)

    def density(self, layout: TokenLayout) -> float:
        """Pairs that the mask allows, those with pooled keys too, over S x S."""
        pooled = layout.grid_tokens * self.pooled_keys(layout.grid)
        return super().density(layout) + pooled / layout.tokens**2

    def visited(self, layout: TokenLayout) -> float:
        return super().visited(layout) + self.pooled_keys(layout.grid) / layout.grid_tokens

    def covers(self, grid: Grid) -> bool:
        return not self.pooled and (grid[1] - 1) ** 2 + (grid[2] - 1) ** 2 <= self._limit

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
