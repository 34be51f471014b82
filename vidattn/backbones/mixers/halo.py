"""Blocked local attention with a halo (HaloNet, Vaswani et al., CVPR 2021, arXiv 2103.12731)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.layers.conv import Pointwise
from vidattn.backbones.layers.windows import pad_to, partition, together
from vidattn.backbones.mixers.base import Mixer

AXES = ("time_rel", "height_rel", "width_rel")


class HaloPositions(nn.Module):
    """A learned vector per displacement and axis; its product with a query is added to the score.

    Args:
        window: extent of the windows.
        width: channels of a query.
        ndim: axes of the grid, 1 to 3.
    """

    def __init__(self, window: int, width: int, ndim: int) -> None:
        super().__init__()
        self.no_decay = AXES[-ndim:]
        for name in self.no_decay:
            self.register_parameter(name, nn.Parameter(torch.zeros(2 * window - 1, width)))

    def reset_own(self) -> None:
        """First values, as spread as the scaled queries."""
        for table in self.parameters():
            nn.init.trunc_normal_(table, std=table.shape[1] ** -0.5)

    def features(self, q: Tensor, block: int, window: int) -> tuple[Tensor, Tensor]:
        """(F, M) with F_i . M_j = sum over axes a of q_i . R_a[j_a - i_a + window - 1].

        Args:
            q: (..., H, block ** ndim, D), in raster order.
            block: extent of a block, in queries.
            window: extent of a window.

        Returns:
            Shapes (..., H, block ** ndim, R) and (window ** ndim, R) with R = ndim * window.
        """
        tables = list(self.parameters())
        ndim = len(tables)
        places = torch.arange(window, device=q.device)
        index = places - torch.arange(block, device=q.device)[:, None] + window - 1
        parts, marks = [], []
        for axis, table in enumerate(tables):
            along = q.unflatten(-2, (block,) * ndim).movedim(-2 - ndim + axis + 1, -2)
            # (..., block, D) x (block, window, D) for this axis's place of the query
            product = torch.einsum("...id,ijd->...ij", along, table[index])
            parts.append(product.movedim(-2, -2 - ndim + axis + 1).flatten(-1 - ndim, -2))
            shape = [1] * ndim
            shape[axis] = window
            own = torch.eye(window, dtype=q.dtype, device=q.device).reshape(*shape, window)
            marks.append(own.expand(*(window,) * ndim, window).flatten(0, ndim - 1))
        return torch.cat(parts, -1), torch.cat(marks, -1)


class HaloAttention(Mixer):
    """The queries of a block all attend to the block and a halo around it.

    For a query at i of its block and a key at j of the window (both per axis, from 0; the window begins
    ``halo_size`` tokens before the block) the score is q . k / sqrt(D) + sum over axes of
    q . R[j - i + window - 1]. There is no output projection: the bottleneck's next convolution is one.

    The paper leaves open, and this module, like timm's, chooses: keys and values outside the map are zeros
    that take part in the softmax (``mask_padding=True`` leaves them out); q is not scaled in the product
    with R (``scale_pos_embed``); with a stride, i counts the queries that are kept. Grids that the blocks do
    not divide get zeros behind, just like the halo.

    Args:
        dim: channels in.
        num_heads: heads; divides all widths.
        dim_out: channels of the values and the output; ``dim`` when None.
        qk_dim: channels of queries and keys; ``dim_out`` when None.
        block_size: extent of the blocks per axis.
        halo_size: tokens around a block.
        stride: keeps every so-many-th query per axis; divides ``block_size``.
        qkv_bias: biases in the projections.
        scale_pos_embed: scale q in the product with R as well.
        mask_padding: leave out what is outside the map.
        ndim: axes of the grid, 1 to 3.

    Raises:
        ValueError: values out of range.
    """

    takes_prefix = False

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        dim_out: int | None = None,
        qk_dim: int | None = None,
        block_size: int = 8,
        halo_size: int = 3,
        stride: int = 1,
        qkv_bias: bool = False,
        scale_pos_embed: bool = False,
        mask_padding: bool = False,
        ndim: int = 2,
    ) -> None:
        super().__init__(dim, num_heads)
        self.dim_out = dim if dim_out is None else dim_out
        self.qk_dim = self.dim_out if qk_dim is None else qk_dim
        for name, value in (("dim_out", self.dim_out), ("qk_dim", self.qk_dim)):
            if value < 1 or value % num_heads:
                raise ValueError(f"{name}={value}: must be a multiple of num_heads={num_heads}")
        if block_size < 1 or halo_size < 0:
            raise ValueError(f"block_size={block_size}, halo_size={halo_size}: at least 1 and 0")
        if stride < 1 or block_size % stride:
            raise ValueError(f"stride={stride}: must divide block_size={block_size}")
        if not 1 <= ndim <= len(AXES):
            raise ValueError(f"ndim={ndim}: must be 1, 2 or 3")
        self.block_size, self.halo_size, self.stride, self.ndim = block_size, halo_size, stride, ndim
        self.scale_pos_embed, self.mask_padding = scale_pos_embed, mask_padding
        self.window = block_size + 2 * halo_size
        self.q = Pointwise(dim, self.qk_dim, bias=qkv_bias)
        self.kv = Pointwise(dim, self.qk_dim + self.dim_out, bias=qkv_bias)
        self.pos_embed = HaloPositions(self.window, self.qk_dim // num_heads, ndim)

    def reset_own(self) -> None:
        """First values of the projections."""
        for projection in (self.q, self.kv):
            nn.init.trunc_normal_(projection.weight, std=self.dim**-0.5)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Tensor:
        """All blocks at once; the grid becomes ceil(grid / stride)."""
        grid = x.shape[1:-1]
        if len(grid) != self.ndim:
            raise ValueError(f"x has a grid of {len(grid)} axes: must be ndim={self.ndim}")
        kept, block = x, self.block_size // self.stride
        for axis in range(1, self.ndim + 1):
            kept = kept[(slice(None),) * axis + (slice(None, None, self.stride),)]
        size = (block,) * self.ndim
        q = partition(pad_to(self.q(kept), size), size).unflatten(-1, (self.num_heads, -1)).transpose(2, 3)
        kv = self._windows(self.kv(x)).unflatten(-1, (self.num_heads, -1)).transpose(2, 3)
        width = self.qk_dim // self.num_heads
        k, v = kv[..., :width], kv[..., width:]
        scaled = q * width**-0.5
        rows, marks = self.pos_embed.features(scaled if self.scale_pos_embed else q, block, self.window)
        out = F.scaled_dot_product_attention(
            torch.cat([scaled, rows], -1),
            torch.cat([k, marks.expand(*k.shape[:-1], -1)], -1),
            v,
            attn_mask=self._seen(x) if self.mask_padding else None,
            scale=1.0,
        )
        return together(out.transpose(2, 3).flatten(-2), size, kept.shape[1:-1])

    def _windows(self, x: Tensor) -> Tensor:
        """(B, *grid, C) as the overlapping windows (B, blocks, window ** ndim, C)."""
        padded = pad_to(x, (self.block_size,) * self.ndim)
        padded = F.pad(padded, (0, 0, *(self.halo_size,) * (2 * self.ndim)))
        for axis in range(1, self.ndim + 1):
            padded = padded.unfold(axis, self.window, self.block_size)
        windows = padded.movedim(1 + self.ndim, -1)
        return windows.flatten(1 + self.ndim, 2 * self.ndim).flatten(1, self.ndim)

    def _seen(self, x: Tensor) -> Tensor:
        """Which keys are on the map, (1, blocks, 1, 1, keys)."""
        inside = self._windows(x.new_ones(1, *x.shape[1:-1], 1))[..., 0] > 0
        return inside[:, :, None, None]
