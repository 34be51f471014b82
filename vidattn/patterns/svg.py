"""Sparse VideoGen: for each head the better of two bands, found on some rows of its attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vidattn.layout import Grid, TokenLayout
from vidattn.patterns.bands import Spatial
from vidattn.patterns.base import coordinates
from vidattn.patterns.dynamic import Choice, DynamicPattern
from vidattn.patterns.sizes import is_int

# Scores of sampled rows against all keys that exist at a time.
_SCORES_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class SparseVideoGen(DynamicPattern):
    """SVG (Xi et al., arXiv 2502.01776): each head of each item attends in a spatial or in a temporal band.

    The choice is the authors': the attention of some queries to all keys is computed as it is and with each
    band, and the band with the smaller squared error of the output wins. Rows are spread evenly over the
    grid, so the same inputs always lead to the same choice (the authors draw them from the first frames, and
    compare bands of a fixed width there; here they compare the bands that run).

    A temporal head's tokens are put into the order of places, as in the authors' code, and back: every head
    then runs the same band, :class:`Spatial` of this width, at a cost that does not depend on the choice. So
    ``sink`` means the first places of all frames to a temporal head, as it does in the authors' code.

    Args:
        width: half-width of the band, in frames; greater than 0. For a share d of the pairs of T frames it is
            T * (1 - sqrt(1 - d)).
        sink: every query also sees the first frame (the authors' code: for Wan and Cosmos).
        rows: queries that are sampled, at least 1.

    Raises:
        ValueError: any other value.
    """

    name = "svg"
    width: float = 1.0
    sink: bool = False
    rows: int = 64

    def __post_init__(self) -> None:
        band = Spatial(self.width, self.sink)
        object.__setattr__(self, "width", band.width)
        object.__setattr__(self, "_band", band)  # made here, since graphs cannot make patterns
        if not is_int(self.rows) or self.rows < 1:
            raise ValueError(f"rows={self.rows!r}: must be an integer of at least 1")
        super().__post_init__()

    @property
    def band(self) -> Spatial:
        """The pattern that every head runs in its own order of tokens."""
        band: Spatial = self._band  # type: ignore[attr-defined]
        return band

    def grid_share(self, layout: TokenLayout) -> float:
        """Exact: both bands hold equally many pairs."""
        return self.band.grid_pairs(layout.grid) / layout.grid_tokens**2

    def visited(self, layout: TokenLayout) -> float:
        return self.band.visited(layout)

    def covers(self, grid: Grid) -> bool:
        return self.band.covers(grid)

    def measured(self, batch: int, heads: int, grid: Grid) -> list[tuple[tuple[int, ...], torch.dtype]]:
        return [((batch, heads), torch.bool)]

    def arrange(self, measured: list[Tensor], layout: TokenLayout) -> Choice:
        grid, temporal = layout.grid, measured[0]
        raster = torch.arange(layout.grid_tokens, device=temporal.device)
        by_place = raster.view(grid[0], grid[1] * grid[2]).t().reshape(-1)
        order = torch.where(temporal[..., None], by_place, raster)
        return Choice(self.band, order, order)

    def measure(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: TokenLayout,
        scale: float | Tensor | None = None,
        text_valid: Tensor | None = None,
    ) -> list[Tensor]:
        """Which heads are temporal; arguments as for every dynamic pattern."""
        return [self.temporal_heads(query, key, value, layout, scale, text_valid)]

    def temporal_heads(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: TokenLayout,
        scale: float | Tensor | None = None,
        text_valid: Tensor | None = None,
    ) -> Tensor:
        """Which heads of which items are temporal: bool (B, H). Arguments as for :meth:`measure`."""
        count, device = layout.grid_tokens, query.device
        rows = min(self.rows, count)
        sample = ((torch.arange(rows, device=device) * 2 + 1) * count).div(2 * rows, rounding_mode="floor")
        accum = torch.promote_types(query.dtype, torch.float32)
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        factor = factor.to(accum)[:, None] if isinstance(factor, Tensor) else factor
        picked = query[:, layout.text_before + sample].to(accum) * factor
        hidden = torch.zeros(1, 1, 1, layout.tokens, dtype=torch.bool, device=device)
        if text_valid is not None:
            hidden = ~layout.real_keys(text_valid)[:, None, None]
        bands = self._unseen(sample, layout)
        shared, step = query.shape[2] // key.shape[2], _SCORES_AT_ONCE // (len(query) * rows * layout.tokens)
        errors = []
        for head in range(0, query.shape[2], max(1, step)):
            heads = torch.arange(head, min(head + max(1, step), query.shape[2]), device=device)
            own = torch.div(heads, shared, rounding_mode="floor")
            keys, values = (t[:, :, own].transpose(1, 2).to(accum) for t in (key, value))
            scores = (picked[:, :, heads].transpose(1, 2) @ keys.transpose(-1, -2)).masked_fill(
                hidden, -math.inf
            )
            exact = scores.softmax(-1) @ values
            errors.append(torch.stack([_error(scores, band, values, exact) for band in bands]))
        spatial, temporal = torch.cat(errors, 2)
        return temporal < spatial

    def _unseen(self, sample: Tensor, layout: TokenLayout) -> list[Tensor]:
        """bool (rows, S): what the sampled queries do not see, as spatial and as temporal head."""
        grid = layout.grid
        raster = torch.arange(layout.grid_tokens, device=sample.device)
        place = (
            raster.view(grid[1] * grid[2], grid[0]).t().reshape(-1)
        )  # of each token in the order of places
        unseen = torch.zeros(2, len(sample), layout.tokens, dtype=torch.bool, device=sample.device)
        inside = slice(layout.text_before, layout.text_before + layout.grid_tokens)
        for number, at in enumerate((raster, place)):
            rows, columns = at[sample][:, None], at[None]
            unseen[number, :, inside] = ~self.band.allowed(
                coordinates(rows, grid), coordinates(columns, grid), grid
            )
        return list(unseen)


def _error(scores: Tensor, unseen: Tensor, values: Tensor, exact: Tensor) -> Tensor:
    """(B, H): squared error of the output without the unseen keys."""
    share = scores.masked_fill(unseen, -math.inf).softmax(-1)
    return (share @ values - exact).square().sum((-1, -2))
