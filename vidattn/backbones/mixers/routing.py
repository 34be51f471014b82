"""Attention inside clusters of tokens (Routing Transformer, Roy et al., TACL 2021, arXiv 2003.05997)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.mixers.base import Mixer


class ClusteredAttention(Mixer):
    """Every centroid takes the queries and the keys nearest to it, and they attend among themselves.

    Nearness is the product of a centroid with the layer norm (nothing learned) of a query or key; each takes
    the same number of either, so that all clusters are equal work, N^1.5 in all with sqrt(N) clusters. The
    attention itself is on q, k, v as they are, scaled by 1 / sqrt(D).

    A token can be in several clusters or in none. The paper leaves open what becomes of it: here, a query
    gets the mean of its clusters' outputs, and zero (before the projection) without one. Centroids do not
    learn by gradient: call :meth:`update` with each training batch. It is not part of the forward pass, so
    that recomputing activations routes as before. Queries and keys are routed apart, for attention that is
    not causal.

    Args:
        dim: channels.
        num_heads: heads, each with centroids of its own.
        num_clusters: centroids.
        window: queries and keys that each takes; ceil(N / num_clusters) when None. At most N.
        ema: share of a centroid that an update keeps.
        qkv_bias: biases in the first projection.

    Raises:
        ValueError: values out of range.
    """

    takes_prefix = False
    means: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        num_clusters: int = 8,
        window: int | None = None,
        ema: float = 0.999,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(dim, num_heads)
        if num_clusters < 1 or (window is not None and window < 1):
            raise ValueError(f"num_clusters={num_clusters}, window={window}: must be at least 1")
        if not 0 <= ema <= 1:
            raise ValueError(f"ema={ema}: must be from 0 to 1")
        self.num_clusters, self.window, self.ema = num_clusters, window, ema
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.register_buffer("means", torch.randn(num_heads, num_clusters, self.head_dim))

    def mix(self, x: Tensor, prefix: Tensor | None) -> Tensor:
        """All clusters at once."""
        q, k, v = self._projected(x)
        queries, keys = self._members(q), self._members(k)
        attended = F.scaled_dot_product_attention(_taken(q, queries), _taken(k, keys), _taken(v, keys))
        attended = attended.flatten(2, 3)
        place = queries.flatten(2)[..., None]
        total = torch.zeros_like(v).scatter_add(2, place.expand_as(attended), attended)
        count = torch.zeros_like(v[..., :1]).scatter_add(2, place, torch.ones_like(attended[..., :1]))
        out = (total / count.clamp(min=1)).transpose(1, 2).flatten(-2)
        return self.proj(out).unflatten(1, x.shape[1:-1])

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Move the centroids: ``ema`` of the old, the rest half of the mean query and half of the mean key.

        Args:
            x: the map (B, *grid, C) that the mixer got; the means are over the batch.

        Raises:
            ValueError: another shape.
        """
        self.check(x, None)
        q, k, _ = self._projected(x)
        found = [_taken(on_sphere(t), self._members(t)).mean((0, 3)) for t in (q, k)]
        self.means.lerp_(((found[0] + found[1]) / 2).to(self.means.dtype), 1 - self.ema)

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, H, N, D)."""
        q, k, v = (self.heads(t).transpose(1, 2) for t in self.qkv(self.tokens(x)).chunk(3, -1))
        return q, k, v

    def _members(self, t: Tensor) -> Tensor:
        """Numbers of the tokens that each centroid takes, (B, H, clusters, window)."""
        window = math.ceil(t.shape[2] / self.num_clusters) if self.window is None else self.window
        near = torch.einsum("bhnd,hcd->bhcn", on_sphere(t), self.means.to(t.dtype))
        return near.topk(min(window, t.shape[2]), -1).indices


def on_sphere(t: Tensor) -> Tensor:
    """Layer norm over the channels without factor or bias."""
    return F.layer_norm(t, t.shape[-1:])


def _taken(t: Tensor, index: Tensor) -> Tensor:
    """(B, H, N, D) at (B, H, clusters, window), as (B, H, clusters, window, D)."""
    flat = index.flatten(2)[..., None].expand(-1, -1, -1, t.shape[-1])
    return t.gather(2, flat).unflatten(2, index.shape[2:])
