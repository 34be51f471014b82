"""Scatterbrain: exact attention on a band, random features elsewhere (Chen et al., arXiv 2110.15343)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vidattn.backbones.mixers.base import Mixer, split
from vidattn.backbones.mixers.two_pass import in_float


class ScatterbrainAttention(Mixer):
    """Softmax attention estimated by random features, with exact weights between tokens that are near in
    raster order.

    See :func:`scatterbrain`. The frequencies are a buffer, ``projection``, drawn once; ``redraw`` draws them
    again. The support is the authors' local one; their other one, hash buckets, is left out.

    Args:
        dim: channels.
        num_heads: heads.
        window: tokens of the band.
        n_features: random features, even; int(D ln D) rounded down to even when None, but at least 2.
        qkv_bias: biases in the first projection.

    Raises:
        ValueError: values out of range.
    """

    projection: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        window: int = 49,
        n_features: int | None = None,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(dim, num_heads)
        features = max(2, int(self.head_dim * math.log(self.head_dim)) // 2 * 2)
        features = features if n_features is None else n_features
        if window < 0 or features < 2 or features % 2:
            raise ValueError(
                f"window={window}, n_features={n_features}: at least 0, and an even number of at least 2"
            )
        self.window = window
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.register_buffer("projection", orthogonal_frequencies(features // 2, self.head_dim))

    def redraw(self) -> None:
        """Draw other frequencies."""
        fresh = orthogonal_frequencies(*self.projection.shape)
        self.projection.copy_(fresh)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Any:
        """Prefix tokens come first in the order of tokens, and are near to the map's first ones only; as for
        all others the rest is estimated.
        """
        before = 0 if prefix is None else prefix.shape[1]
        q, k, v = (self.heads(t) for t in self.qkv(self.tokens(x, prefix)).chunk(3, -1))
        out = scatterbrain(q, k, v, self.projection, self.window).flatten(-2)
        mapped, rest = split(self.proj(out), x, before)
        return (mapped, rest) if before else mapped


def orthogonal_frequencies(count: int, size: int) -> Tensor:
    """(count, size) rows, orthogonal in blocks of ``size``, with the lengths of normal vectors."""
    blocks = [torch.linalg.qr(torch.randn(size, size)).Q.T for _ in range(-(-count // size))]
    lengths = torch.randn(count, size).norm(dim=-1, keepdim=True)
    return torch.cat(blocks)[:count] * lengths


def scatterbrain(query: Tensor, key: Tensor, value: Tensor, projection: Tensor, window: int) -> Tensor:
    """Attention with weights exp(q_i . k_j / sqrt(D)) on the band and f(q_i) . f(k_j) elsewhere, divided by
    their sum over all keys.

    f(x) = exp(+-w_r . x D^(-1/4) - |x|^2 / (2 sqrt(D))) / sqrt(m) for the m / 2 rows w_r of ``projection``;
    its products estimate the exact weights. The band of query i is j from i - floor(w / 2) to
    i + ceil(w / 2) - 1. Exponents are shifted, by one number per query and one per head for keys, which
    cancel. The band is the difference of two weights, so that digits are lost where the estimate is far above
    the exact one. In float32 (float64 for float64), with memory for S x window.

    Args:
        query: (B, S, H, D).
        key: (B, S, H, D).
        value: (B, S, H, Dv).
        projection: frequencies (m / 2, D).
        window: w.

    Returns:
        (B, S, H, Dv) in the value's dtype.
    """
    dtype = value.dtype
    q, k, v, w = in_float(query, key, value, projection)
    q, k = q * q.shape[-1] ** -0.25, k * k.shape[-1] ** -0.25
    q_logits, k_logits = _logits(q, w), _logits(k, w)
    index, real = _band(q.shape[1], window, q.device)
    scores = torch.einsum("bshd,bswhd->bshw", q, k[:, index])
    # shifts are constants: whatever they are, they cancel, and so do their gradients
    k_shift = k_logits.detach().amax((1, 3), keepdim=True)
    q_shift = torch.cat([q_logits, scores - k_shift], -1).detach().amax(-1, keepdim=True)
    q_features, k_features = (q_logits - q_shift).exp(), (k_logits - k_shift).exp() / (2 * w.shape[0])
    ones = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    state = torch.einsum("bshf,bshe->bhfe", k_features, ones)
    estimates = torch.einsum("bshf,bswhf->bshw", q_features, k_features[:, index])
    more = ((scores - q_shift - k_shift).exp() - estimates) * real[:, None]
    out = torch.einsum("bshf,bhfe->bshe", q_features, state)
    out = out + torch.einsum("bshw,bswhe->bshe", more, ones[:, index])
    return (out[..., :-1] / out[..., -1:]).to(dtype)


def _logits(x: Tensor, frequencies: Tensor) -> Tensor:
    """Logarithms of the features but for a constant, (B, S, H, m)."""
    turned = torch.einsum("bshd,rd->bshr", x, frequencies)
    return torch.cat([turned, -turned], -1) - x.square().sum(-1, keepdim=True) / 2


def _band(length: int, window: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Keys of each query (S, window), and which of them exist."""
    offsets = torch.arange(window, device=device) - window // 2
    index = torch.arange(length, device=device)[:, None] + offsets
    real = (index >= 0) & (index < length)
    return index.clamp(0, length - 1), real
