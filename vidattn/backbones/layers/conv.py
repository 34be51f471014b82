"""PyTorch's convolutions and batch norm on channels-last maps, under PyTorch's parameter names and shapes.

A channels-last map seen as (B, C, *grid) is what PyTorch calls the channels-last memory format, so nothing is
copied.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class _ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


class Conv1d(_ChannelsLast, nn.Conv1d):
    """``nn.Conv1d`` on (B, L, C)."""


class Conv2d(_ChannelsLast, nn.Conv2d):
    """``nn.Conv2d`` on (B, H, W, C)."""


class Conv3d(_ChannelsLast, nn.Conv3d):
    """``nn.Conv3d`` on (B, T, H, W, C)."""


class BatchNorm2d(_ChannelsLast, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` on (B, H, W, C)."""


class Pointwise(nn.Conv2d):
    """A linear layer over the last axis whose weight is stored as a 1x1 convolution's, (out, in, 1, 1)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


def depthwise(dim: int, kernel: int, *, ndim: int = 2, bias: bool = True) -> nn.Module:
    """A depthwise convolution of odd size that keeps the grid, for grids of ``ndim`` axes."""
    conv = {1: Conv1d, 2: Conv2d, 3: Conv3d}[ndim]
    return conv(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias)
