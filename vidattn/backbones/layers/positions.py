"""Learned positions on grids of other sizes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize_positions(table: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Learned positions (1, N, C) of a grid as a map (1, *wanted, C), bicubically where the size differs."""
    square = table.unflatten(1, grid)
    if grid == wanted:
        return square
    image = square.permute(0, 3, 1, 2).float()
    resized = F.interpolate(image, wanted, mode="bicubic", antialias=True, align_corners=False)
    return resized.permute(0, 2, 3, 1).to(table.dtype)
