"""Attention without exponentials, chosen per head (MPCViT, Zeng et al., ICCV 2023, arXiv 2211.13955)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vidattn.backbones.mixers.base import Mixer, dense_attention, split
from vidattn.backbones.mixers.two_pass import in_float, read
from vidattn.patterns.text import nearest

NORMALIZERS = ["softmax", "relu", "scale", "search"]


class MPCAttention(Mixer):
    """Self-attention whose scores S = q k^T / sqrt(D) become weights in one of four ways.

    "softmax"; "relu": relu(S) / (sum over keys of relu(S) + 1e-5); "scale": S / N, which needs time linear in
    the tokens; "search": a relu + (1 - a) scale with a learned a per head (``alpha``), which starts at 1.
    While searching, the authors add 1e-5 times the sum of \\|a\\| to the loss; :func:`settle_heads` then
    decides.

    Args:
        dim: channels.
        num_heads: heads.
        normalizer: see above.
        qkv_bias: biases in the first projection; the authors have none.

    Raises:
        ValueError: values out of range.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, *, normalizer: str = "search", qkv_bias: bool = False
    ) -> None:
        super().__init__(dim, num_heads)
        if normalizer not in NORMALIZERS:
            raise ValueError(f"normalizer={normalizer!r}: {nearest(str(normalizer), NORMALIZERS)}")
        self.normalizer = normalizer
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.no_decay: tuple[str, ...] = ()
        if normalizer == "search":
            self.alpha = nn.Parameter(torch.ones(num_heads))
            self.no_decay = ("alpha",)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Any:
        """Prefix tokens are tokens like the others."""
        before = 0 if prefix is None else prefix.shape[1]
        q, k, v = (self.heads(t) for t in self.qkv(self.tokens(x, prefix)).chunk(3, -1))
        mapped, rest = split(self.proj(self._attention(q, k, v).flatten(-2)), x, before)
        return (mapped, rest) if before else mapped

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.normalizer == "softmax":
            return dense_attention(q, k, v)
        dtype = v.dtype
        q, k, v = in_float(q, k, v)
        q = q * self.head_dim**-0.5
        if self.normalizer == "relu":
            return relu_attention(q, k, v).to(dtype)
        if self.normalizer == "scale":
            return read(q, k, v).to(dtype)
        share = self.alpha[:, None].to(q.dtype)
        return (share * relu_attention(q, k, v) + (1 - share) * read(q, k, v)).to(dtype)


def relu_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """relu(q k^T) divided by its sum over the keys + 1e-5, times v; on (B, S, H, D)."""
    weights = torch.einsum("bihd,bjhd->bhij", q, k).relu()
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-5)
    return torch.einsum("bhij,bjhe->bihe", weights, v)


@torch.no_grad()
def settle_heads(mixers: Sequence[MPCAttention], fraction: float) -> None:
    """End a search: heads with the greatest ``alpha`` of all layers together get 1, the others 0, for good.

    Args:
        mixers: all that were searched together.
        fraction: share of heads that keep the relu, 0 to 1; rounded to whole heads.

    Raises:
        ValueError: ``fraction`` out of range, or a mixer without ``alpha``.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction={fraction}: must be from 0 to 1")
    if not mixers or any(mixer.normalizer != "search" for mixer in mixers):
        raise ValueError(f"mixers={list(mixers)!r}: must have normalizer='search', at least one")
    values = torch.cat([mixer.alpha for mixer in mixers])
    chosen = torch.zeros_like(values)
    chosen[values.argsort(descending=True, stable=True)[: round(fraction * len(values))]] = 1
    for mixer, own in zip(mixers, chosen.split([mixer.num_heads for mixer in mixers]), strict=True):
        mixer.alpha.copy_(own)
        mixer.alpha.requires_grad_(False)
