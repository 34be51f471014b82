"""The ghost module with decoupled fully connected attention (GhostNetV2, Tang et al., arXiv 2211.12905)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.layers.conv import BatchNorm2d, Conv2d, Pointwise
from vidattn.backbones.mixers.base import Mixer


class GhostModuleV2(Mixer):
    """Cheap features times a gate that sees a row, then a column, of the map at half its resolution.

    a = relu(BN(W x)) has half of the channels (rounded up), b = relu(BN(dwconv3(a))); the features are
    [a, b], cut to ``dim_out``. The gate is sigmoid(BN(dw5x1(BN(dw1x5(BN(V pool(x))))))), brought back to the
    grid by nearest neighbours.

    The paper describes layers fully connected along the height and then the width. As in the released code,
    the width comes first, a kernel of 5 stands for each, and there is no activation between them. A last row
    or column that the pool does not fill is left out, as in the authors'; an axis of one token is not pooled.

    Args:
        dim: channels in.
        dim_out: channels out; ``dim`` when None.
        kernel: extent of the gate's convolutions, odd.
        pool: extent of the mean pool.
        relu: activations of the features.

    Raises:
        ValueError: values out of range.
    """

    takes_prefix = False

    def __init__(
        self, dim: int, dim_out: int | None = None, *, kernel: int = 5, pool: int = 2, relu: bool = True
    ) -> None:
        super().__init__(dim, 1)
        self.dim_out = out = dim if dim_out is None else dim_out
        if out < 1 or pool < 1:
            raise ValueError(f"dim_out={dim_out}, pool={pool}: must be at least 1")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel={kernel}: must be odd and at least 1")
        self.pool, half, reach = pool, -(-out // 2), kernel // 2
        act = nn.ReLU if relu else nn.Identity
        self.primary_conv = nn.Sequential(Pointwise(dim, half, bias=False), BatchNorm2d(half), act())
        self.cheap_operation = nn.Sequential(
            Conv2d(half, half, 3, padding=1, groups=half, bias=False), BatchNorm2d(half), act()
        )
        self.short_conv = nn.Sequential(
            Pointwise(dim, out, bias=False),
            BatchNorm2d(out),
            Conv2d(out, out, (1, kernel), padding=(0, reach), groups=out, bias=False),
            BatchNorm2d(out),
            Conv2d(out, out, (kernel, 1), padding=(reach, 0), groups=out, bias=False),
            BatchNorm2d(out),
        )

    def mix(self, x: Tensor, prefix: Tensor | None) -> Tensor:
        """See the class."""
        if x.ndim != 4:
            raise ValueError(f"x has a grid of {x.ndim - 2} axes: must be 2")
        first = self.primary_conv(x)
        features = torch.cat([first, self.cheap_operation(first)], -1)[..., : self.dim_out]
        return features * self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        """The gate (B, H, W, dim_out), between 0 and 1."""
        grid = (x.shape[1], x.shape[2])
        size = (min(self.pool, grid[0]), min(self.pool, grid[1]))
        coarse = F.avg_pool2d(x.movedim(-1, 1), size).movedim(1, -1)
        gate = self.short_conv(coarse).sigmoid()
        return F.interpolate(gate.movedim(-1, 1), grid, mode="nearest").movedim(1, -1)
