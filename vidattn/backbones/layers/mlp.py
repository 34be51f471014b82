"""Feed-forward parts: two linear layers, with or without a depthwise convolution between them."""

from __future__ import annotations

from collections.abc import Callable

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
    """fc2(u + dwconv3(u)) with u = GELU(fc1(x)) (RAVLT, MAViT, NaLaFormer).

    Args:
        dim: channels.
        hidden: channels between.
        linear: makes the linear layers; by default they are stored as 1x1 convolutions.
    """

    def __init__(self, dim: int, hidden: int, linear: Callable[[int, int], nn.Module] = Pointwise) -> None:
        super().__init__()
        self.fc1 = linear(dim, hidden)
        self.fc2 = linear(hidden, dim)
        self.dwconv = depthwise(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(x))
        return self.fc2(hidden + self.dwconv(hidden))
