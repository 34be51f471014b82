"""What all mixers have in common: maps in and out, heads, prefix tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mixer(nn.Module):
    """A module that lets the tokens of a map (B, *grid, C) see each other, and keeps its shape.

    ``mixer(x)`` gives a map; ``mixer(x, prefix)`` with prefix tokens (B, P, C), such as a class token and
    registers, gives (map, prefix). Prefix tokens see all tokens and are seen by all; convolutions, windows
    and positions do not touch them. Mixers that have no use for them set ``takes_prefix = False`` and refuse
    them.

    Args:
        dim: channels C.
        num_heads: heads; must divide ``dim``.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    takes_prefix = True

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim < 1 or num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads}: must be at least 1 and divide dim={dim}")
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Any:
        """The mixed map, or (map, prefix tokens) where prefix tokens are given.

        Args:
            x: (B, *grid, C).
            prefix: (B, P, C) or None.

        Raises:
            ValueError: shapes that do not fit.
        """
        self.check(x, prefix)
        if prefix is None:
            return self.mix(x, None)
        together = self.mix(x, prefix)
        return together[0], together[1]

    def mix(self, x: Tensor, prefix: Tensor | None) -> Any:
        """What a subclass defines; the shapes are checked by then."""
        raise NotImplementedError(f"{type(self).__name__} must define mix")

    def check(self, x: Tensor, prefix: Tensor | None) -> None:
        """Raise ValueError unless the shapes fit."""
        if x.ndim < 3 or x.shape[-1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}: must be (batch, *grid, dim={self.dim})")
        if prefix is None:
            return
        if not self.takes_prefix:
            raise ValueError(f"{type(self).__name__} takes no prefix tokens")
        if prefix.ndim != 3 or prefix.shape[0] != x.shape[0] or prefix.shape[-1] != self.dim:
            raise ValueError(
                f"prefix has shape {tuple(prefix.shape)}: must be (batch={x.shape[0]}, tokens,"
                f" dim={self.dim})"
            )

    def start_from(self, qkv: nn.Linear, proj: nn.Linear) -> None:
        """Take over the projections of a softmax attention, and make all that it does not have do nothing.

        Gates become 1 everywhere; convolutions on the values become 0.

        Args:
            qkv: queries, keys and values, in this order.
            proj: the output projection.

        Raises:
            ValueError: this mixer's own projections are of another kind.
        """
        first: Any = getattr(self, "qkvo", None) or getattr(self, "qkv", None)
        first = getattr(first, "qkv", first)
        last: Any = getattr(self, "proj", None) or getattr(self, "wo", None)
        if first is None or last is None or first.weight.shape[0] < 3 * self.dim:
            raise ValueError(f"{type(self).__name__} cannot start from a softmax attention's projections")
        with torch.no_grad():
            _copy(first, qkv)
            _copy(last, proj)
            for name in ("lepe", "dwc"):
                if (local := getattr(self, name, None)) is not None:
                    local.weight.zero_()
                    local.bias.zero_()
            if (residual := getattr(self, "residual", None)) is not None:
                residual[-1].weight.zero_()
                residual[-1].bias.zero_()

    def tokens(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """(B, P + N, C): prefix tokens first, then the map in raster order."""
        flat = x.flatten(1, -2)
        return flat if prefix is None else torch.cat([prefix, flat], 1)

    def heads(self, x: Tensor) -> Tensor:
        """(B, S, C) as (B, S, H, D)."""
        return x.unflatten(-1, (self.num_heads, -1))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}"


def _copy(target: Any, source: nn.Linear) -> None:
    """Copy a linear layer into the first rows of another; the rows behind become a constant 1."""
    rows = source.weight.shape[0]
    target.weight.zero_()
    target.weight.flatten(1)[:rows].copy_(source.weight)
    if target.bias is None and source.bias is not None:
        raise ValueError(
            "the attention has biases where the mixer has none: build the mixer with qkv_bias=True"
        )
    if target.bias is not None:
        target.bias[rows:].fill_(1)
        target.bias[:rows].copy_(torch.zeros_like(target.bias[:rows]) if source.bias is None else source.bias)


def split(tokens: Tensor, like: Tensor, prefix: int) -> tuple[Tensor, Tensor | None]:
    """(B, P + N, C') as the map (B, *grid, C') of ``like``'s grid, and the prefix tokens or None."""
    grid = like.shape[1:-1]
    return tokens[:, prefix:].unflatten(1, grid), tokens[:, :prefix] if prefix else None


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, bias: Tensor | None = None
) -> Tensor:
    """softmax(scale * q k^T + bias) v on (B, S, H, D), through PyTorch's attention.

    Args:
        q: queries.
        k: keys.
        v: values.
        scale: 1 / sqrt(D) when None.
        bias: added to the scores, or a bool mask of what is seen; broadcasts to (B, H, S, Sk).
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).transpose(1, 2)
