"""Sparse VideoGen 2: tokens ordered by clusters, and fixed tiles over them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vidattn.layout import Grid, TokenLayout
from vidattn.lists import BlockLists
from vidattn.patterns.dynamic import Choice, DynamicPattern
from vidattn.patterns.sizes import is_int

# Products of tokens and cluster means that exist at a time.
_PRODUCTS_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class SemanticClusters(DynamicPattern):
    """SVG2 (Yang et al., arXiv 2505.18875): attention between clusters of alike queries and alike keys.

    For every item and head queries and keys are clustered by k-means and put in the order of their clusters.
    A query cluster keeps key clusters by the softmax of its mean's scores with theirs, each times its number
    of keys, until they hold ``mass``, and at least the share ``least`` of them. Ordered tokens are computed
    in tiles of a fixed size: a pair of tiles counts where any pair of clusters in them is kept. That
    computes a little more than the authors' tiles of varying sizes; where it is more than ``keep`` allows,
    the pairs of tiles with the greatest softmax share stay, so that every call costs the same.

    Means start from evenly spaced tokens and are computed anew in each call (the authors keep them from step
    to step). Nothing is drawn at random.

    Args:
        queries: clusters of queries.
        keys: clusters of keys.
        mass: softmax share that the kept key clusters hold, above 0, at most 1.
        least: share of the key clusters that are kept at least, 0 to 1.
        keep: greatest share of the key tiles that a query tile visits, above 0, at most 1.
        tile: tokens of a tile.
        iterations: of k-means, at least 1.

    Raises:
        ValueError: any other value.
    """

    name = "svg2"
    queries: int = 100
    keys: int = 500
    mass: float = 0.9
    least: float = 0.1
    keep: float = 0.3
    tile: int = 64
    iterations: int = 10

    def __post_init__(self) -> None:
        for field in ("queries", "keys", "tile", "iterations"):
            value = getattr(self, field)
            if not is_int(value) or value < 1:
                raise ValueError(f"{field}={value!r}: must be an integer of at least 1")
        for field in ("mass", "least", "keep"):
            value = getattr(self, field)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value <= 1 or (value == 0 and field != "least"):
                bracket = "[" if field == "least" else "("
                raise ValueError(f"{field}={value!r}: must be a number in {bracket}0, 1]")
            object.__setattr__(self, field, float(value))
        super().__post_init__()

    def _tiles(self, grid: Grid) -> int:
        return (grid[0] * grid[1] * grid[2] + self.tile - 1) // self.tile

    def _slots(self, grid: Grid) -> int:
        return math.ceil(self.keep * self._tiles(grid) - 1e-9)

    def grid_share(self, layout: TokenLayout) -> float:
        """The greatest share that the lists have room for."""
        return min(1.0, self._slots(layout.grid) * self.tile / layout.grid_tokens)

    def covers(self, grid: Grid) -> bool:
        return grid[0] * grid[1] * grid[2] == 1

    def measured(self, batch: int, heads: int, grid: Grid) -> list[tuple[tuple[int, ...], torch.dtype]]:
        order = (batch, heads, grid[0] * grid[1] * grid[2])
        rows = (batch, heads, self._tiles(grid))
        return [
            (order, torch.int64),
            (order, torch.int64),
            ((*rows, self._slots(grid)), torch.int32),
            (rows, torch.int32),
        ]

    def arrange(self, measured: list[Tensor], layout: TokenLayout) -> Choice:
        line, tile = (1, 1, layout.grid_tokens), (1, 1, min(self.tile, layout.grid_tokens))
        return Choice(BlockLists(line, tile, tile, measured[2], measured[3]), measured[0], measured[1])

    def measure(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: TokenLayout,
        scale: float | Tensor | None = None,
        text_valid: Tensor | None = None,
    ) -> list[Tensor]:
        """Orders of queries and keys, and index and count of the lists over the ordered tokens; arguments as
        for every dynamic pattern.
        """
        first, (batch, _, heads, size) = layout.text_before, query.shape
        accum = torch.promote_types(query.dtype, torch.float32)
        rows, columns = (
            t[:, first : first + layout.grid_tokens].transpose(1, 2).flatten(0, 1).to(accum)
            for t in (query, key)
        )
        row_labels, row_means, _ = cluster(rows, self.queries, self.iterations)
        shared = heads // key.shape[2]
        column_labels, column_means, sizes = (
            t.repeat_interleave(shared, 0) for t in cluster(columns, self.keys, self.iterations)
        )
        factor = size**-0.5 if scale is None else scale
        if isinstance(factor, Tensor):
            factor = factor.to(accum).repeat(batch)[:, None, None]
        scores = (row_means * factor) @ column_means.transpose(-1, -2) + sizes.to(accum).log()[:, None]
        share = scores.softmax(-1)
        row_order, column_order = (t.argsort(dim=-1, stable=True) for t in (row_labels, column_labels))
        edges = [
            self._edges(t.gather(1, o)) for t, o in ((row_labels, row_order), (column_labels, column_order))
        ]
        index, count = self._lists(share, self._kept(share), edges[0], edges[1], self._slots(layout.grid))
        made = (row_order, column_order, index, count)
        return [t.unflatten(0, (batch, heads)) for t in made]

    def _kept(self, share: Tensor) -> Tensor:
        """bool (BH, query clusters, key clusters)"""
        ranked, order = share.sort(dim=-1, descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked
        rank = torch.arange(share.shape[-1], device=share.device)
        kept = (before < self.mass) | (rank < math.ceil(self.least * share.shape[-1] - 1e-9))
        # clusters without a token hold no share
        return torch.zeros_like(kept).scatter(-1, order, kept) & (share > 0)

    def _edges(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """First and last cluster of each tile of the ordered tokens."""
        count = labels.shape[1]
        start = torch.arange(0, count, self.tile, device=labels.device)
        return labels[:, start], labels[:, (start + self.tile - 1).clamp(max=count - 1)]

    def _lists(
        self,
        share: Tensor,
        kept: Tensor,
        rows: tuple[Tensor, Tensor],
        columns: tuple[Tensor, Tensor],
        slots: int,
    ) -> tuple[Tensor, Tensor]:
        """Index and count (BH, tiles, ...) of the tile pairs in which a pair of clusters is kept."""
        pairs = _box_sums(kept.double(), rows, columns).round()
        held = _box_sums((share * kept).double(), rows, columns)
        # tile pairs without a kept pair come last, whatever rounding made of their share
        ranked = held.clamp(min=0).masked_fill(pairs < 1, -1.0)
        index = ranked.argsort(dim=-1, descending=True, stable=True)[..., :slots]
        return index.to(torch.int32), (pairs >= 1).sum(-1).clamp(max=slots).to(torch.int32)


def _box_sums(table: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """Sums of ``table`` (BH, a, b) from a first to a last row and column, inclusive: (BH, row tiles, col
    tiles).
    """
    sums = torch.nn.functional.pad(table.cumsum(1).cumsum(2), (1, 0, 1, 0))
    wide = [sums.gather(1, at[..., None].expand(-1, -1, sums.shape[2])) for at in (rows[0], rows[1] + 1)]
    strip = wide[1] - wide[0]
    ends = [
        strip.gather(2, at[:, None].expand(-1, strip.shape[1], -1)) for at in (columns[0], columns[1] + 1)
    ]
    return ends[1] - ends[0]


def cluster(tokens: Tensor, count: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """k-means (Euclidean), from evenly spaced tokens as first means.

    Args:
        tokens: (n, N, D), clustered for each n on its own.
        count: clusters; at most N are made.
        iterations: how often means are computed.

    Returns:
        Labels (n, N), the means (n, clusters, D) and sizes (n, clusters) of the clusters that they name. A
        cluster that lost all its tokens keeps its mean, with size 0.
    """
    total = tokens.shape[1]
    count = min(count, total)
    start = (torch.arange(count, device=tokens.device) * total).div(count, rounding_mode="floor")
    means = tokens[:, start]
    labels = _nearest(tokens, means)
    for step in range(iterations):
        sums, sizes = _sums(tokens, labels, count)
        means = torch.where(sizes[..., None] > 0, sums / sizes.clamp(min=1)[..., None], means)
        if step + 1 < iterations:
            labels = _nearest(tokens, means)
    return labels, means, sizes


def _pieces(tokens: Tensor, count: int) -> int:
    return max(1, _PRODUCTS_AT_ONCE // max(1, len(tokens) * count))


def _nearest(tokens: Tensor, means: Tensor) -> Tensor:
    """(n, N): the nearest mean of each token."""
    half = means.square().sum(-1)[:, None] / 2
    parts = tokens.split(_pieces(tokens, means.shape[1]), 1)
    return torch.cat([(part @ means.transpose(-1, -2) - half).argmax(-1) for part in parts], 1)


def _sums(tokens: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sum (n, count, D) and number (n, count) of the tokens with each label, as products: the same bits
    each time.
    """
    number = torch.arange(count, device=tokens.device)
    sums = tokens.new_zeros(len(tokens), count, tokens.shape[2])
    sizes = tokens.new_zeros(len(tokens), count)
    step = _pieces(tokens, count)
    for part, own in zip(tokens.split(step, 1), labels.split(step, 1), strict=True):
        member = (own[..., None] == number).to(tokens.dtype)
        sums += member.transpose(-1, -2) @ part
        sizes += member.sum(1)
    return sums, sizes
