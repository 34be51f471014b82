"""Deformable convolution (Dai et al., arXiv 1703.06211) in plain PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.layers.conv import Conv2d
from vidattn.backbones.layers.windows import pad_to


class DeformableConv2d(nn.Module):
    """A convolution that reads each tap at a learned offset, bilinearly; beyond the map it reads zeros.

    Its stride is its size. ``conv_offset`` predicts (dy, dx) for each tap in raster order; it starts at zero,
    where this is an ordinary convolution.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        size: of the kernel, and the stride.
    """

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, size, size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.conv_offset = Conv2d(in_channels, 2 * size * size, size, size)

    def reset_own(self) -> None:
        """First values: a convolution's, and no offsets."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        size = self.size
        offset = self.conv_offset(pad_to(x, (size, size))).unflatten(-1, (size * size, 2))
        rows, columns = (torch.arange(n, device=x.device) * size for n in offset.shape[1:3])
        corner = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)[None]
        out = self.bias.to(x.dtype)
        for tap in range(size * size):
            first = torch.tensor([tap // size, tap % size], device=x.device)
            taken = bilinear(x, (corner + first).to(offset.dtype) + offset[:, :, :, tap])
            out = out + F.linear(taken, self.weight[:, :, tap // size, tap % size])
        return out


def bilinear(x: Tensor, place: Tensor) -> Tensor:
    """Values of a map (B, H, W, C) at (y, x) = place (B, h, w, 2), between tokens; zeros beyond the map."""
    height, width = x.shape[1:3]
    extent = place.new_tensor([width, height])
    # grid_sample counts from -1 to 1 over the outer edges of the tokens
    normed = (2 * place.flip(-1) + 1) / extent - 1
    taken = F.grid_sample(x.permute(0, 3, 1, 2), normed.to(x.dtype), align_corners=False)
    return taken.permute(0, 2, 3, 1)
