"""Cutting a map into windows and putting it together again, for grids of any number of axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Zeros behind each axis of the grid of (B, *grid, C), up to a multiple of ``size``."""
    behind = [-extent % s for extent, s in zip(x.shape[1:-1], size, strict=True)]
    if not any(behind):
        return x
    return F.pad(x, [0, 0, *(n for extra in reversed(behind) for n in (0, extra))])


def partition(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, *grid, C), multiples of ``size``, as windows (B, windows, tokens, C), both in raster order."""
    rank = len(size)
    cells = [n for extent, s in zip(x.shape[1:-1], size, strict=True) for n in (extent // s, s)]
    apart = x.reshape(x.shape[0], *cells, x.shape[-1])
    order = [0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1]
    return apart.permute(order).flatten(1 + rank, 2 * rank).flatten(1, rank)


def together(windows: Tensor, size: Sequence[int], grid: Sequence[int]) -> Tensor:
    """The inverse of ``partition`` after ``pad_to``: (B, windows, tokens, C) as (B, *grid, C)."""
    rank = len(size)
    counts = [-(-extent // s) for extent, s in zip(grid, size, strict=True)]
    apart = windows.reshape(windows.shape[0], *counts, *size, windows.shape[-1])
    order = [0, *(n for axis in range(rank) for n in (1 + axis, 1 + rank + axis)), 2 * rank + 1]
    padded = [count * s for count, s in zip(counts, size, strict=True)]
    whole = apart.permute(order).reshape(windows.shape[0], *padded, windows.shape[-1])
    for axis, extent in enumerate(grid):
        whole = whole.narrow(1 + axis, 0, extent)
    return whole


def real(grid: Sequence[int], size: Sequence[int], device: torch.device) -> Tensor | None:
    """Which tokens of each window are of the grid, (windows, tokens) bool; None when all are."""
    if all(extent % s == 0 for extent, s in zip(grid, size, strict=True)):
        return None
    ones = torch.ones(1, *grid, 1, device=device)
    return partition(pad_to(ones, size), size)[0, :, :, 0] > 0
