"""Feed-forward parts: two linear layers, with or without a depthwise convolution between them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.layers.conv import Pointwise, depthwise


class Mlp(nn.Module):
    """fc2(GELU(fc1(x))) with the exact GELU.

    Args:
        dim: channels.
        hidden: channels between.
    """

    reads = ("fc1",)

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ConvFeedForward(nn.Module):
    """fc2(u + dwconv3(u)) with u = GELU(fc1(x)); linear layers stored as 1x1 convolutions (RAVLT, MAViT).

    Args:
        dim: channels.
        hidden: channels between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Pointwise(dim, hidden)
        self.fc2 = Pointwise(hidden, dim)
        self.dwconv = depthwise(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(x))
        return self.fc2(hidden + self.dwconv(hidden))
