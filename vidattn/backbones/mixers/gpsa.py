"""Gated positional self-attention (ConViT, d'Ascoli et al., arXiv 2103.10697)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vidattn.backbones.mixers.base import Mixer, dense_attention


class GPSA(Mixer):
    """A gate per head between attention by content and attention by position.

    The weights are (1 - s) softmax(q k^T / sqrt(D)) + s softmax_j(w_h . r_ij + b_h) with s = sigmoid of
    ``gating_param`` and, on a 2-D grid, r = (dx, dy, dx^2 + dy^2), the key's place minus the query's. Grids
    of other ranks have the displacements from the last axis to the first, then the sum of squares.

    A position's score is a sum over the axes, so its softmax is the product of one softmax per axis: the
    position map costs time linear in the extents, and nothing of size tokens x tokens is kept. The authors
    divide the mixed weights by their sum, which is 1 already. b_h cancels in the softmax; it is kept because
    checkpoints have it.

    Local first values (``use_local_init``): values are the input, and the first s^2 heads, s the integer
    root of the heads, look at the places of an s x s square. The order of heads is open in the paper: here,
    as in timm's, head a + s b has its row at a and its column at b. Further heads start at random. It
    applies to 2-D grids.

    Args:
        dim: channels.
        num_heads: heads.
        locality_strength: factor of the local first values.
        qkv_bias: biases in the projections of queries, keys and values.
        use_local_init: local first values instead of random ones.
        ndim: axes of the grid.

    Raises:
        ValueError: values out of range.
    """

    takes_prefix = False

    def __init__(
        self,
        dim: int,
        num_heads: int = 9,
        *,
        locality_strength: float = 1.0,
        qkv_bias: bool = False,
        use_local_init: bool = True,
        ndim: int = 2,
    ) -> None:
        super().__init__(dim, num_heads)
        if ndim < 1:
            raise ValueError(f"ndim={ndim}: must be at least 1")
        if use_local_init and ndim != 2:
            raise ValueError(f"use_local_init={use_local_init}: is for grids of 2 axes, not ndim={ndim}")
        self.locality_strength, self.use_local_init, self.ndim = locality_strength, use_local_init, ndim
        self.qk = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.pos_proj = nn.Linear(ndim + 1, num_heads)
        self.gating_param = nn.Parameter(torch.ones(num_heads))
        self.reset_own()

    @torch.no_grad()
    def reset_own(self) -> None:
        """Local first values."""
        if not self.use_local_init:
            return
        self.v.weight.copy_(torch.eye(self.dim))
        side = math.isqrt(self.num_heads)
        centre = side // 2 if side % 2 else (side - 1) / 2
        for row in range(side):
            for column in range(side):
                toward = torch.tensor([2.0 * (column - centre), 2.0 * (row - centre), -1.0])
                self.pos_proj.weight[row + side * column].copy_(toward * self.locality_strength)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Tensor:
        """Both kinds of attention read the same values."""
        grid = x.shape[1:-1]
        if len(grid) != self.ndim:
            raise ValueError(f"x has a grid of {len(grid)} axes: must be ndim={self.ndim}")
        tokens = self.tokens(x)
        q, k = (self.heads(t) for t in self.qk(tokens).chunk(2, -1))
        v = self.heads(self.v(tokens))
        content = dense_attention(q, k, v).unflatten(1, grid)
        gate = self.gating_param.sigmoid()[:, None]
        out = (1 - gate) * content + gate * self._by_position(v.unflatten(1, grid))
        return self.proj(out.flatten(-2))

    def _by_position(self, v: Tensor) -> Tensor:
        """The positions' softmax times the values (B, *grid, H, D), one axis after the other."""
        squares = self.pos_proj.weight[:, -1, None, None]
        for axis in range(self.ndim):
            places = torch.arange(v.shape[1 + axis], device=v.device)
            away = (places - places[:, None]).to(v.dtype)
            logits = self.pos_proj.weight[:, self.ndim - 1 - axis, None, None] * away + squares * away**2
            if axis == 0:
                logits = logits + self.pos_proj.bias[:, None, None]
            moved = v.movedim(1 + axis, -3)
            v = torch.einsum("hij,...jhd->...ihd", logits.softmax(-1), moved).movedim(-3, 1 + axis)
        return v
