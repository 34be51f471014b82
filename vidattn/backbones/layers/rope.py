"""Rotary positions on a grid, both ends of the frequency range taken (RALA, MALA, NaLaFormer, SegMAN)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class GridRotary:
    """Rotations of one grid. Adjacent channels are a pair; each axis of the grid turns an equal run of pairs.

    The frequencies of an axis are 10000^-s for s evenly spaced from 0 to 1, both included (``both_ends``) or
    without the 1; a token at index i of the axis turns by i times them. Prefix tokens are not turned.

    Args:
        grid: extents.
        head_dim: channels per head; a multiple of twice the number of axes.
        device: of the tables.
        both_ends: whether the lowest frequency is 10000^-1.

    Raises:
        ValueError: ``head_dim`` does not divide.
    """

    def __init__(
        self, grid: Sequence[int], head_dim: int, device: torch.device, both_ends: bool = True
    ) -> None:
        if head_dim % (2 * len(grid)):
            raise ValueError(
                f"head_dim={head_dim}: must be a multiple of {2 * len(grid)} for rotary positions on a"
                f" {len(grid)}-D grid"
            )
        pairs = head_dim // (2 * len(grid))
        spaced = torch.linspace(0, 1, pairs + (not both_ends), dtype=torch.float64, device=device)
        frequencies = 10000.0 ** -spaced[:pairs]
        angles = []
        for axis, extent in enumerate(grid):
            index = torch.arange(extent, dtype=torch.float64, device=device)
            shape = [1] * len(grid)
            shape[axis] = extent
            angles.append((index[:, None] * frequencies).reshape(*shape, pairs).expand(*grid, pairs))
        angle = torch.cat(angles, -1).reshape(-1, head_dim // 2)[:, None]
        self.cos, self.sin = angle.cos(), angle.sin()

    def __call__(self, x: Tensor, prefix: int = 0) -> Tensor:
        """Turn (B, prefix + N, H, D)."""
        if prefix:
            return torch.cat([x[:, :prefix], self(x[:, prefix:])], 1)
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
