"""Global-local and pair-wise cross-attention (DCAL, Zhu et al., CVPR 2022, arXiv 2205.02151)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vidattn.backbones.mixers.base import dense_attention
from vidattn.backbones.mixers.softmax import SoftmaxAttention


def attention_rollout(attentions: Sequence[Tensor]) -> Tensor:
    """How much the tokens of the last layer saw of the first one's: the product of (A + 1) / 2 of all layers.

    The paper does not say how heads are joined; A is their mean, as is usual.

    Args:
        attentions: weights (B, H, N, N) per layer, the first layer first.

    Returns:
        (B, N, N); rows sum to 1.

    Raises:
        ValueError: no layers, or another shape.
    """
    if not attentions or any(a.ndim != 4 for a in attentions):
        raise ValueError(
            f"attentions has shapes {[tuple(a.shape) for a in attentions]}: must be (B, H, N, N)"
        )
    total: Tensor | None = None
    for attention in attentions:
        mean = attention.mean(1)
        step = (mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)) / 2
        total = step if total is None else step @ total
    assert total is not None
    return total


class GlobalLocalCrossAttention(SoftmaxAttention):
    """Only the tokens that the class token saw most of, and itself, attend to all tokens.

    ``mixer.select(x, prefix, attentions)`` takes the weights of the layers before; the mixer by itself is a
    plain self-attention.

    Args:
        dim: channels.
        num_heads: heads.
        ratio: share of the map's tokens that attend, over 0 to 1; rounded down, at least one. The authors
            take 0.1 for fine-grained recognition and 0.3 for re-identification.
        qkv_bias: biases in the first projection.

    Raises:
        ValueError: values out of range.
    """

    def __init__(self, dim: int, num_heads: int = 8, *, ratio: float = 0.1, qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias)
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio={ratio}: must be over 0 and at most 1")
        self.ratio = ratio

    def select(self, x: Tensor, prefix: Tensor, attentions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The class token and the selected tokens, the most seen first.

        Args:
            x: the map (B, *grid, C).
            prefix: prefix tokens (B, P, C); the first is the class token.
            attentions: weights (B, H, P + N, P + N) of the layers before, in order.

        Returns:
            (tokens (B, 1 + R, C), which of the map's tokens in raster order (B, R)).

        Raises:
            ValueError: shapes that do not fit.
        """
        self.check(x, prefix)
        before, tokens = prefix.shape[1], self.tokens(x, prefix)
        seen = attention_rollout(attentions)
        if seen.shape[0] != x.shape[0] or seen.shape[1] != tokens.shape[1]:
            raise ValueError(
                f"attentions are of {tuple(seen.shape[:2])} samples and tokens: must be"
                f" {tuple(tokens.shape[:2])}"
            )
        count = max(1, int(self.ratio * (tokens.shape[1] - before) + 1e-6))
        chosen = seen[:, 0, before:].topk(count, -1).indices
        places = torch.cat([torch.zeros_like(chosen[:, :1]), chosen + before], 1)
        q, k, v = self.qkv(tokens).chunk(3, -1)
        q = q.gather(1, places[..., None].expand(-1, -1, self.dim))
        out = dense_attention(self.heads(q), self.heads(k), self.heads(v)).flatten(-2)
        return self.proj(out), chosen


class PairwiseCrossAttention(SoftmaxAttention):
    """Self-attention that, while training, can be distracted by another image.

    ``mixer.pairwise(x, other)`` lets x's queries attend to both images' keys and values in one softmax, with
    the weights of the self-attention; the target stays x's. At inference the mixer is the self-attention.
    """

    def pairwise(self, x: Tensor, other: Tensor) -> Tensor:
        """x's tokens after attention to both.

        Args:
            x: (B, N, C): all tokens, the class token among them.
            other: (B, N', C), in the paper those of another image of the batch.

        Raises:
            ValueError: shapes that do not fit.
        """
        if x.ndim != 3 or other.ndim != 3 or x.shape[::2] != other.shape[::2] or x.shape[-1] != self.dim:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, other {tuple(other.shape)}: must be (batch, tokens,"
                f" dim={self.dim}) with one batch"
            )
        q, k, v = self.qkv(x).chunk(3, -1)
        _, more_keys, more_values = self.qkv(other).chunk(3, -1)
        k, v = torch.cat([k, more_keys], 1), torch.cat([v, more_values], 1)
        return self.proj(dense_attention(self.heads(q), self.heads(k), self.heads(v)).flatten(-2))
