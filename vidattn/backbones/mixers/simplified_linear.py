"""Simplified linear attention (SLAB, Guo et al., arXiv 2405.11582)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vidattn.backbones.layers.conv import Conv2d
from vidattn.backbones.layers.positions import resize_positions
from vidattn.backbones.mixers.base import Mixer
from vidattn.linear import linear_attention


class SimplifiedLinearAttention(Mixer):
    """relu(q) (relu(k)^T v) / (relu(q) . sum relu(k) + 1e-6), plus a convolution of v.

    The convolution is depthwise, and the same for all heads. Keys get a learned position each; on other grids
    than ``grid`` positions are interpolated bicubically.

    Args:
        dim: channels.
        num_heads: heads.
        grid: (height, width) that the positions are made for.
        kernel_size: of the convolution, odd.
        qkv_bias: biases in the projection.

    Raises:
        ValueError: values out of range.
    """

    takes_prefix = False
    no_decay = ("positional_encoding",)
    reads = ("qkv",)

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        grid: tuple[int, int],
        kernel_size: int = 5,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(dim, num_heads)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: must be odd and at least 1")
        self.grid = grid
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.dwc = Conv2d(
            self.head_dim, self.head_dim, kernel_size, padding=kernel_size // 2, groups=self.head_dim
        )
        self.positional_encoding = nn.Parameter(torch.zeros(1, grid[0] * grid[1], dim))

    def mix(self, x: Tensor, prefix: Tensor | None) -> Tensor:
        """On 2-D grids."""
        if x.ndim != 4:
            raise ValueError(f"x has a grid of {x.ndim - 2} axes: must be 2")
        grid = (x.shape[1], x.shape[2])
        q, k, v = self.qkv(x.flatten(1, 2)).chunk(3, -1)
        k = k + resize_positions(self.positional_encoding, self.grid, grid).flatten(1, 2)
        values = self.heads(v)
        # the division is by a mean over tokens there, and the authors' constant stands beside a sum
        eps = 1e-6 / k.shape[1]
        out = linear_attention(self.heads(q), self.heads(k), values, feature_map="relu", eps=eps)
        images = values.transpose(1, 2).flatten(0, 1).unflatten(1, grid)
        local = self.dwc(images).flatten(1, 2).unflatten(0, (-1, self.num_heads)).transpose(1, 2)
        return self.proj((out + local).flatten(-2)).unflatten(1, grid)
