"""Multi-head self-attention of all tokens (ViT, Dosovitskiy et al., arXiv 2010.11929)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vidattn.backbones.mixers.base import Mixer, dense_attention, split


class SoftmaxAttention(Mixer):
    """softmax(q k^T / sqrt(D)) v over all tokens, through PyTorch's fused attention.

    Args:
        dim: channels.
        num_heads: heads.
        qkv_bias: biases in the first projection.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    reads = ("qkv",)

    def __init__(self, dim: int, num_heads: int = 8, *, qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Any:
        """Prefix tokens are tokens like the others."""
        before = 0 if prefix is None else prefix.shape[1]
        q, k, v = (self.heads(t) for t in self.qkv(self.tokens(x, prefix)).chunk(3, -1))
        mapped, rest = split(self.proj(dense_attention(q, k, v).flatten(-2)), x, before)
        return (mapped, rest) if before else mapped
