"""Local concentration after a global mixer (L2ViT, Zheng, arXiv 2501.16182)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.layers.conv import BatchNorm2d, depthwise


class LocalConcentration(nn.Module):
    """conv2(bn(GELU(conv1(x)))) with depthwise convolutions.

    Args:
        dim: channels.
        kernel: size of the convolutions, odd.
    """

    def __init__(self, dim: int, kernel: int = 7) -> None:
        super().__init__()
        self.conv1 = depthwise(dim, kernel)
        self.bn = BatchNorm2d(dim)
        self.conv2 = depthwise(dim, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.bn(F.gelu(self.conv1(x))))
