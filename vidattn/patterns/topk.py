"""Blocks of keys chosen by the scores of their means."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vidattn.layout import Grid, TokenLayout
from vidattn.lists import BlockLists, box_counts
from vidattn.patterns.boxes import box_means, box_sizes
from vidattn.patterns.dynamic import Choice, DynamicPattern
from vidattn.patterns.sizes import Size, is_int, normal_size, per_axis

SCORES = ("mean", "smooth", "mass")
# Scores of block pairs that exist at a time: they grow with the square of the number of blocks.
_SCORES_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class TopK(DynamicPattern):
    """For each tile of queries the key tiles that score best, chosen for every batch item and head.

    A tile pair's score is the product of the tiles' mean query and mean key. ``score`` names the published
    rules:

    * ``"mean"`` (VSA, arXiv 2505.13389): the best ceil(keep * n) of n tiles. VSA's coarse branch and its
      gate are trained modules and not part of this.
    * ``"smooth"`` (SLA, arXiv 2509.24006): keys less their mean over the grid, the best floor(keep * n), at
      least one. Taking the mean off moves all scores of a row alike: it matters for rounding and for
      ``similarity``. SLA's linear branch is a trained module and not part of this.
    * ``"mass"`` (SpargeAttn, arXiv 2502.18137): keys as for "smooth"; tiles in the order of the softmax of
      their scores until they hold ``mass`` of it, at most ceil(keep * n) of them. Every call costs as much
      as if that many were taken, so that no call waits for the device.

    Args:
        keep: share of the key tiles that a query tile visits (for "mass" the greatest share), above 0, at
            most 1.
        tile: tokens of a tile, (t, h, w), (h, w) or an int. Tiles at the far borders are smaller.
        score: "mean", "smooth" or "mass".
        mass: for "mass", above 0, at most 1.
        similarity: SpargeAttn's guard, or None: tiles whose tokens have a mean cosine of at most this are not
            judged by their mean. As keys every query visits them, as queries they visit all; a call then
            costs as much as dense attention.

    Raises:
        ValueError: any other value.
    """

    name = "topk"
    keep: float = 0.2
    tile: Size = (4, 4, 4)
    score: str = "mean"
    mass: float = 0.98
    similarity: float | None = None

    def __post_init__(self) -> None:
        for field in ("keep", "mass"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
                raise ValueError(f"{field}={value!r}: must be a number in (0, 1]")
            object.__setattr__(self, field, float(value))
        object.__setattr__(self, "tile", normal_size(self.tile, "tile"))
        if self.score not in SCORES:
            raise ValueError(f"score={self.score!r}: must be one of {', '.join(SCORES)}")
        if self.similarity is not None:
            number = isinstance(self.similarity, float) or is_int(self.similarity)
            if not number or not -1 <= self.similarity <= 1:
                raise ValueError(f"similarity={self.similarity!r}: must be None or a cosine, -1 to 1")
            object.__setattr__(self, "similarity", float(self.similarity))
        super().__post_init__()

    def tile_size(self, grid: Grid) -> Grid:
        """Tokens of an inner tile, cut to the grid."""
        t, h, w = per_axis(self.tile, grid[0])
        return min(t, grid[0]), min(h, grid[1]), min(w, grid[2])

    def kept(self, grid: Grid) -> int:
        """Key tiles that the scores choose for a query tile; for "mass" at most."""
        count = math.prod(box_counts(grid, self.tile_size(grid)))
        exact = self.keep * count  # 0.1 * 30 shall be 3, whatever the rounding
        return max(1, math.floor(exact + 1e-9)) if self.score == "smooth" else math.ceil(exact - 1e-9)

    def grid_share(self, layout: TokenLayout) -> float:
        """Exact where the tile divides the grid and counts are fixed; else the greatest that there can be."""
        if self.covers(layout.grid):
            return 1.0
        sizes = box_sizes(layout.grid, self.tile_size(layout.grid), torch.device("cpu"))
        largest = sizes.sort(descending=True).values[: self._slots(layout.grid)]
        return int(largest.sum()) / layout.grid_tokens

    def covers(self, grid: Grid) -> bool:
        return self.score != "mass" and self.kept(grid) == self._tiles(grid)

    def _tiles(self, grid: Grid) -> int:
        return math.prod(box_counts(grid, self.tile_size(grid)))

    def _slots(self, grid: Grid) -> int:
        return self.kept(grid) if self.similarity is None else self._tiles(grid)

    def measure(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: TokenLayout,
        scale: float | Tensor | None = None,
        text_valid: Tensor | None = None,
    ) -> list[Tensor]:
        """Index and count of the lists; arguments as for every dynamic pattern."""
        grid, first = layout.grid, layout.text_before
        tile = self.tile_size(grid)
        rows, columns = (t[:, first : first + layout.grid_tokens] for t in (query, key))
        accum = torch.promote_types(query.dtype, torch.float32)
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        if isinstance(factor, Tensor):
            factor = factor.to(accum)[:, None]
        queries, keys = box_means(rows, grid, tile, accum) * factor, box_means(columns, grid, tile, accum)
        if self.score != "mean":
            mean = columns.mean(1, keepdim=True, dtype=accum)
            keys = keys - mean
            if self.similarity is not None:  # a copy of the keys, for the cosines only
                columns = columns - mean.to(columns.dtype)
        shared = query.shape[2] // key.shape[2]
        sides = [queries.transpose(1, 2), keys.transpose(1, 2).repeat_interleave(shared, 1)]
        if self.similarity is not None:
            sides += [_alike(t, grid, tile, self.similarity) for t in (rows, columns)]
            sides[3] = sides[3].repeat_interleave(shared, 1)
        return list(self._lists(grid, *sides))

    def measured(self, batch: int, heads: int, grid: Grid) -> list[tuple[tuple[int, ...], torch.dtype]]:
        rows = (batch, heads, self._tiles(grid))
        return [((*rows, self._slots(grid)), torch.int32), (rows, torch.int32)]

    def arrange(self, measured: list[Tensor], layout: TokenLayout) -> Choice:
        tile = self.tile_size(layout.grid)
        return Choice(BlockLists(layout.grid, tile, tile, measured[0], measured[1]))

    def _lists(
        self,
        grid: Grid,
        queries: Tensor,
        keys: Tensor,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Index and count from means (B, H, tiles, D), some query tiles at a time."""
        step = max(1, _SCORES_AT_ONCE // (keys.shape[0] * keys.shape[1] * keys.shape[2]))
        parts = []
        for start in range(0, queries.shape[2], step):
            scores = queries[:, :, start : start + step] @ keys.transpose(-1, -2)
            if columns is not None:
                scores = scores.masked_fill(~columns[:, :, None], -math.inf)
            parts.append(self._rank(scores, self.kept(grid)))
            if rows is not None and columns is not None:
                parts[-1] = _forced(*parts[-1], rows[:, :, start : start + step], columns)
        index, count = (torch.cat(p, 2) for p in zip(*parts, strict=True))
        return index.to(torch.int32), count.to(torch.int32)

    def _rank(self, scores: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """The best tiles of each row, and how many of them count."""
        # stable, so that ties are broken the same way on every device: the first tile wins
        ranked, order = scores.sort(dim=-1, descending=True, stable=True)
        index = order[..., :kept]
        if self.score != "mass":
            return index, torch.full(index.shape[:-1], kept, device=index.device)
        share = ranked.softmax(-1)
        before = share.cumsum(-1) - share
        return index, (before[..., :kept] < self.mass).sum(-1).clamp(min=1)


def _alike(tokens: Tensor, grid: Grid, tile: Grid, least: float) -> Tensor:
    """bool (B, H, tiles): the mean cosine of a tile's token pairs is above ``least``."""
    unit = torch.nn.functional.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=-1)
    # the mean over all pairs of a tile of u . v is the square of the mean u
    return (box_means(unit, grid, tile).square().sum(-1) > least).transpose(1, 2)


def _forced(index: Tensor, count: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Lists with room for all: key tiles that are not alike for every query, all tiles for such queries."""
    tiles = columns.shape[-1]
    used = torch.arange(index.shape[-1], device=index.device) < count[..., None]
    table = torch.zeros(*index.shape[:-1], tiles + 1, dtype=torch.bool, device=index.device)
    table = table.scatter(-1, torch.where(used, index, tiles), True)[..., :-1]
    table = table | ~columns[:, :, None] | ~rows[..., None]
    return table.to(torch.uint8).argsort(dim=-1, descending=True, stable=True), table.sum(-1)
