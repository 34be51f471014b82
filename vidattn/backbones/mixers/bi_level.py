"""Bi-level routing attention (BiFormer, Zhu et al., arXiv 2303.08810)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.layers.conv import depthwise
from vidattn.backbones.layers.windows import pad_to, partition, real, together
from vidattn.backbones.mixers.base import Mixer, dense_attention


class QKVLinear(nn.Module):
    """Queries, keys and values of one linear layer, under the authors' name ``qkv.qkv``."""

    def __init__(self, dim: int, qk_dim: int, bias: bool) -> None:
        super().__init__()
        self.sizes = (qk_dim, qk_dim, dim)
        self.qkv = nn.Linear(dim, 2 * qk_dim + dim, bias=bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.qkv(x).split(self.sizes, -1))


class BiLevelRoutingAttention(Mixer):
    """Regions choose regions, and the tokens of a region attend to the tokens of those that it chose.

    The map is cut into ``n_regions`` per axis. A region's query and key are the means of its tokens'; it
    chooses the ``topk`` regions with the greatest product (no gradient goes through the choice), one choice
    for all heads. A depthwise convolution on the values is added.

    Args:
        dim: channels.
        num_heads: heads.
        n_regions: regions per axis.
        topk: regions that a region sees; all where there are fewer.
        qk_dim: channels of queries and keys; ``dim`` when None.
        qkv_bias: biases in the projection.
        lepe_kernel: size of the convolution, odd; 0 leaves it out.
        per_head_routing: every head makes its own choice (not the authors').
        scale: of scores: "full" is 1 / sqrt(qk_dim), as in the released models; "head" has the head's size.
        pad: grids that the regions do not divide: "mask" leaves padding out everywhere; "zero" is the
            authors', whose padding gets the projection's bias, enters the means and is attended to.
        ndim: axes of the grid; matters for the convolution only.

    Raises:
        ValueError: values out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        n_regions: int = 7,
        topk: int = 4,
        qk_dim: int | None = None,
        qkv_bias: bool = True,
        lepe_kernel: int = 5,
        per_head_routing: bool = False,
        scale: str = "full",
        pad: str = "mask",
        ndim: int = 2,
    ) -> None:
        super().__init__(dim, num_heads)
        qk_dim = dim if qk_dim is None else qk_dim
        if n_regions < 1 or topk < 1:
            raise ValueError(f"n_regions={n_regions}, topk={topk}: both must be at least 1")
        if qk_dim < 1 or qk_dim % num_heads:
            raise ValueError(f"qk_dim={qk_dim}: must be a multiple of num_heads={num_heads}")
        if scale not in ("full", "head"):
            raise ValueError(f"scale={scale!r}: must be 'full' or 'head'")
        if pad not in ("mask", "zero"):
            raise ValueError(f"pad={pad!r}: must be 'mask' or 'zero'")
        if lepe_kernel < 0 or (lepe_kernel and lepe_kernel % 2 == 0):
            raise ValueError(f"lepe_kernel={lepe_kernel}: must be odd, or 0 for none")
        self.n_regions, self.topk, self.pad, self.per_head_routing = n_regions, topk, pad, per_head_routing
        self.scale = (qk_dim if scale == "full" else qk_dim // num_heads) ** -0.5
        self.qkv = QKVLinear(dim, qk_dim, qkv_bias)
        self.lepe = depthwise(dim, lepe_kernel, ndim=ndim) if lepe_kernel else None
        self.wo = nn.Linear(dim, dim)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Any:
        """Prefix tokens are among the keys of all regions, and see all tokens."""
        grid = x.shape[1:-1]
        size = [-(-extent // self.n_regions) for extent in grid]
        masked = self.pad == "mask"
        seen = real(grid, size, x.device) if masked else None
        padded = x if masked else pad_to(x, [s * self.n_regions for s in size])
        maps = self.qkv(padded)
        q, k, v = (self._regions(pad_to(t, size), size) for t in maps)
        first = [self.heads(t) for t in self.qkv(prefix)] if prefix is not None else None
        index = route(q, k, self.topk, seen, self.scale, self.per_head_routing)
        out = attend_regions(q, k, v, index, self.scale, seen, first)
        extents = padded.shape[1:-1]
        out = together(out.flatten(-2), size, extents)
        if self.lepe is not None:
            out = out + self.lepe(maps[2])
        for axis, extent in enumerate(grid):
            out = out.narrow(1 + axis, 0, extent)
        if first is None:
            return self.wo(out)
        rows = self._prefix_rows(first, maps)
        return self.wo(out), self.wo(rows)

    def _regions(self, x: Tensor, size: list[int]) -> Tensor:
        """(B, regions, tokens, H, D)."""
        return self.heads(partition(x, size))

    def _prefix_rows(self, first: list[Tensor], maps: list[Tensor]) -> Tensor:
        k, v = (
            torch.cat([a, self.heads(b.flatten(1, -2))], 1) for a, b in zip(first[1:], maps[1:], strict=True)
        )
        return dense_attention(first[0], k, v, scale=self.scale).flatten(-2)


def route(
    q: Tensor, k: Tensor, topk: int, seen: Tensor | None, scale: float, per_head: bool = False
) -> Tensor:
    """The regions that each region chooses: (B, regions, H or 1, topk), the best first.

    Args:
        q: queries (B, regions, tokens, H, D).
        k: keys, alike.
        topk: how many; all where there are fewer.
        seen: (regions, tokens), False on padding; None without padding.
        scale: of the products, which does not change the choice but its rounding.
        per_head: a choice for each head instead of one for all.
    """
    q, k = (mean_of(t.detach(), seen) for t in (q, k))
    if not per_head:
        q, k = q.flatten(-2)[:, :, None], k.flatten(-2)[:, :, None]
    affinity = torch.einsum("brhd,bshd->brhs", q * scale, k)
    return affinity.topk(min(topk, k.shape[1]), -1).indices


def mean_of(x: Tensor, seen: Tensor | None) -> Tensor:
    """Means over the tokens of each region, padding (which holds zeros) left out."""
    if seen is None:
        return x.mean(2)
    return x.sum(2) / seen.sum(1).to(x.dtype)[:, None, None]


def attend_regions(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    scale: float,
    seen: Tensor | None = None,
    first: list[Tensor] | None = None,
) -> Tensor:
    """Attention of each region's queries to the tokens of the regions in its row of ``index``.

    Args:
        q: queries (B, regions, tokens, H, D).
        k: keys, alike.
        v: values, alike.
        index: (B, regions, H or 1, topk).
        scale: of the scores.
        seen: (regions, tokens), False on padding; None without padding.
        first: queries, keys and values (B, P, H, D) of tokens whose keys every region sees.

    Returns:
        (B, regions, tokens, H, D).
    """
    batch, regions, heads = q.shape[0], q.shape[1], q.shape[3]
    index = index.expand(-1, -1, heads, -1)
    keys, values = (_chosen(t, index) for t in (k, v))
    mask = None
    if seen is not None:
        mask = seen[index].flatten(3)[:, :, :, None]
    if first is not None:
        extra = [t.transpose(1, 2)[:, None].expand(-1, regions, -1, -1, -1) for t in first[1:]]
        keys, values = torch.cat([extra[0], keys], 3), torch.cat([extra[1], values], 3)
        if mask is not None:
            mask = F.pad(mask, (first[1].shape[1], 0), value=True)
    out = F.scaled_dot_product_attention(
        q.transpose(2, 3).flatten(0, 1),
        keys.flatten(0, 1),
        values.flatten(0, 1),
        attn_mask=None if mask is None else mask.flatten(0, 1),
        scale=scale,
    )
    return out.unflatten(0, (batch, regions)).transpose(2, 3)


def _chosen(x: Tensor, index: Tensor) -> Tensor:
    """(B, regions, tokens, H, D) as (B, regions, H, topk * tokens, D)."""
    batch = torch.arange(x.shape[0], device=x.device)[:, None, None, None]
    head = torch.arange(x.shape[3], device=x.device)[None, None, :, None]
    return x.permute(0, 1, 3, 2, 4)[batch, index, head].flatten(3, 4)


class AttentionLePE(Mixer):
    """Softmax attention plus a depthwise convolution of its input: the last stage of BiFormer.

    Args:
        dim: channels.
        num_heads: heads; 8 in all released models.
        lepe_kernel: size of the convolution, odd.
        ndim: axes of the grid.
    """

    def __init__(self, dim: int, num_heads: int = 8, *, lepe_kernel: int = 5, ndim: int = 2) -> None:
        super().__init__(dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.lepe = depthwise(dim, lepe_kernel, ndim=ndim)
        self.proj = nn.Linear(dim, dim)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Any:
        """Prefix tokens get nothing from the convolution."""
        before = 0 if prefix is None else prefix.shape[1]
        q, k, v = (self.heads(t) for t in self.qkv(self.tokens(x, prefix)).chunk(3, -1))
        out = dense_attention(q, k, v).flatten(-2)
        mapped = self.proj(out[:, before:].unflatten(1, x.shape[1:-1]) + self.lepe(x))
        return (mapped, self.proj(out[:, :before])) if before else mapped
