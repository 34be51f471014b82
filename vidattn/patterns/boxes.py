"""Means over boxes of the grid: pooled keys, and the scores of blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vidattn.layout import Grid
from vidattn.lists import box_counts


def box_means(tokens: Tensor, grid: Grid, box: Grid, dtype: torch.dtype | None = None) -> Tensor:
    """The mean of the tokens in each box of the grid; boxes at the far borders hold fewer.

    Args:
        tokens: (B, N, H, D) in raster order.
        grid: (T, H, W), N in all.
        box: (t, h, w) of a box.
        dtype: of the sums and the result; the tokens' own when None.

    Returns:
        (B, boxes, H, D), boxes in raster order.
    """
    counts = box_counts(grid, box)
    padded = tokens.unflatten(1, grid)
    spare = [c * b - n for c, b, n in zip(counts, box, grid, strict=True)]
    if any(spare):
        padded = F.pad(padded, (0, 0, 0, 0, 0, spare[2], 0, spare[1], 0, spare[0]))
    split = padded.unflatten(3, (counts[2], box[2])).unflatten(2, (counts[1], box[1]))
    total = split.unflatten(1, (counts[0], box[0])).sum((2, 4, 6), dtype=dtype)
    sizes = box_sizes(grid, box, tokens.device).view(*counts, 1, 1)
    return (total / sizes.to(total.dtype)).flatten(1, 3)


def box_sizes(grid: Grid, box: Grid, device: torch.device) -> Tensor:
    """Tokens of each box: int64 (boxes,)."""
    t, h, w = (
        (n - b * torch.arange(c, device=device)).clamp(max=b)
        for n, b, c in zip(grid, box, box_counts(grid, box), strict=True)
    )
    return (t[:, None, None] * h[:, None] * w).flatten()


def box_tokens(grid: Grid, box: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Grid tokens of each box: numbers (boxes, tokens of a whole box), and which of them are real.

    Places behind the grid's end repeat its last row, and are not real.
    """
    axes = []
    for extent, size, count in zip(grid, box, box_counts(grid, box), strict=True):
        place = torch.arange(count * size, device=device).view(count, size)
        axes.append((place.clamp(max=extent - 1), place < extent))
    (t, t_real), (y, y_real), (x, x_real) = axes
    # (t, y, x) boxes, then (t, y, x) in the box
    t, t_real = (a[:, None, None, :, None, None] for a in (t, t_real))
    y, y_real = (a[:, None, None, :, None] for a in (y, y_real))
    x, x_real = (a[:, None, None, :] for a in (x, x_real))
    number = (t * grid[1] + y) * grid[2] + x
    real = t_real & y_real & x_real
    return number.flatten(3).flatten(0, 2), real.flatten(3).flatten(0, 2)
