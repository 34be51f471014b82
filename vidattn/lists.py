"""Which key blocks each query tile visits, as tensors: for patterns whose pairs are not one box a tile.

Tiles and blocks are boxes of the token grid, cut at its ends and numbered in raster order. The tensors live
on the inputs' device and are made there, so that a call never waits for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vidattn.layout import Grid


@dataclass(frozen=True, eq=False)
class BlockLists:
    """The key blocks that each query tile visits; every pair of a visited block counts.

    Args:
        grid: (T, H, W) in tokens.
        tile: (t, h, w) of a query tile.
        block: (t, h, w) of a key block.
        index: int32 (B | 1, H | 1, query tiles, slots), the numbers of key blocks, each at most once a tile.
            Entries from ``count`` on are not read.
        count: int32 (B | 1, H | 1, query tiles), the slots in use.
    """

    grid: Grid
    tile: Grid
    block: Grid
    index: Tensor
    count: Tensor

    @property
    def tiles(self) -> int:
        """Number of query tiles."""
        return math.prod(box_counts(self.grid, self.tile))

    @property
    def blocks(self) -> int:
        """Number of key blocks."""
        return math.prod(box_counts(self.grid, self.block))

    def visits(self) -> Tensor:
        """bool (B | 1, H | 1, query tiles, key blocks): the lists as a table, on their device."""
        slots = self.index.shape[-1]
        used = torch.arange(slots, device=self.index.device) < self.count[..., None]
        # unused slots point behind the last block, in a column that is cut off again
        where = torch.where(used, self.index.long(), self.blocks)
        table = torch.zeros(
            *self.index.shape[:-1], self.blocks + 1, dtype=torch.bool, device=self.index.device
        )
        return table.scatter_(-1, where, True)[..., :-1]

    def mask(self) -> Tensor:
        """bool (B | 1, H | 1, N, N) over the grid's tokens: the definition, for tests and small grids."""
        rows = box_numbers(self.grid, self.tile).to(self.index.device)
        columns = box_numbers(self.grid, self.block).to(self.index.device)
        return self.visits()[..., rows, :][..., columns]


def box_counts(grid: Grid, box: Grid) -> Grid:
    """How many boxes of a shape lie along each axis of the grid, the cut ones at the end included."""
    t, h, w = ((n + b - 1) // b for n, b in zip(grid, box, strict=True))
    return t, h, w


def box_numbers(grid: Grid, box: Grid) -> Tensor:
    """For each grid token the number of the box that it is in: int64 (N,) on the CPU."""
    counts = box_counts(grid, box)
    t, y, x = (torch.arange(n) // b for n, b in zip(grid, box, strict=True))
    return ((t[:, None, None] * counts[1] + y[:, None]) * counts[2] + x).flatten()
