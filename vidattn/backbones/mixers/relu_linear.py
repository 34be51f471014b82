"""ReLU linear attention with a bounded normaliser (L2ViT, Zheng, arXiv 2501.16182)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.mixers.base import Mixer, split
from vidattn.backbones.mixers.two_pass import in_float, read, score


class ReLULinearAttention(Mixer):
    """t relu(q) (sum_j relu(k_j) v_j^T) / max(relu(q) . sum_j relu(k_j), min_norm), with t learned per head.

    The bound is the released code's; it depends on the number of tokens and the size of the features, so that
    rows of weights need not sum to t. ``temperature`` begins as 1 / sqrt(D).

    Args:
        dim: channels.
        num_heads: heads.
        min_norm: lower bound of the normaliser.
        qkv_bias: biases in the first projection.

    Raises:
        ValueError: values out of range.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, *, min_norm: float = 100.0, qkv_bias: bool = True
    ) -> None:
        super().__init__(dim, num_heads)
        if not 0 < min_norm < math.inf:
            raise ValueError(f"min_norm={min_norm}: must be a finite number above 0")
        self.min_norm = min_norm
        self.temperature = nn.Parameter(torch.full((num_heads, 1, 1), self.head_dim**-0.5))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Any:
        """Prefix tokens are tokens like all others."""
        before = 0 if prefix is None else prefix.shape[1]
        q, k, v = (self.heads(t) for t in self.qkv(self.tokens(x, prefix)).chunk(3, -1))
        out = self._attend(q, k, v).flatten(-2)
        mapped, rest = split(self.proj(out), x, before)
        return (mapped, rest) if before else mapped

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dtype, count = v.dtype, k.shape[1]
        q, k, v = in_float(q, k, v)
        q, k = F.relu(q), F.relu(k)
        # means instead of sums: numerator and normaliser are both divided by the number of tokens
        norm = score(q, k).clamp(min=self.min_norm / count)
        return (self.temperature.flatten()[:, None] * read(q, k, v) / norm).to(dtype)
